#!/usr/bin/env python3
# check: build=asan campaign=release timeout=400
"""A primary with two standbys, one of them synchronous, and an encrypted repository: a snapshot
with the topology, a disaster, and one command to the coordinator that brings all three back to the
tag."""
import glob
import json
import os
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE]
from tm import *  # noqa: E402, F403
from cluster_lib import Cluster, Coordinator  # noqa: E402
import schemas  # noqa: E402
import tm  # noqa: E402

ROWS = "select count(*), coalesce(sum(hashtext(pad)::bigint), 0) from orders"


def verbs_of(coordinator):
    """`tidemark …` with the coordinator's configuration."""
    return lambda *args: tm.cli(*args, conf=coordinator.conf)


def test_status(coordinator):
    status = coordinator.status()
    is_(status["status"], "ok", "all is well")
    is_([(m["name"], m["role"], m["timeline"]) for m in status["members"]],
        [("db1", "primary", 1), ("db2", "standby", 1), ("db3", "standby", 1)], "who is what")
    like(coordinator.cli("status").out, r"(?m)^db1 +ok +primary +1 ", "for people")


def test_snapshot(box, coordinator, node):
    if not is_status(coordinator.cli("snapshot", "--tag", "t1"), 0, "cluster snapshot"):
        coordinator.diagnose()
    test_told(box, coordinator, "cluster_snapshot", "snapshot", ["db1"])
    record = json.loads(node.cli("show", "t1", "--json").out)
    members = record.get("record", record)["topology"]["members"]
    is_([(m["name"], m["role"]) for m in members],
        [("db1", "primary"), ("db2", "standby"), ("db3", "standby")], "the record knows them all")
    is_(members[0]["replication"][0]["sync_state"], "sync", "and who is synchronous")
    is_status(coordinator.cli("snapshot", "--tag", "t1"), "busy", "the tag is taken")
    schemas.conform_all(verbs_of(coordinator), "cluster snapshot, coordinator", 1, 1)
    done = coordinator.cli("snapshot", "--tag", "t0", "--from=standby")
    is_status(done, 0, "cluster snapshot --from=standby")
    like(done.out, "read from db3", "of the one for whom no commit waits")
    done = coordinator.cli("snapshot", "--tag", "t3", "--from=db9")
    is_status(done, "usage", "cluster snapshot --from=db9")
    like(done.err, "'db9' is no member", "says why")


def disaster(cluster):
    """A table is dropped everywhere, a standby loses its files and the primary its disk."""
    cluster.primary.server.psql("drop table orders")
    cluster.wait_replayed()
    lost = cluster.standbys[1]
    lost.server.stop("immediate")
    shutil.rmtree(lost.data + "/base")
    cluster.primary.server.stop("immediate")
    cluster.primary.destroy(cluster.primary.volumes[0])


def test_restore(cluster, coordinator, rows):
    done = coordinator.cli("restore", "t1", "--yes", "--delta")
    if not is_status(done, 0, "cluster restore --delta"):
        coordinator.diagnose()
        return
    like(done.out, "delta +the devices are read first", "the plan says how")
    copied = {m.name: m.agent.api("GET", "/jobs")[1]["jobs"][-1]["copied"] for m in cluster.members}
    is_({name: found["delta"] for name, found in copied.items()},
        {"db1": True, "db2": True, "db3": True}, "every node reads its device first")
    ok(copied["db1"]["bytes_fetched"] * 2 < copied["db2"]["bytes_fetched"] and
       all(found["bytes_same"] > 0 for found in copied.values()),
       f"db1's own blocks are on it but for what was overwritten: {copied}")
    like(done.out, r"(?s)primary +db1.*standby +db2.*is complete: timeline 2, 3 nodes",
         "the plan before, the end after")
    server = cluster.primary.server
    is_(server.timeline(), 2, "the primary writes a new timeline")
    cluster.wait_attached(2)
    for member in cluster.members:
        is_(member.server.psql(ROWS), rows, f"{member.name} has the rows of the tag")
        is_(member.health(), "ok", f"{member.name} is healthy")
    is_(server.psql("select sync_state from pg_stat_replication where application_name = 'db2'"),
        "sync", "db2 is synchronous again")
    server.psql("insert into orders select 1000000, 'after'")
    is_(cluster.standbys[0].server.psql("select count(*) from orders where id = 1000000"), "1",
        "what is committed is on db2")
    cluster.wait_replayed()
    is_(server.psql("select string_agg(slot_name, ',' order by slot_name)"
                    " from pg_replication_slots where active"), "db2,db3", "slots are in use")
    is_(coordinator.status()["status"], "ok", "the cluster is well")
    journal = coordinator.journal()
    is_((journal["state"], journal["fork"]["timeline"]), ("complete", 2), "so says the journal")
    schemas.conform_all(verbs_of(coordinator), "cluster restore, coordinator", 1, 2)
    schemas.conform(verbs_of(coordinator), "cluster", "cluster", "status", want=1)
    for member in cluster.members[:2]:
        schemas.conform_all(member.cli, f"cluster restore, {member.name}", 1, 1)


