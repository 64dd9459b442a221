#!/usr/bin/env python3
# check: build=asan campaign=release timeout=500
"""The network is cut in every wave of a cluster restore: the link of the primary, of a standby, or
of the coordinator goes down and tells nobody. Healed in time, the restore only waits, and says for
whom; after agent_timeout it stops with every node in a named state, and `cluster resume` ends well.
Between: answers that are lost behind requests that were heard. At no time do two servers accept
writes, and no standby gets onto a dead branch. All pairs in `make campaign`, a sample in `make
check`."""
import contextlib
import os
import signal
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE]
from tm import *  # noqa: E402, F403
from cluster_checks import (Watch, jobs_stopped, later, named_states,  # noqa: E402
                            restored, tagged)
from netns_lib import Net, NetCluster, NetCoordinator, need_net  # noqa: E402
from waves import UNTOUCHED, WAVES, Held, chosen, settle  # noqa: E402
import tm  # noqa: E402

WHOSE = ("primary", "standby", "coordinator")
ASKED = ("reserve", "fence", "pull", "recover", "verify")  # a node's jobs, one a request


def cut_of(cluster, coordinator, whose):
    """Who is cut off."""
    return {"primary": cluster.primary, "standby": cluster.standbys[-1],
            "coordinator": coordinator}[whose]


def held_and_cut(cluster, coordinator, wave, whose):
    later(cluster)
    victim = cut_of(cluster, coordinator, whose)
    held = Held(cluster, coordinator, wave, victim)
    victim.link.cut()
    held.member.restart_agent()  # no other job stops itself
    held.go_on()
    return held, victim


def has_receiver(standby):
    """Its server tries to reach the primary: pg_stat_wal_receiver shows nothing before it did."""
    for pid in processes_below(standby.data):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"walreceiver" in file.read():
                return True
    return False


def is_noticed(cluster, coordinator, held, victim):
    """The coordinator waits, for who is cut off and not for the agent that was started again: its
    journal then. Or a standby tries to reach its primary, whom the coordinator asks nothing
    meanwhile: True."""
    def noticed():
        if victim is cluster.primary and held.wave == "attach":
            return has_receiver(cluster.standbys[0])
        journal = coordinator.journal()
        silent = journal.get("silent")
        return journal if silent and (victim is coordinator or silent == [victim.link.name]) else ""
    return poll(noticed, 180, f"{held.wave}: the cut of {victim.link.name} to be noticed")


def short_cut(cluster, coordinator, rows, wave, whose):
    what = f"{wave}, {whose} cut for a while"
    tm.diag(what)
    timeline = cluster.primary.server.timeline()
    held, victim = held_and_cut(cluster, coordinator, wave, whose)
    journal = is_noticed(cluster, coordinator, held, victim)
    if journal is not True and victim is not coordinator:
        is_(journal["phase"], f"waiting for {victim.link.name}",
            f"{what}: the coordinator waits, and says for whom")
    named_states(cluster, what)
    victim.link.heal()
    done = held.wait()
    if not is_status(done, 0, f"{what}: the restore waits for it"):
        coordinator.diagnose()
    settle(cluster, coordinator, timeline, rows, what)


def long_cut(cluster, coordinator, rows, wave, whose):
    what = f"{wave}, {whose} cut for good"
    tm.diag(what)
    timeline = cluster.primary.server.timeline()
    held, victim = held_and_cut(cluster, coordinator, wave, whose)
    done = held.wait()
    isnt(done.status, 0, f"{what}: the restore stops")
    like(done.err, "(?s)error: .*hint: .*" + (
        "every minute" if wave in UNTOUCHED else "tidemark cluster resume"),
        f"{what}: and says how it goes on")
    named_states(cluster, what)
    victim.link.heal()
    settle(cluster, coordinator, timeline, rows, what)


def lost_answer(cluster, coordinator, rows, number):
    """The agent of a standby has heard, its job runs, and the network is cut before the answer."""
    what = f"the answer to '{ASKED[number]}' is lost"
    tm.diag(what)
    member, timeline, passed = cluster.standbys[-1], cluster.primary.server.timeline(), set()
    later(cluster)
    held = Held(cluster, coordinator, "job-ready", member)
    for _ in range(number):
        passed.add(held.pid)
        held.go_on()
        held.pid = poll(lambda: next((pid for pid in jobs_stopped(member.state_dir)
                                      if pid not in passed), None), 180, f"{what}: its job")
    member.link.cut()
    os.kill(held.pid, signal.SIGCONT)
    poll(lambda: coordinator.journal().get("silent"), 120, f"{what}: the coordinator to give it up")
    member.restart_agent()
    member.link.heal()
    is_status(held.wait(), 0, f"{what}: the coordinator finds out")
    jobs = [job for job in member.agent.api("GET", "/jobs")[1]["jobs"]
            if job["cluster"]["job"] == coordinator.journal()["id"]]
    # A plan that was made while cut does not reach the primary, is refused, and asked for again.
    refused = [job["error"]["code"] for job in jobs[:-1]]
    is_((refused if number else [], jobs[-1]["state"], len(jobs) <= 2), ([], "complete", True),
        f"{what}: the node was reserved once")
    ok(set(refused) <= {"refused"}, f"{what}: {refused} before")
    restored(cluster, coordinator, timeline + 1, rows, what)


def pairs():
    return [(wave, whose) for wave in WAVES for whose in WHOSE]


def main():
    need_root()
    need_net()
    need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal")
    box = Sandbox("cuts")
    net = Net(box)
    cluster = NetCluster(box, net, options={"postgresql": {"start_timeout": "30s"}}).start()
    patient = NetCoordinator(box, net, cluster, "patient").start()
    hasty = NetCoordinator(box, net, cluster, "hasty",
                           {"coordinator": {"agent_timeout": "5s"}}).start()
    rows = tagged(cluster, patient)
    with Watch(cluster):
        for wave, whose in chosen(pairs(), 2):
            short_cut(cluster, patient, rows, wave, whose)
        for wave, whose in chosen(pairs(), 2):
            long_cut(cluster, hasty, rows, wave, whose)
        for number in chosen(range(len(ASKED)), 1):
            lost_answer(cluster, patient, rows, number)
    cluster.stop()


run(main)
