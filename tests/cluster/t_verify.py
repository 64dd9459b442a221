#!/usr/bin/env python3
# check: build=asan campaign=release timeout=400
"""The last wave of a cluster restore, on three nodes with XFS. An index that was damaged before the
snapshot (bytes flipped in a page of a B-tree) ends the restore with its name; once it is rebuilt by
hand the restore is resumed, and with --reindex=auto it is rebuilt, reported and replicated. A
standby that became another branch of the same timeline number is found by its history."""
import glob
import json
import os
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE]
from tm import *  # noqa: E402, F403
from cluster_lib import Cluster, Coordinator  # noqa: E402
from server import lsn  # noqa: E402
import tm  # noqa: E402

INDEX = "orders_by_amount"
BY_INDEX = ("set enable_seqscan = off; set enable_bitmapscan = off;\n"
            "select count(*), sum(id) from orders where amount between 10 and 20")


def hooks(box, name):
    directory = box.mkdir(name, 0o700)
    return {"notify": {"command": f"f=$(mktemp {directory}/XXXXXX) && cat >$f && mv $f $f.json"}}


def told(box, name, job):
    """What was told of this job's end, newest last."""
    found = []
    for path in sorted(glob.glob(box.join(name, "*.json")), key=os.path.getmtime):
        with open(path, encoding="utf-8") as file:
            found.append(json.load(file))
    return [x for x in found if x["job"] == job]


def flip(server, name, page, count=64):
    """Bytes of a page of this relation, behind the server's back."""
    path = os.path.join(server.data, server.psql(f"select pg_relation_filepath('{name}')"))
    server.stop()
    with open(path, "r+b") as file:
        file.seek(page * 8192 + 4096)
        old = file.read(count)
        file.seek(page * 8192 + 4096)
        file.write(bytes(byte ^ 0xff for byte in old))
        file.flush()
        os.fsync(file.fileno())
    server.start()


def story(cluster, coordinator):
    server = cluster.primary.server
    server.psql("create table orders (id int primary key, amount int);\n"
                "insert into orders select i, i % 97 from generate_series(1, 20000) i;\n"
                f"create index {INDEX} on orders (amount, id);\n"
                "create extension amcheck")
    want = server.psql(BY_INDEX)
    flip(server, INDEX, 3)
    cluster.wait_attached(1)
    is_status(coordinator.cli("snapshot", "--tag", "t1"), 0, "snapshot with a damaged index")
    return want


def indexes(verification):
    return [(i["database"], i["index"], i["rebuilt"]) for i in (verification or {})["indexes"]]


def test_found(cluster, coordinator):
    """The restore ends before it is complete; every node is held; REINDEX and resume end it."""
    done = coordinator.cli("restore", "t1", "--yes")
    if not is_status(done, "corrupt", "a damaged index"):
        coordinator.diagnose()
    like(done.err, rf"node db1: verification: .*index public.{INDEX} in database 'postgres' is "
         "damaged", "is named, with its node")
    like(done.err, rf"hint: .*REINDEX INDEX public.{INDEX}.*--reindex=auto.*cluster resume",
         "and what to do")
    journal = coordinator.journal()
    is_((journal["state"], journal["step"]), ("failed", "pulling"), "the whole has failed")
    is_(indexes(journal["verification"]), [("postgres", f"public.{INDEX}", False)],
        "the journal names it, not rebuilt")
    is_([(m.health(), journal["members"][m.name]["level"]) for m in cluster.members],
        [("failed", "recovered"), ("recovering", "recovered"), ("recovering", "recovered")],
        "nobody is complete: the primary has failed, the standbys are held")
    is_(coordinator.status()["status"], "failed", "and so has the cluster")
    cluster.wait_attached(2)
    is_status(coordinator.cli("resume"), "corrupt", "resume: it is still damaged")
    cluster.primary.server.psql(f"reindex index {INDEX}")
    is_status(coordinator.cli("resume"), 0, "rebuilt by hand, then resume")
    is_(coordinator.status()["status"], "ok", "now the cluster is well")


def test_rebuilt(box, cluster, coordinator, want):
    done = coordinator.cli("restore", "t1", "--yes", "--reindex=auto")
    if not is_status(done, 0, "--reindex=auto"):
        coordinator.diagnose()
    like(done.out, rf"db1: index public.{INDEX} in database 'postgres' was rebuilt \(.+\)",
         "says what was rebuilt, and why")
    journal = coordinator.journal()
    rebuilt = [("postgres", f"public.{INDEX}", True)]
    is_(indexes(journal["verification"]), rebuilt, "so does the journal")
    is_(indexes(journal["members"]["db1"]["verification"]), rebuilt, "under the node's name")
    body, = poll(lambda: told(box, "told", journal["id"]), 30, "the notification")
    is_((body["event"], body["state"], body["verification"]["ok"]),
        ("cluster_restore", "complete", True), "the notification: it is complete")
    is_(indexes(body["verification"]), rebuilt, "and names the index")
    cluster.wait_attached(3)
    cluster.wait_replayed()
    for member in cluster.members:
        is_(member.server.psql(BY_INDEX), want, f"{member.name}: the index gives the rows")
        is_(member.server.psql(f"select bt_index_check('{INDEX}'::regclass, true)"), "",
            f"{member.name}: amcheck finds nothing in it")
        is_(member.health(), "ok", f"{member.name} is well")


