#!/usr/bin/env python3
# check: build=asan campaign=release timeout=500
"""The rules of a cluster restore: the record's topology and what `tidemark show` says of it; slots
that are made again or lost; settings too low for a standby, named before anything is touched;
commits that wait for nobody's standby; WAL of the old branch in reach of a standby; the next
failover; nodes left out; other hosts; a repository in an object store."""
import json
import os
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE]
from tm import *  # noqa: E402, F403
from cluster_lib import Cluster, Coordinator, Member  # noqa: E402
from s3_node import Place  # noqa: E402
import s3  # noqa: E402
import schemas  # noqa: E402
from server import lsn  # noqa: E402
import tm  # noqa: E402

ROWS = "select count(*), coalesce(sum(id), 0) from orders"
NEVER = "nobody_has_this_name"


def good(done, coordinator, what):
    if not is_status(done, 0, what):
        coordinator.diagnose()
    return done


# --- the record -----------------------------------------------------------------------------------
def test_show(cluster):
    done = cluster.primary.cli("show", "t1", "--json")
    record = json.loads(done.out)
    db1, db2, db3 = record.get("record", record)["topology"]["members"]
    is_([(m["name"], m["role"], m["timeline"], m["server"]) for m in (db1, db2, db3)],
        [("db1", "primary", 1, "running"), ("db2", "standby", 1, "running"),
         ("db3", "standby", 1, "running")], "topology: nodes, roles, timelines")
    is_([lsn(m["lsn"]) > 0 for m in (db1, db2, db3)], [True] * 3, "topology: LSNs")
    is_([(r["application_name"], r["sync_state"], r["state"]) for r in db1["replication"]],
        [("db2", "async", "streaming"), ("db3", "async", "streaming")],
        "topology: application names and sync state")
    is_([(s["name"], s["type"], s.get("plugin"), s.get("database")) for s in db1["slots"]],
        [("db2", "physical", None, None), ("db3", "physical", None, None),
         ("receivewal", "physical", None, None), ("sub1", "logical", "pgoutput", "app")],
        "topology: slots")
    is_([m["primary_slot"] for m in (db1, db2, db3)], ["", "db2", "db3"], "topology: whose slots")
    is_([[v["name"] for v in m["volumes"]] for m in (db1, db2, db3)], [["pgdata"]] * 3,
        "topology: volumes")
    is_((db1["settings"]["synchronous_standby_names"], db1["settings"]["max_wal_senders"],
         db2["settings"]["max_connections"]), (NEVER, "10", "100"), "topology: settings")
    text = cluster.primary.cli("show", "t1").out
    for what in ("name: +db3", "role: +standby", "sync_state: +async", "application_name: +db2",
                 "plugin: +pgoutput", "database: +app", "timeline: +1", "lsn: +0/",
                 "max_wal_senders", "max_locks_per_transaction", "mount: +/",
                 f"synchronous_standby_names: +{NEVER}", "fs_type: +ext4"):
        like(text, what, f"for people: {what}")


# --- the plan -------------------------------------------------------------------------------------
def test_plan(cluster, coordinator):
    """A dry run names what is lost, and reserves nothing."""
    done = good(coordinator.cli("restore", "t1", "--dry-run"), coordinator, "--dry-run")
    for line in ("primary +db1", "standby +db3", r"slot +db2 \(physical, on db1\): made again",
                 r"slot +receivewal \(physical, on db1\): made again",
                 r"slot +sub1 \(logical, pgoutput, database app, on db1\): lost",
                 "warning: commits on the new primary db1 will wait: its synchronous_standby_names "
                 rf"= '{NEVER}' wants 1 standby, .* 0 of them attach \(db2 as db2, db3 as db3\)"):
        like(done.out, f"(?m)^ +{line}", f"the plan: {line}")
    job = json.loads(coordinator.cli("restore", "t1", "--dry-run", "--json").out)
    is_((schemas.problems("job", job), job["dry_run"]), ([], True), "as JSON it is a job")
    plan = job["plan"]
    is_({s["name"]: s["recreated"] for s in plan["slots"]},
        {"db2": True, "db3": True, "receivewal": True, "sub1": False}, "the same as JSON")
    is_([(m.health(), m.agent.api("GET", "/node")[1]["reservation"]) for m in cluster.members],
        [("ok", None)] * 3, "no node was reserved")
    journal = coordinator.journal()
    is_((journal["state"], journal["dry_run"]), ("complete", True), "the job is over")
    is_status(coordinator.cli("resume", journal["id"]), "refused", "and cannot be gone on with")


