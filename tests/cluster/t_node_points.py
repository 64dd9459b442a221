#!/usr/bin/env python3
# check: build=asan campaign=release timeout=400
"""A standby's part of a cluster restore is killed at every point (kill -9 of the job, then of its
server and its agent): the coordinator's call, made again, ends well, and the standby follows its
primary with the tag's rows and nothing from behind the fork. A sample in `make check`, all points
in `make campaign`."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "pg"))
from tm import *  # noqa: E402, F403
from t_restore import record_of  # noqa: E402
from cluster_lib import Cluster  # noqa: E402
import tm  # noqa: E402

POINTS = {"fenced": ("fenced", "fenced-stopped", "fenced-closed", "fenced-pushed"),
          "configured": ("marked", "pulling", "pulling-ack", "written", "configured",
                         "configured-files", "configured-control"),
          "recovered": ("recovering", "recovering-started", "recovering-reached",
                        "standby-settings", "standby-reloaded")}
LATE = POINTS["recovered"]


def kill_server_of(member):
    """kill -9 of the postmaster. PostgreSQL takes one that is not reaped yet for running."""
    pid = member.server.pid()
    kill_pid(pid)
    poll(lambda: not os.path.exists(f"/proc/{pid}"), 120, "the killed server to be reaped")


def run_part(member, point, kill_server, **body):
    """Every hold in turn; the call that reaches the point dies, and is made again."""
    for where, points in POINTS.items():
        more = body if where == "recovered" else {}
        if point in points:
            member.agent.stop()
            member.agent.start(TIDEMARK_TEST_STOP=point)
            is_(member.execute(until=where, **more)[0], 202, f"{point}: execute")
            status = member.agent.wait_job(member.job)
            is_(status["state"], "interrupted", f"{point}: killed")
            if kill_server and member.server.running():
                kill_server_of(member)
            member.restart_agent()
            is_(member.status()["state"], "interrupted", f"{point}: left alone")
        is_(member.execute(until=where, **more)[0], 202, f"{point}: until {where}")
        member.wait("held")


def one_point(cluster, member, snapshot, fork, point, kill_server):
    what = point + (", server killed" if kill_server else "")
    tm.diag(what)
    job = os.urandom(16).hex()
    is_(member.reserve(snapshot, "standby", cluster.primary, job=job)[0], 202, f"{what}: prepare")
    member.wait("prepared")
    run_part(member, point, kill_server, fork=fork)
    is_(member.execute(verify=True)[0], 202, f"{what}: verify")
    member.wait("complete")
    cluster.wait_attached(fork["timeline"])
    cluster.wait_replayed()
    is_(member.server.psql("select count(*), sum(amount) from orders"),
        f"5000|{sum(i % 97 for i in range(1, 5001))}", f"{what}: the tag's rows")
    with open(member.data + "/postgresql.auto.conf", encoding="utf-8") as file:
        text = file.read()
    unlike(text, "^include|timeline-limit|tidemark restore begin", f"{what}: no limit is left")
    is_(text.count("\nprimary_conninfo"), 1, f"{what}: one primary_conninfo")
    is_(member.health(), "ok", f"{what}: health is ok")


def main():
    box = need_root() or Sandbox("cluster-points")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    cluster = Cluster(box, ("db1", "db2")).start()
    primary, standby = cluster.members
    server = primary.server
    server.psql("create table orders (id int primary key, amount int);\n"
                "insert into orders select i, i % 97 from generate_series(1, 5000) i")
    is_status(primary.cli("snapshot", "--tag", "t1"), 0, "snapshot")
    server.psql("insert into orders select i, i from generate_series(5001, 9000) i")
    primary.wait_archived(server.switch_wal())
    snapshot = record_of(primary, "t1")["id"]
    cluster.reserve(snapshot)
    cluster.until("fenced")
    cluster.until("configured")
    fork = cluster.recover()
    cluster.complete()
    pairs = [(point, kill) for points in POINTS.values() for point in points
             for kill in ((False, True) if point in LATE else (False,))]
    wanted = os.environ.get("TIDEMARK_POINTS")
    for point, kill in sample(pairs, 4) if not wanted else pairs:
        if not wanted or point in wanted.split(","):
            one_point(cluster, standby, snapshot, fork, point, kill)
    cluster.stop()


run(main)