# --- another branch -------------------------------------------------------------------------------
def set_automatically(data, **settings):
    """In postgresql.auto.conf, which wins over all other files."""
    with open(os.path.join(data, "postgresql.auto.conf"), "a", encoding="utf-8") as file:
        for name, value in settings.items():
            quoted = str(value).replace("'", "''")
            file.write(f"{name} = '{quoted}'\n")


def promoted_elsewhere(box, member):
    """A copy of this standby that somebody promoted on another host, with commits of its own. Its
    new timeline has the number that the next one of the cluster will have."""
    path = box.join("elsewhere")
    member.server.stop()
    output("cp", "-a", member.data, path)
    member.server.start()
    copy = Server(box, path)
    set_automatically(path, port=copy.port, archive_mode="off", primary_conninfo="",
                      primary_slot_name="", restore_command="", synchronous_standby_names="")
    copy.start()
    copy.psql("select pg_promote()")
    copy.psql("create table of_another_branch as select generate_series(1, 1000) i;\ncheckpoint")
    at, timeline = lsn(copy.psql("select pg_current_wal_lsn()")), copy.timeline()
    copy.stop()
    return path, timeline, at


def put_in_place(member, primary, path):
    """Somebody puts the wrong copy where the standby was."""
    member.server.stop()
    shutil.rmtree(member.data)
    output("cp", "-a", path, member.data)
    set_automatically(member.data, port=member.server.port, primary_slot_name=member.name,
                      primary_conninfo=member.conninfo_to(primary))
    signal_file = os.path.join(member.data, "standby.signal")
    with open(signal_file, "w", encoding="ascii"):
        pass
    shutil.chown(signal_file, "postgres", "postgres")
    member.server.start()


def step(coordinator, path, state, **body):
    """One of the three steps; the journal of its end."""
    status, answer = coordinator.agent.api("POST", path, body)
    is_(status, 202, f"POST {path.split('/')[-1]}")
    journal = coordinator.agent.wait_job(answer["id"])
    if not is_(journal["state"], state, f"{path.split('/')[-1]}: {state}"):
        coordinator.diagnose()
    return journal


def test_another_branch(box, cluster, coordinator, want):
    standby, primary = cluster.standbys[1], cluster.primary
    path, timeline, at = promoted_elsewhere(box, standby)
    cluster.wait_attached(3)
    job = step(coordinator, "/cluster/restores", "prepared", snapshot="t1", reindex="auto")["id"]
    journal = step(coordinator, f"/restores/{job}/execute", "executed")
    is_(journal["fork"]["timeline"], timeline, "both branches are of the same timeline number")
    while lsn(primary.server.psql("select pg_current_wal_lsn()")) <= at:
        primary.server.psql("create table if not exists more (i int);\ninsert into more values (1)")
        primary.server.switch_wal()
    put_in_place(standby, primary, path)
    poll(lambda: standby.server.psql("select 1", check=False).stdout.strip() == "1", 60,
         "the wrong copy to answer")
    node = standby.agent.api("GET", "/node")[1]
    is_((node["role"], node["timeline"]), ("standby", timeline), "by its numbers it fits")
    journal = step(coordinator, f"/restores/{job}/verify", "failed")
    is_(journal["error"]["code"], "postgres", "the verification fails")
    like(journal["error"]["text"], rf"^node db3 has diverged: by its history timeline {timeline} "
         rf"left timeline 3 at .*, but this restore's left timeline 1 at {journal['fork']['lsn']}",
         "and names the node, and both forks")
    like(journal["error"]["hint"], "make it anew.*tidemark cluster", "and what to do")
    is_([journal["members"][m.name]["level"] for m in cluster.members], ["recovered"] * 3,
        "nobody is complete")
    is_(standby.server.psql("select pg_is_in_recovery()"), "t", "there is one primary")
    standby.server.stop("immediate")
    shutil.rmtree(standby.data)
    primary.server.psql(f"reindex index {INDEX}")  # or pg_basebackup refuses
    standby.copy_from(primary)
    cluster.wait_attached(timeline)
    is_status(coordinator.cli("resume"), 0, "made anew, then resume")
    cluster.wait_replayed()
    is_([m.server.psql(BY_INDEX) for m in cluster.members], [want] * 3, "the tag's rows everywhere")
    is_(coordinator.status()["status"], "ok", "the cluster is well")


def main():
    box = tm.need_root() or tm.Sandbox("cluster-verify")
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal")
    tm.need_tools("mkfs.xfs")
    cluster = Cluster(box, fs="xfs").start()
    coordinator = Coordinator(box, cluster, options=hooks(box, "told")).start()
    want = story(cluster, coordinator)
    test_found(cluster, coordinator)
    test_rebuilt(box, cluster, coordinator, want)
    test_another_branch(box, cluster, coordinator, want)
    cluster.stop()


run(main)