def test_settings(cluster, coordinator):
    """What a node keeps of its own configuration: lower than the snapshot's, or than what its
    primary will have by now."""
    primary, standby, other = cluster.members
    for member, was in ((standby, (80, 4, 7)), (other, (90, 8, 10))):
        member.server.configure(max_connections=was[0], max_worker_processes=was[1],
                                max_wal_senders=was[2])
    for args in (("--dry-run",), ("--yes",)):
        done = coordinator.cli("restore", "t1", *args)
        is_status(done, "refused", f"settings lower than the snapshot's, {args[0]}")
        like(done.err, "node db2: max_connections = 80 here is lower than the snapshot's 100, "
             "max_worker_processes = 4 here is lower than the snapshot's 8, max_wal_senders = 7 "
             "here is lower than the snapshot's 10|node db3: max_connections = 90 .* 100",
             "node, settings, both values")
        like(done.err, "hint: .*raise it in this node's configuration", "and what to do")
    for member in (standby, other):
        member.server.configure(max_connections=100, max_worker_processes=8, max_wal_senders=10)
    primary.server.configure(max_connections=130, max_locks_per_transaction=80,
                             max_prepared_transactions=5)
    other.server.configure(max_connections=130)
    done = coordinator.cli("restore", "t1", "--yes")
    is_status(done, "refused", "settings lower than the primary's by now")
    for text in ("node db2: max_connections = 100 is lower than 130 on the primary db1",
                 "node db2: max_prepared_transactions = 0 is lower than 5",
                 "node db3: max_locks_per_transaction = 64 is lower than 80"):
        like(done.err, text, text)
    unlike(done.err, "node db3: max_connections", "what is high enough is not named")
    is_([m.health() for m in cluster.members], ["ok"] * 3, "every node was given back")
    is_([m.server.running() for m in cluster.members], [True] * 3, "and runs")
    primary.server.configure(max_connections=100, max_locks_per_transaction=64,
                             max_prepared_transactions=0)
    other.server.configure(max_connections=100)


# --- the old branch -------------------------------------------------------------------------------
def old_branch(box, cluster):
    """Commits behind the tag in full segments, in the archive and kept aside."""
    server, aside = cluster.primary.server, box.mkdir("aside", 0o755)
    names = []
    for _ in range(2):
        server.psql("set synchronous_commit = local;\n"
                    "insert into orders select i from generate_series(100001, 100500) i")
        names.append(server.switch_wal())
    for name in names:
        shutil.copy2(os.path.join(server.data, "pg_wal", name), aside)
        shutil.chown(os.path.join(aside, name), "postgres", "postgres")
    cluster.primary.wait_archived(names[-1])
    return aside


def interrupted(cluster, coordinator, aside):
    """The coordinator dies when the blocks are there; somebody copies segments of the old branch
    into the standbys' pg_wal; the restore goes on."""
    coordinator.restart(TIDEMARK_TEST_STOP="cluster-configured")
    isnt(coordinator.cli("restore", "t1", "--yes").status, 0, "the coordinator dies on its way")
    for member in cluster.members:
        poll(lambda m=member: m.agent.api("GET", "/jobs")[1]["jobs"][-1]["state"] == "held", 120,
             f"{member.name} to be held")
    for member in cluster.standbys:
        for name in os.listdir(aside):
            output("cp", "-a", os.path.join(aside, name), member.data + "/pg_wal/")


def go_on(coordinator):
    """Until its newest job has ended."""
    coordinator.restart()
    return poll(lambda: None if coordinator.journal()["running"] else coordinator.journal(), 180,
                "the restore's end")


def test_restored(cluster, coordinator, rows):
    server = cluster.primary.server
    cluster.wait_attached(2)
    cluster.wait_replayed()
    for member in cluster.members:
        is_(member.server.psql(ROWS), rows, f"{member.name}: the tag's rows, none from behind it")
    is_([m.server.psql("show synchronous_standby_names") for m in cluster.members], [NEVER, "", ""],
        "synchronous_standby_names is what it was on each node")
    is_(server.psql("select slot_name, slot_type, active, restart_lsn is null from"
                    " pg_replication_slots order by 1").splitlines(),
        ["db2|physical|t|f", "db3|physical|t|f", "receivewal|physical|f|t"],
        "physical slots are there; one that nobody uses keeps no WAL yet")
    server.psql("alter system set synchronous_standby_names = ''")
    server.reload()
    is_(coordinator.status()["status"], "ok", "the cluster is well")


