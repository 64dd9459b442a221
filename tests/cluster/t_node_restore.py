#!/usr/bin/env python3
# check: build=asan timeout=400
"""One node's part of a cluster restore, on a primary and two standbys (one synchronous). This test
is the coordinator: reserve, fence, pull in parallel, recover the primary, slots, standbys, verify.
The archive holds full segments of the old timeline behind the fork; afterwards commits are
synchronous again, and the next failover is followed."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "pg"))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cli"))
from tm import *  # noqa: E402, F403
from t_prompt import QUESTION, Terminal  # noqa: E402
from t_restore import record_of  # noqa: E402
from cluster_lib import JOB, SECRET, Cluster  # noqa: E402
import tm  # noqa: E402

OTHER = "d" * 32


def story(cluster):
    """A tag, and behind it commits in two full archived segments."""
    server = cluster.primary.server
    server.psql("create table orders (id int primary key, amount int);\n"
                "insert into orders select i, i % 97 from generate_series(1, 5000) i")
    ledger = Ledger(server).create().start()
    ledger.wait(20)
    is_status(cluster.primary.cli("snapshot", "--tag", "t1"), 0, "snapshot of the primary")
    record = record_of(cluster.primary, "t1")
    for _ in range(2):
        ledger.wait(20)
        last = server.switch_wal()
    ledger.wait(20)
    server.psql("drop table orders")
    ledger.stop()
    cluster.primary.wait_archived(last)
    return record, ledger


def refusals(cluster, snapshot):
    """A reserved node does nothing else, and obeys nobody else."""
    primary = cluster.primary
    for what, path, body in (
            ("another cluster job", "/restores", {
                "snapshot": snapshot, "cluster": {"job": OTHER, "epoch": 9, "role": "primary"}}),
            ("a restore", "/restores", {"snapshot": snapshot}),
            ("the same again", "/restores", {
                "snapshot": snapshot, "cluster": {"job": JOB, "epoch": 1, "role": "primary"}}),
            ("a snapshot", "/snapshots", {"tag": "t2"})):
        status, answer = primary.post(path, **body)
        is_((status, answer.get("code")), (409, "busy"), f"reserved: {what} has to wait")
        like(answer.get("detail", ""), f"cluster restore {JOB}", f"reserved: {what} hears for whom")
    for what, path, body, code in (
            ("a call without epoch", "execute", {"until": "fenced"}, "refused"),
            ("resume by hand", "resume", {}, "refused"),
            ("an unknown hold", "execute", {"epoch": 1, "until": "x"}, "usage")):
        status, answer = primary.post(f"/restores/{primary.job}/{path}", **body)
        is_(answer.get("code"), code, f"{what} is {code}")
    status, answer = cluster.standbys[0].execute(until="recovered")
    is_(answer.get("code"), "usage", "a standby needs the fork to recover")
    for fork in ({"timeline": 2, "lsn": "x", "parent": 1}, {"timeline": 2, "lsn": "0/1"},
                 {"timeline": 1, "lsn": "0/1", "parent": 1}):
        status, answer = cluster.standbys[0].execute(until="recovered", fork=fork)
        is_((status, answer.get("code")), (400, "usage"), f"{fork} is no fork")


def wrong_requests(member, snapshot):
    part = {"job": JOB, "epoch": 1, "role": "primary"}
    for what, body in {
            "no epoch": {"cluster": {"job": JOB, "role": "primary"}},
            "epoch 0": {"cluster": {**part, "epoch": 0}},
            "a job that is no id": {"cluster": {**part, "job": "x"}},
            "an unknown role": {"cluster": {**part, "role": "leader"}},
            "a standby without primary": {"cluster": {**part, "role": "standby"}},
            "a primary with a primary": {"cluster": part, "primary_conninfo": "host=x"},
            "execute at once": {"cluster": part, "execute": True},
            "another action": {"cluster": part, "action": "pause"},
            "target snapshot": {"cluster": part, "target": {"type": "snapshot"}}}.items():
        status, answer = member.post("/restores", snapshot=snapshot, **body)
        if status == 202:
            answer = member.agent.wait_job(answer["id"])["error"]
        is_(answer.get("code"), "usage", f"{what}: refused")


def give_back(cluster, snapshot):
    """Cancelled before and after the fence: the old cluster runs again, and the nodes are free."""
    cluster.reserve(snapshot)
    for member in cluster.members:
        is_(member.agent.api("DELETE", f"/jobs/{member.job}")[0], 200,
            f"{member.name}: a reservation is cancelled")
    cluster.reserve(snapshot)
    cluster.until("fenced")
    is_([m.server.running() for m in cluster.members], [False] * 3, "fenced: no server runs")
    for member in cluster.members:
        is_(member.agent.api("DELETE", f"/jobs/{member.job}?epoch=1")[0], 202,
            f"{member.name}: a fence is cancelled")
        member.wait("cancelled")
        is_(member.health(), "ok", f"{member.name}: health is ok again")
    cluster.wait_attached(1)
    ok(True, "the old cluster runs again")


def question(member):
    """A person who cancels a part is asked: the other nodes may be further."""
    terminal = Terminal(member, "cancel", member.job).read(until=QUESTION)
    like(terminal.text, "part of a cluster restore: other nodes may be past",
         "cancel: the question")
    isnt(terminal.write("no\n").end(), 0, "cancel: no")
    is_(member.status()["state"], "held", "cancel: it is still held")


def second_coordinator(cluster):
    """It takes the job over with epoch 2: the first one is refused from then on."""
    primary = cluster.primary
    status, answer = primary.execute(epoch=2, until="configured")
    is_(status, 202, "a second coordinator goes on with a higher epoch")
    status, answer = primary.execute(epoch=1, until="configured")
    is_((status, answer.get("code")), (409, "refused"), "the first one is refused")
    like(answer.get("detail", ""), "epoch 1 .* is over.*epoch 2", "and hears why")
    is_(primary.agent.api("DELETE", f"/jobs/{primary.job}?epoch=1")[1].get("code"), "refused",
        "it cannot cancel either")
    primary.wait("held")


def wrong_forks(cluster, member, record, known):
    """A standby does not start before the archive has the fork, nor with another one."""
    tag = record["postgresql"]["tag_lsn"]
    rows = [("no segment", {"timeline": 2, "lsn": "0/F0000028", "parent": 1}, "refused"),
            ("another parent", {"timeline": 3, "lsn": tag, "parent": 2}, "refused"),
            ("before the snapshot", {"timeline": 2, "lsn": "0/28", "parent": 1}, "refused")
            ] if known else [
            ("not archived yet", {"timeline": 2, "lsn": tag, "parent": 1}, "missing")]
    for what, fork, code in rows:
        is_(member.execute(epoch=2, until="recovered", fork=fork)[0], 202, f"fork: {what}")
        is_(member.agent.wait_job(member.job)["error"]["code"], code, f"fork: {what}: {code}")
        ok(not member.server.running(), f"fork: {what}: the standby is not started")


def checks(cluster, ledger, record, fork):
    """The tag on every node, one history, synchronous commits."""
    primary = cluster.primary
    cluster.wait_attached(2)
    server = primary.server
    is_(server.timeline(), 2, "the primary is on timeline 2")
    is_(fork, {"timeline": 2, "lsn": record["postgresql"]["tag_lsn"], "parent": 1},
        "the fork is at the tag")
    is_(server.psql("select string_agg(slot_name || ' ' || active, ',' order by slot_name)"
                    " from pg_replication_slots"), "db2 true,db3 true", "its slots are in use")
    server.psql("insert into orders values (0, 0)")
    is_(server.psql("select string_agg(application_name || ' ' || sync_state, ','"
                    " order by application_name)"
                    " from pg_stat_replication"), "db2 sync,db3 async", "db2 is synchronous again")
    cluster.wait_replayed()
    least, most = ledger.bounds(record["postgresql"]["tag_lsn"])
    for member in cluster.members:
        count, last = ledger.present(member.server)
        ok(count == last and least <= last <= most,
           f"{member.name}: commits 1 … {last}, the tag covers {least} to {most}")
        is_(member.server.psql("select count(*) from orders"), "5001",
            f"{member.name}: the dropped table is back")
        with open(member.data + "/postgresql.auto.conf", encoding="utf-8") as file:
            unlike(file.read(), "timeline-limit|last-timeline|tidemark restore begin|^include",
                   f"{member.name}: no limit of the restore is left")


def test_secret(member):
    """The password of primary_conninfo: only in the request, which is root's, and the settings."""
    done = output("grep", "-rl", SECRET, member.state_dir, member.agent.log)
    is_({os.path.basename(path) for path in done.split()}, {"request.json"},
        f"{member.name}: the password is in the request alone")
    text = str(member.agent.api("GET", "/jobs")) + str(member.agent.api("GET", "/node"))
    unlike(text, SECRET, f"{member.name}: nobody is told it")