def test_refusals(cluster, coordinator):
    is_status(coordinator.cli("restore", "nothing", "--yes"), "missing", "no such snapshot")
    is_status(coordinator.cli("restore", "t1", "--yes", "--primary=db9"), "usage",
              "a primary that is no member")
    cluster.standbys[1].agent.stop()
    done = coordinator.cli("restore", "t1", "--yes")
    isnt(done.status, 0, "a node whose agent is down")
    like(done.err, "node db3", "is named")
    cluster.standbys[1].agent.start()
    for member in cluster.members:
        is_(member.health(), "ok", f"{member.name} was given back")
        ok(member.server.running(), f"{member.name} runs")
    done = coordinator.cli("restore", "t1", "--yes", "--map=db3=db9")
    is_status(done, "missing", "a place that is not there")
    like(done.err, "--map=db3=MEMBER", "with a hint")


def hooks(box):
    """A [notify] section whose command keeps one file a job and end."""
    directory = box.mkdir("told", 0o700)
    return {"notify": {"command": f"f=$(mktemp {directory}/XXXXXX) && cat >$f && mv $f $f.json"}}


def test_told(box, coordinator, event, part, nodes):
    """Of the end of the newest job the coordinator tells, and each node of its part."""
    job = coordinator.journal()["id"]

    def told():
        found = []
        for path in glob.glob(box.join("told/*.json")):
            with open(path, encoding="utf-8") as file:
                found.append(json.load(file))
        found = [x for x in found if job in (x["job"], x["cluster_job"])]
        return found if len(found) > len(nodes) else None
    is_(sorted((x["event"], x["node"], x["state"], x["tag"])
               for x in poll(told, 30, f"{event}: its ends")),
        [(event, "coordinator", "complete", "t1"),
         *((part, node, "complete", "t1") for node in nodes)],
        f"{event}: the coordinator and every node told of the end, once")


def test_cascade(cluster, coordinator):
    """db3 follows db2: how it reaches the primary has to be said."""
    upstream, standby = cluster.standbys
    upstream.server.psql("select pg_create_physical_replication_slot('db3')")
    standby.server.psql(f"alter system set primary_conninfo = '{standby.conninfo_to(upstream)}'")
    standby.server.reload()
    poll(lambda: upstream.server.psql("select count(*) from pg_stat_replication") == "1", 60,
         "db3 to follow db2")
    is_status(coordinator.cli("snapshot", "--tag", "t2"), 0, "cascade: snapshot")
    done = coordinator.cli("restore", "t2", "--yes")
    is_status(done, "refused", "cascade: nobody said how db3 reaches the primary")
    like(done.err, "(?s)standby db3 followed standby db2.*primary_conninfo", "cascade: and how to")
    is_([m.server.running() for m in cluster.members], [True] * 3, "cascade: nothing is touched")


def test_rejoin(box, cluster, coordinator):
    """db3 alone, by a way that leads to db2: it streams, but not from the primary."""
    upstream, standby = cluster.standbys
    coordinator.write_conf(box, primary_conninfo=standby.conninfo_to(upstream))
    coordinator.restart()
    done = coordinator.cli("rejoin", "db3", "--yes")
    is_status(done, "postgres", "rejoin: a standby of a standby")
    like(done.err, "(?s)node db3 streams, but primary db1 has no standby .* as 'db3'.*"
         "hint: correct .*cluster resume", "rejoin: is not what was asked for")
    coordinator.write_conf(box, primary_conninfo=standby.conninfo_to(cluster.primary))
    is_status(coordinator.cli("resume"), 0, "rejoin: corrected and resumed")
    is_(cluster.primary.server.psql("select string_agg(application_name, ',' order by 1) from"
                                    " pg_stat_replication where state = 'streaming'"), "db2,db3",
        "rejoin: both follow the primary")


def main():
    tm.need_root()
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal")
    box = tm.Sandbox("cluster")
    cluster = Cluster(box, options=hooks(box), provider=None).encrypt().start()
    coordinator = Coordinator(box, cluster, options=hooks(box)).start()
    server = cluster.primary.server
    server.psql("create table orders as select i as id, repeat(md5(i::text), 20) as pad"
                " from generate_series(1, 20000) i")
    rows = server.psql(ROWS)
    test_status(coordinator)
    test_snapshot(box, coordinator, cluster.primary)
    test_refusals(cluster, coordinator)
    disaster(cluster)
    test_restore(cluster, coordinator, rows)
    test_told(box, coordinator, "cluster_restore", "restore", ["db1", "db2", "db3"])
    test_cascade(cluster, coordinator)
    if tm.CAMPAIGN:
        test_rejoin(box, cluster, coordinator)
    cluster.stop()


if __name__ == "__main__":
    run(main)