def test_next_failover(cluster):
    """Nothing pins a timeline: db2 is promoted, the others follow."""
    for member in cluster.members:
        got = member.server.psql("select name, setting from pg_file_settings where"
                                 " name like 'recovery%'")
        is_(got, "" if member is cluster.primary else "recovery_target_timeline|latest",
            f"{member.name}: no recovery target and no timeline is left in its files")
        with open(member.data + "/postgresql.auto.conf", encoding="utf-8") as file:
            unlike(file.read(), r"(?m)^(recovery_target(?!_timeline)|include|.*timeline-limit)",
                   f"{member.name}: nothing of it is in its files")
    old, new, other = cluster.members
    old.server.stop()
    new.server.psql("alter system set synchronous_standby_names = ''")
    new.server.reload()
    new.server.psql("select pg_promote()")
    for member in (old, other):
        new.server.psql(f"select pg_create_physical_replication_slot('{member.name}')")
    other.server.psql(f"alter system set primary_conninfo = '{other.conninfo_to(new)}'")
    other.server.reload()
    old.server.configure(primary_conninfo=old.conninfo_to(new), primary_slot_name="db1")
    path = old.data + "/standby.signal"
    with open(path, "w", encoding="ascii"):
        pass
    shutil.chown(path, "postgres", "postgres")
    old.server.start()
    for member in (old, other):
        poll(lambda m=member: m.streams(3), 60, f"{member.name} to follow db2 on timeline 3")
    new.server.psql("insert into orders values (0)")
    for member in (old, other):
        poll(lambda m=member: m.server.psql("select count(*) from orders where id = 0") == "1", 60,
             f"{member.name} to replay")
    ok(True, "db2 leads on timeline 3, and the others follow it")


# --- fewer nodes, other hosts ---------------------------------------------------------------------
def test_left_out(cluster, coordinator, rows):
    """db2 leads by now: it cannot be left out while it runs."""
    old, leader, other = cluster.members
    done = coordinator.cli("restore", "t1", "--yes", "--without-node=db2")
    is_status(done, "refused", "a primary that is left out")
    like(done.err, "member db2 is left out, and its server is a primary", "is named")
    is_([m.health() for m in cluster.members], ["ok"] * 3, "every node was given back")
    leader.server.stop()
    done = coordinator.cli("restore", "t1", "--yes", "--without-node=db2", "--without-node=db3")
    good(done, coordinator, "a restore of one node of three")
    for line in (r"slot +db3 \(physical, on db1\): lost",
                 r"warning: member db2 is left as it is \(its server is down\)",
                 r"warning: member db3 is left as it is \(a standby\)"):
        like(done.out, f"(?m)^ +{line}", f"the plan: {line}")
    like(done.out, "is complete: timeline 4, 1 nodes", "and the end")
    is_(old.server.psql(ROWS), rows, "db1 has the tag's rows")
    is_(old.server.psql("select string_agg(slot_name, ',') from pg_replication_slots"),
        "receivewal", "and no slot of a node that is left out")
    is_(other.server.psql("select count(*) from orders where id = 0"), "1", "db3 is as it was")


