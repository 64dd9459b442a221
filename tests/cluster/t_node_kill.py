#!/usr/bin/env python3
# check: build=asan timeout=400
"""kill -9 of job and agent where one node's part of a cluster restore is about to wait for the
others: nothing goes on by itself, nothing lifts a fence, the coordinator's next call does the step
again. Between: failures at a held node, which must not start the old server. And the repository
goes away while a standby replays: the standby waits. The target is an LSN in a segment that nobody
has archived: both nodes have some of it, and their fences push it at once."""
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "pg"))
from tm import *  # noqa: E402, F403
from t_restore import record_of  # noqa: E402
from cluster_checks import stopped_below  # noqa: E402
from cluster_lib import Cluster, break_repository, mend_repository  # noqa: E402
import tm  # noqa: E402

STEPS = {"fenced": "fenced", "configured": "configured", "recovered": "verifying"}


def killed_at(cluster, member, where, **body):
    """The job dies just before it is held, then its agent; the restarted agent leaves it alone."""
    member.agent.stop()
    member.agent.start(TIDEMARK_TEST_STOP=f"held-{where}")
    is_(member.execute(until=where, **body)[0], 202, f"{member.name}, {where}: execute")
    member.agent.wait_job(member.job)
    member.agent.kill()
    member.agent.start()
    status = member.status()
    is_((status["state"], status["step"]), ("interrupted", STEPS[where]),
        f"{member.name}, {where}: interrupted, and left alone")
    is_(member.server.running(), where == "recovered",
        f"{member.name}, {where}: the server {'runs' if where == 'recovered' else 'does not run'}")
    isnt(member.health(), "ok", f"{member.name}, {where}: health is not ok")
    cluster.until(where, [member], **body)
    member.restart_agent()
    is_(member.status()["state"], "held", f"{member.name}, {where}: held over an agent restart")
    is_(member.health(), "recovering" if where == "recovered" else "restoring",
        f"{member.name}, {where}: health says that it waits")


def failure_keeps_fence(cluster, member):
    """Held at fenced, the next run fails: the old server must not come back beside a restore."""
    def fails(what):
        member.execute(until="configured")
        status = member.agent.wait_job(member.job)
        is_((status["state"], status["step"]), ("failed", "fenced"), f"{what}: failed, fenced")
        ok(not member.server.running(), f"{what}: the fence stays")
        is_(member.health(), "partial", f"{what}: health says so")
        return status["error"]
    path = break_repository(cluster.repository)
    fails("no repository")
    mend_repository(path)
    holder = os.open(member.volumes[0].device, os.O_RDWR | os.O_EXCL)
    like(fails("device in use")["hint"], "fence stays.*tidemark cluster resume",
         "the hint says who goes on")
    os.close(holder)
    status, answer = member.post("/snapshots", tag="no")
    is_((status, answer.get("code")), (409, "busy"), "the node is still reserved")


def outage_while_replaying(cluster, member, fork):
    """The standby's server has just been started when the repository goes away."""
    member.agent.stop()
    member.agent.start(TIDEMARK_TEST_PAUSE="recovering-started")
    is_(member.execute(until="recovered", fork=fork)[0], 202, f"{member.name}: execute")

    pid = poll(lambda: stopped_below(member.state_dir), 60, "the job to stop itself")
    path = break_repository(cluster.repository)
    since = time.monotonic()
    os.kill(pid, signal.SIGCONT)
    poll(lambda: "nothing to do" if time.monotonic() - since > 8 else None, 20,
         "some tries of restore_command")
    ok(member.server.running(), "an outage does not end a standby")
    mend_repository(path)
    member.wait("held")


def main():
    box = need_root() or Sandbox("cluster-kill")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    cluster = Cluster(box, ("db1", "db2"), options={"tidemark": {"resume": "auto",
                                                                 "freeze_deadline": "60s"}}).start()
    primary, standby = cluster.members
    primary.server.pgbench_init(2)
    is_status(primary.cli("snapshot", "--tag", "t1"), 0, "snapshot")
    primary.server.psql("create table later as select i from generate_series(1, 100) i")
    target = primary.server.psql("select pg_current_wal_insert_lsn()")
    primary.server.psql("drop table pgbench_history, later")
    cluster.reserve(record_of(primary, "t1")["id"], target={"type": "lsn", "value": target})
    for member in cluster.members:
        killed_at(cluster, member, "fenced")
    failure_keeps_fence(cluster, standby)
    for member in cluster.members:
        killed_at(cluster, member, "configured")
    killed_at(cluster, primary, "recovered", slots=["db2"])
    fork = primary.status().get("fork")
    is_(fork and fork["timeline"], 2, "the fork is in the journal already")
    is_(primary.post(f"/restores/{primary.job}/verify", epoch=1)[0], 202, "the primary is verified")
    primary.wait("complete")
    outage_while_replaying(cluster, standby, fork)
    is_(standby.execute(verify=True)[0], 202, "the standby is verified")
    standby.wait("complete")
    cluster.wait_attached(2)
    primary.server.psql("create table synchronous (x int)")
    cluster.wait_replayed()
    for member in cluster.members:
        is_(member.server.psql("select (select count(*) from later), "
                               "(select count(*) from pgbench_history)"), "100|0",
            f"{member.name}: as it was at the target")
    is_([m.health() for m in cluster.members], ["ok", "ok"], "health is ok")
    cluster.stop()


run(main)