def next_failover(cluster):
    """db1 is lost, db2 is promoted, db3 gets another primary_conninfo and follows."""
    old, new, other = cluster.members
    old.server.stop("immediate")
    new.server.psql("select pg_promote()")
    new.server.wait_ready()
    new.server.psql("alter system set synchronous_standby_names = ''")
    new.server.reload()
    is_(new.server.timeline(), 3, "db2 leads on timeline 3")
    new.server.psql("select pg_create_physical_replication_slot('db3')")
    other.server.psql(f"alter system set primary_conninfo = '{other.conninfo_to(new)}'")
    other.server.reload()
    poll(lambda: other.streams(3), 60, "db3 to follow db2 on timeline 3")
    new.server.psql("create table after_failover (x int)")
    poll(lambda: other.server.psql("select to_regclass('after_failover') is not null") == "t", 30,
         "db3 to replay")
    ok(True, "the other standby follows the next failover")


def main():
    box = need_root() or Sandbox("cluster-node")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    cluster = Cluster(box).start()
    record, ledger = story(cluster)
    snapshot = record["id"]
    wrong_requests(cluster.primary, snapshot)
    give_back(cluster, snapshot)
    cluster.reserve(snapshot)
    refusals(cluster, snapshot)
    cluster.until("fenced")
    is_([m.health() for m in cluster.members], ["restoring"] * 3, "held: health is restoring")
    done = cluster.primary.cli("status")
    is_status(done, "busy", "tidemark status: busy")
    like(done.err, f"step fenced, as a part of cluster restore {JOB}", "and says for whom")
    done = cluster.primary.cli("restore", "--resume", "--yes")
    isnt(done.status, 0, "restore --resume finds nothing to resume")
    unlike(done.err, cluster.primary.job, "and not this part")
    is_status(cluster.primary.cli("jobs", "--follow", cluster.primary.job), 0,
              "following it ends well")
    question(cluster.primary)
    second_coordinator(cluster)
    cluster.until("configured", cluster.standbys, epoch=2)
    isnt(cluster.primary.server.start(check=False).returncode, 0,
         "held at configured: nobody can start the server")
    wrong_forks(cluster, cluster.standbys[0], record, known=False)
    fork = cluster.recover_primary(epoch=2)
    wrong_forks(cluster, cluster.standbys[0], record, known=True)
    cluster.until("recovered", cluster.standbys, epoch=2, fork=fork)
    cluster.complete(epoch=2)
    checks(cluster, ledger, record, fork)
    test_secret(cluster.standbys[0])
    is_status(cluster.primary.cli("snapshot", "--tag", "t2"), 0, "the node is free for a snapshot")
    next_failover(cluster)
    cluster.stop()


run(main)