def test_other_hosts(box, cluster, rows):
    """Two hosts with older copies of the cluster take the places of db1 and db3."""
    there = Cluster.__new__(Cluster)
    there.box, there.repository = box, cluster.repository
    there.members = [Member(box, name, cluster.repository, 352 << 20, None)
                     for name in ("dr1", "dr2")]
    there.primary, there.standbys = there.members[0], there.members[1:]
    for member in there.members:
        member.copy_from(cluster.primary)
        member.server.stop()
        member.agent.start()
    cluster.stop()
    conninfo = there.primary.conninfo_to(there.primary).replace("=dr1", "=%n")
    coordinator = Coordinator(box, there, "dr", {
        "coordinator": {"primary_conninfo": conninfo}}).start()
    done = coordinator.cli("restore", "t1", "--yes")
    is_status(done, "missing", "recorded nodes without a place")
    like(done.err, "--map=db1=MEMBER", "and the way out")
    args = ("--map=db1=dr1", "--map=db3=dr2", "--without-node=db2")
    done = good(coordinator.cli("restore", "t1", "--yes", *args), coordinator, "onto other hosts")
    like(done.out, r"(?s)primary +dr1 \(in the place of db1\)"
         r".*standby +dr2 \(in the place of db3\)", "the plan says so")
    there.wait_attached(5)
    there.wait_replayed()
    is_([m.server.psql(ROWS) for m in there.members], [rows] * 2, "they have the tag's rows")
    is_(there.primary.server.psql("select string_agg(slot_name || active, ',' order by 1) from"
                                  " pg_replication_slots where active"), "db3true",
        "dr2 uses the slot of the node whose place it took")
    is_(coordinator.status()["status"], "ok", "the cluster there is well")
    coordinator.agent.stop()
    there.stop()


def test_slips(box, cluster, coordinator):
    """Names that nobody has, and a coordinator of another cluster."""
    for option, name in (("--without-node=db9", "db9"), ("--map=db8=db3", "db8")):
        done = coordinator.cli("restore", "t1", "--dry-run", option)
        is_status(done, "usage", f"{option}: a node that the snapshot does not have")
        like(done.err, f"no node '{name}'\nhint: .*db1 db2 db3", "and which it has")
    other = Coordinator(box, cluster, "other", {"tidemark": {"cluster": "prod"}}).start()
    is_([m["status"] for m in other.status()["members"]], ["unreachable"] * 3,
        "a coordinator of another cluster does not see these nodes")
    done = other.cli("snapshot", "--tag", "p1")
    isnt(done.status, 0, "nor does it take a snapshot of them")
    like(other.cli("status").out + done.err, "cluster = main, this coordinator prod",
         "and says why")
    other.agent.stop()


def test_object_store(box):
    reason = s3.missing("ceph")
    if reason:
        skip(f"a cluster whose repository is a bucket: {reason}")
        return
    place = Place(box, s3.ceph(box), "cluster")
    cluster = Cluster(box, ("s3db1", "s3db2"), repository=place.url, options=place.options())
    cluster.start()
    coordinator = Coordinator(box, cluster, "s3", place.options()).start()
    server = cluster.primary.server
    server.psql("create table orders as select generate_series(1, 20000) id")
    rows = server.psql(ROWS)
    good(coordinator.cli("snapshot", "--tag", "t1"), coordinator, "snapshot into a bucket")
    server.psql("drop table orders")
    cluster.primary.wait_archived(server.switch_wal())
    good(coordinator.cli("restore", "t1", "--yes"), coordinator, "restore from a bucket")
    cluster.wait_attached(2)
    cluster.wait_replayed()
    is_([m.server.psql(ROWS) for m in cluster.members], [rows] * 2, "both have the tag's rows")
    cluster.stop()


def story(cluster, coordinator):
    server = cluster.primary.server
    server.psql("create table orders as select generate_series(1, 20000) id;\n"
                "create database app")
    server.psql("select pg_create_logical_replication_slot('sub1', 'pgoutput')", db="app")
    server.psql("select pg_create_physical_replication_slot('receivewal')")
    cluster.wait_replayed()
    rows = server.psql(ROWS)
    server.psql(f"alter system set synchronous_standby_names = '{NEVER}'")
    server.reload()
    good(coordinator.cli("snapshot", "--tag", "t1"), coordinator,
         "snapshot while commits would wait")
    return rows


def main():
    box = tm.need_root() or tm.Sandbox("cluster-rules")
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal")
    cluster = Cluster(box, wal_level="logical").start()
    coordinator = Coordinator(box, cluster).start()
    rows = story(cluster, coordinator)
    test_show(cluster)
    test_plan(cluster, coordinator)
    test_slips(box, cluster, coordinator)
    test_settings(cluster, coordinator)
    aside = old_branch(box, cluster)
    interrupted(cluster, coordinator, aside)
    journal = go_on(coordinator)
    is_(journal["state"], "complete", "the restore ends, although commits wait for nobody")
    test_restored(cluster, coordinator, rows)
    test_next_failover(cluster)
    test_left_out(cluster, coordinator, rows)
    test_other_hosts(box, cluster, rows)
    test_object_store(box)


run(main)
