#!/usr/bin/env python3
# check: build=asan campaign=release timeout=500
"""kill -9 in every wave of a cluster restore: of the coordinator's job and daemon, of each node's
job, agent and PostgreSQL. What a service manager starts again is started again; then `cluster
resume`, where it is needed, ends well. At no time do two servers accept writes, and no standby gets
onto a dead branch. All in `make campaign`, a sample in `make check`."""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE]
from tm import *  # noqa: E402, F403
from cluster_lib import Cluster, Coordinator  # noqa: E402
from cluster_checks import (Watch, kill_server, later, named_states,  # noqa: E402
                            tagged)
from waves import WAVES, Held, chosen, rest, settle  # noqa: E402
import tm  # noqa: E402

WITH_SERVERS = ("reserve", "fence", "recovery", "attach", "verify")
SURE = (("verify", "db1's server"),)  # nobody but the resume starts it again


def kill_job(member, what):
    pids = [pid for pid in processes_below(f"{member.state_dir}/jobs")]
    if not pids:
        tm.diag(f"{what}: no job of {member.name} runs")
    for pid in pids:
        kill_pid(pid)


def kill_coordinator_job(_, coordinator, what):
    coordinator.kill_job()
    coordinator.restart()


def kill_daemon(_, coordinator, what):
    coordinator.restart()


def of_node(index, part):
    def kill(cluster, _, what):
        member = cluster.members[index]
        if part == "server" and not member.server.running():
            tm.diag(f"{what}: it does not run")
        elif part == "server":
            kill_server(member)
        elif part == "job":
            kill_job(member, what)
        member.restart_agent()
    return kill


def victims(cluster):
    """name: (index of its node or None, what kills it)."""
    found = {"coordinator's job": (None, kill_coordinator_job),
             "coordinator": (None, kill_daemon)}
    for index, member in enumerate(cluster.members):
        for part in ("job", "agent", "server"):
            found[f"{member.name}'s {part}"] = (index, of_node(index, part))
    return found


def killed(cluster, coordinator, rows, wave, victim):
    what = f"{wave}, kill -9 of {victim}"
    tm.diag(what)
    index, kill = victims(cluster)[victim]
    timeline = cluster.primary.server.timeline()
    later(cluster)
    runs_still = wave == "fence" and victim.endswith("server")
    held = Held(cluster, coordinator, "fenced" if runs_still else wave,
                None if index is None else cluster.members[index])
    kill(cluster, coordinator, what)
    held.member.restart_agent()  # no other job stops itself
    held.go_on()
    held.wait()
    rest(coordinator)
    named_states(cluster, what)
    settle(cluster, coordinator, timeline, rows, what)


def main():
    box = need_root() or Sandbox("kills")
    need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal")
    cluster = Cluster(box, options={"postgresql": {"start_timeout": "30s"}}).start()
    coordinator = Coordinator(box, cluster).start()
    rows = tagged(cluster, coordinator)
    with Watch(cluster):
        pairs = [(wave, victim) for wave in WAVES for victim in victims(cluster)
                 if wave in WITH_SERVERS or not victim.endswith("server")]
        for wave, victim in chosen(pairs, 3, SURE):
            killed(cluster, coordinator, rows, wave, victim)
    cluster.stop()


run(main)
