#!/usr/bin/env python3
# check: build=release campaign=release,asan timeout=300
"""A cluster restore without the old primary, whose host is off. It comes back as a primary of the
old branch, learns from the repository that the cluster went on without it, and Tidemark starts no
server on its data: not by a restore of the node, not by lifting a fence. One command makes it a
standby. Then the same with a standby that was up all the time."""
import os
import signal
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE]
from tm import *  # noqa: E402, F403
from certificates import Authority  # noqa: E402
from cluster_checks import ROWS, stopped_below  # noqa: E402
from cluster_lib import Cluster, Coordinator  # noqa: E402
import tm  # noqa: E402


def diverges(coordinator, node, what):
    poll(lambda: node.health() == "diverged", 60, f"{what}: its health to be diverged")
    health = node.agent.api("GET", "/health")[1]
    like(health["cause"], "went back to 't1' without this node.*primary db2", f"{what}: the cause")
    like(health["hint"], f"tidemark cluster rejoin {node.name}", f"{what}: the way out")
    status = coordinator.status()
    is_({m["name"]: m["status"] for m in status["members"]}, {"db1": "diverged", "db2": "ok"},
        f"{what}: the coordinator sees it, too")
    is_(status["status"], "diverged", f"{what}: and the cluster is no better")
    node.restart_agent()
    is_(node.health(), "diverged", f"{what}: also after a restart of its agent")


def nobody_else(node):
    """The standby followed this host, which therefore is the only one that the snapshot names: that
    it does not run says nothing about a standby that was promoted."""
    own = f"{node.server.socket}:{node.server.port}"
    done = node.cli("restore", "t1", "--dry-run")
    is_status(done, 0, "only its own address is known: planned")
    like(done.out, rf"(?m)^  primary  not asked: .*named: {own} \(this server\)$",
         "only its own address is known: which is no answer")
    like(done.out, "warning +this server had standbys .*promoted since is not asked.*none of them",
         "only its own address is known: the plan says that it had standbys")


def stays_down(coordinator, node):
    """Given up after its fence: the server that was running before does not run again."""
    node.restart_agent(TIDEMARK_TEST_PAUSE="fenced-stopped")
    thread = threading.Thread(target=coordinator.cli, args=("rejoin", node.name, "--yes"))
    thread.start()
    pid = poll(lambda: stopped_below(node.state_dir), 120, "the fence to have stopped the server")
    timer = threading.Timer(1, os.kill, (pid, signal.SIGCONT))
    timer.start()
    is_status(coordinator.cli("abort"), 0, "a rejoin is given up")
    thread.join()
    timer.join()
    node.restart_agent()
    ok(not node.server.running(), "the fence is lifted, the old primary stays down")
    is_(node.health(), "diverged", "and it is diverged as before")


def rejoins(coordinator, node, primary, timeline, rows, what, resume=False):
    done = coordinator.cli(*(("resume",) if resume else ("rejoin", node.name, "--yes")))
    if not is_status(done, 0, f"{what}: one command makes it a standby"):
        tm.diag(done.err)
        coordinator.diagnose()
    poll(lambda: node.streams(timeline), 60, f"{what}: it to stream")
    primary.server.psql("create table if not exists later (x int)")
    poll(lambda: node.server.psql("select to_regclass('later')") == "later", 60,
         f"{what}: it to replay")
    is_(node.server.psql(ROWS), rows, f"{what}: it has the cluster's rows")
    is_((node.health(), coordinator.status()["status"]), ("ok", "ok"), f"{what}: all is well")
    ok(not os.path.exists(f"{node.state_dir}/passed.json"), f"{what}: the gate is gone")


def not_let_in(coordinator, node, primary):
    """The primary does not let it in, and the plan could not know."""
    node.restart_agent(TIDEMARK_TEST_PAUSE="pulling")
    results, hba = [], f"{primary.data}/pg_hba.conf"
    thread = threading.Thread(
        target=lambda: results.append(coordinator.cli("rejoin", node.name, "--yes")))
    thread.start()
    pid = poll(lambda: stopped_below(node.state_dir), 120, "its pull to stop itself")
    with open(hba, encoding="utf-8") as file:
        lines = file.read()
    with open(hba, "w", encoding="utf-8") as file:
        file.write("local replication all reject\n" + lines)
    primary.server.reload()
    os.kill(pid, signal.SIGCONT)
    thread.join()
    is_status(results[0], "postgres", "not let in: a standby that does not stream did not rejoin")
    like(results[0].err, "(?s)does not stream from its primary.*hint: .*pg_hba.conf.*"
         "cluster resume", "not let in: and what to do")
    isnt(node.health(), "ok", "not let in: the node is not well")
    with open(hba, "w", encoding="utf-8") as file:
        file.write(lines)
    primary.server.reload()
    node.restart_agent()


def main():
    box = tm.need_root() or tm.Sandbox("left-out")
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal")
    cluster = Cluster(box, ("db1", "db2"), options={"postgresql": {"start_timeout": "8s"}})
    authority = Authority(box.mkdir("ca"))
    for member in cluster.members:
        member.open_door(authority, "127.0.0.1")
    cluster.start()
    old, new = cluster.members
    conninfo = new.conninfo_to(new).replace(f"application_name={new.name}", "application_name=%n")
    coordinator = Coordinator(box, cluster, "coordinator", {
        "tls": authority.issue("coordinator", "coordinator").options,
        "coordinator": {"primary_conninfo": conninfo}}).start()
    old.server.psql("create table orders as select i as id, repeat(md5(i::text), 20) as pad"
                    " from generate_series(1, 5000) i")
    rows = old.server.psql(ROWS)
    is_status(coordinator.cli("snapshot", "--tag", "t1"), 0, "cluster snapshot")
    old.server.psql("insert into orders select 1000000, 'after'")
    old.server.stop("immediate")
    nobody_else(old)
    old.agent.stop()
    without = ("restore", "t1", "--yes", "--without-node=db1", "--primary=db2")
    is_status(coordinator.cli(*without), 0, "the cluster is restored without the old primary")
    new.server.psql("alter system reset synchronous_standby_names")
    new.server.reload()
    old.server.start()
    is_(old.server.psql("select pg_is_in_recovery()"), "f", "the old primary comes back as one")
    old.agent.start()
    diverges(coordinator, old, "an old primary")
    is_status(old.cli("restore", "t1", "--yes"), "refused", "it is not restored as a primary")
    stays_down(coordinator, old)
    like(coordinator.cli("rejoin", "db1", "--dry-run").out, "(?s)^plan: make db1 of cluster main a "
         "standby of db2 again, on timeline 2\n  from     t1 .*standby  db1: .*write    pgdata: .*"
         "follows  .*tried: the primary answers", "the plan of a rejoin")
    not_let_in(coordinator, old, new)
    rejoins(coordinator, old, new, 2, rows, "an old primary that is let in", resume=True)
    is_status(coordinator.cli(*without), 0, "the same without a standby that runs")
    old.restart_agent()
    diverges(coordinator, old, "a standby")
    rejoins(coordinator, old, new, 3, rows, "a standby")
    cluster.stop()


run(main)
