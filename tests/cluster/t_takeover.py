#!/usr/bin/env python3
# check: build=release campaign=release,asan timeout=400
"""A coordinator is lost in the middle of a restore and another one, with other paths and another
way to the agents, takes it over from the repository. The first comes back and is refused. Between:
it was only asleep; two take over at once; the second gives up what the first began, before and
after old data went; the taker dies between two agents; the repository is away when the journal has
to be in it. At no time do two servers accept writes."""
import glob
import json
import os
import signal
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE, os.path.join(HERE, "..", "cli")]
from tm import *  # noqa: E402, F403
from certificates import Authority  # noqa: E402
from cluster_checks import (Watch, as_before, at_once, newest, restored,  # noqa: E402
                            stopped_below, tagged)
from cluster_lib import (SECRET, Cluster, Coordinator, break_repository,  # noqa: E402
                         mend_repository)
from t_prompt import QUESTION, Terminal  # noqa: E402
import tm  # noqa: E402

LEVELS = ("asked", "reserved", "fenced", "touching", "copied", "configured", "recovered",
          "complete")
SHORT = ("reserved", "copied", "recovered")


def copies(cluster, job):
    """What the repository has of a job, oldest first."""
    found = []
    for path in sorted(glob.glob(f"{cluster.repository[len('file://'):]}/job/main/{job}/*")):
        with open(path, "rb") as file:
            found.append(json.loads(file.read()[192:]))
    return found


def asleep_at(cluster, first, level):
    """A restore by the first coordinator whose job stops itself there: (its pid, its thread, where
    the result will be)."""
    results = []
    cluster.primary.server.psql("insert into orders select 1000000, 'after'")
    first.restart(TIDEMARK_TEST_PAUSE=f"cluster-{level}")
    thread = threading.Thread(target=lambda: results.append(first.cli("restore", "t1", "--yes")))
    thread.start()
    pid = poll(lambda: stopped_below(first.state_dir), 120, f"{level}: the first to stop itself")
    return pid, thread, results


def lost_at(cluster, first, level, others=()):
    """The first coordinator and its job die; the job's id."""
    thread = asleep_at(cluster, first, level)[1]
    job = first.journal()["id"]
    first.agent.kill()
    first.kill_job()
    thread.join()
    for other in others:
        is_([r["id"] for r in other.status()["restores"]], [job], f"{level}: the repository has it")
    return job


def comes_back(first, job, what, second):
    """The one that lost its job says so, leaves the nodes alone and tells nobody of a failure."""
    told = set(os.listdir(first.told))
    first.start()
    journal = newest(first, "taken_over", f"{what}: the first comes back")
    is_(journal["id"], job, f"{what}: of that job")
    is_(journal["error"]["code"], "refused", f"{what}: refused")
    like(journal["error"]["text"] + journal["error"]["hint"], second, f"{what}: and knows by whom")
    is_(set(os.listdir(first.told)) - told, set(), f"{what}: nobody is told that it failed")


def taken_over(cluster, first, second, rows, level):
    timeline = cluster.primary.server.timeline()
    job = lost_at(cluster, first, level, [second])
    like(second.cli("status").out, f"restore {job} to t1: running.*by first on", f"{level}: status")
    done = second.cli("resume")
    is_status(done, "missing", f"{level}: it is not taken over without being named")
    like(done.err, f"first on .*tidemark cluster resume {job}", f"{level}: but the hint names it")
    done = second.cli("resume", job[:8])
    if not is_status(done, 0, f"{level}: the second goes on to the end"):
        tm.diag(done.err)
        second.diagnose()
    is_(second.journal()["id"], job, f"{level}: it is the same job")
    is_(second.status()["restores"], [], f"{level}: and it is over")
    comes_back(first, job, level, "second on")
    restored(cluster, second, timeline + 1, rows, level)
    epochs = [m.agent.api("GET", "/node")[1]["reservation"]["epoch"] for m in cluster.members]
    is_(epochs, [2] * len(epochs), f"{level}: every agent knows the new epoch")
    is_status(first.cli("resume", job), "refused", f"{level}: what is over is not taken back")
    told = copies(cluster, job)
    is_([told[-1][key] for key in ("state", "over", "epoch")], ["complete", True, 2],
        f"{level}: the last copy says that it is over")
    ok(len(told) < 16, f"{level}: {len(told)} copies")
    unlike(json.dumps(told), SECRET, f"{level}: and no secret is in them")


def only_asleep(cluster, first, second, rows):
    """The first is alive but stands still, until the second is done."""
    timeline, told = cluster.primary.server.timeline(), set(os.listdir(first.told))
    pid, thread, results = asleep_at(cluster, first, "copied")
    job = first.journal()["id"]
    is_status(second.cli("resume", job), 0, "asleep: the second goes on to the end")
    os.kill(pid, signal.SIGCONT)
    thread.join()
    is_status(results[0], "refused", "asleep: the first is refused")
    like(results[0].err, "was taken over by coordinator second on", "asleep: and says by whom")
    is_(first.journal()["state"], "taken_over", "asleep: its state")
    is_(set(os.listdir(first.told)) - told, set(), "asleep: nobody is told that it failed")
    restored(cluster, second, timeline + 1, rows, "asleep")


def at_work(cluster, first, second, rows):
    """The first waits for a node that takes its time to pull: nobody takes the restore from it by
    accident."""
    node, timeline, results = cluster.standbys[0], cluster.primary.server.timeline(), []
    node.restart_agent(TIDEMARK_TEST_PAUSE="pulling")
    thread = threading.Thread(target=lambda: results.append(first.cli("restore", "t1", "--yes")))
    thread.start()
    pid = poll(lambda: stopped_below(node.state_dir), 120, "at work: a node's job to stop itself")
    job = first.journal()["id"]
    like(second.cli("status").out, rf"restore {job} to t1: running, in step pulling.*by first on .*"
         r"its nodes heard from it \d+ s ago", "at work: status of another coordinator says so")
    done = second.cli("resume", job)
    is_status(done, "refused", "at work: resume there is refused")
    like(done.err, rf"(?s)first on .* is at work on cluster restore {job}.*--take-over {job}",
         "at work: and says how to insist")
    terminal = Terminal(second, "cluster", "resume", job).read(QUESTION)
    like(terminal.text, f"restore {job} is coordinator first on .*It is taken over",
         "at work: asks")
    is_(terminal.write("n\n").end(), tm.EXIT["cancelled"], "at work: no is a no")
    done = first.cli("resume", job)
    is_status(done, "busy", "at work: resume by the first itself")
    like(done.err, f"hint: .*jobs --follow {job}", "at work: it can be watched")
    is_(second.agent.api("GET", f"/jobs/{job}")[0], 404, "at work: the second has no part in it")
    threading.Timer(1, os.kill, (pid, signal.SIGCONT)).start()
    is_status(second.cli("resume", "--take-over", job), 0, "at work: who insists gets it")
    thread.join()
    is_status(results[0], "refused", "at work: from the first, which says so")
    node.restart_agent()
    restored(cluster, second, timeline + 1, rows, "at work")


def two_at_once(cluster, first, takers, rows):
    timeline = cluster.primary.server.timeline()
    job = lost_at(cluster, first, "configured", takers)
    results = at_once(takers, "resume", job)
    is_(sorted(done.status for done in results.values()), [0, tm.EXIT["refused"]],
        "of two that take over at once one wins, the other is refused")
    winner = min(results, key=lambda who: results[who].status)
    loser = max(results, key=lambda who: results[who].status)
    like(results[loser].err, "was taken over by coordinator", "and says by whom")
    is_(loser.journal()["state"], "taken_over", "its state says so")
    restored(cluster, winner, timeline + 1, rows, "two take over")
    comes_back(first, job, "two take over", winner.name)


def taker_dies(cluster, first, second, third, rows):
    """The second dies when one agent knows its epoch; the third takes it over from both."""
    timeline = cluster.primary.server.timeline()
    job = lost_at(cluster, first, "configured", [second])
    second.restart(TIDEMARK_TEST_STOP="cluster-claimed")
    isnt(second.cli("resume", job).status, 0, "the taker dies")
    second.agent.kill()
    is_status(third.cli("resume", job), 0, "a third goes on to the end")
    epochs = [m.agent.api("GET", "/node")[1]["reservation"]["epoch"] for m in cluster.members]
    is_(epochs, [3] * len(epochs), "with the third epoch")
    second.start()
    newest(second, "taken_over", "the taker comes back")
    comes_back(first, job, "the taker died", "third on")
    restored(cluster, third, timeline + 1, rows, "the taker died")


def given_up(cluster, first, second, rows):
    timeline = cluster.primary.server.timeline()
    job = lost_at(cluster, first, "fenced", [second])
    is_status(second.cli("abort", job), 0, "abort before old data went")
    as_before(cluster, timeline, "aborted by another")
    comes_back(first, job, "aborted by another", "second on")
    as_before(cluster, timeline, "aborted, and the first came back")
    job = lost_at(cluster, first, "configured", [second])
    is_status(second.cli("abort", job), 0, "abort after old data went")
    is_([m.health() for m in cluster.members], ["partial"] * len(cluster.members),
        "given up after old data went: all are partial")
    is_(Watch(cluster).count(), 0, "and no server accepts writes")
    comes_back(first, job, "given up", "second on")
    is_status(second.cli("restore", "t1", "--yes"), 0, "another restore makes them usable")
    restored(cluster, second, timeline + 1, rows, "after an abort by another")
    _, thread, _ = asleep_at(cluster, first, "configured")
    first.kill_job()
    thread.join()
    is_status(first.cli("abort"), 0, "the first gives up one of its own")
    is_(first.agent.api("GET", "/health")[1]["status"], "partial", "and is partial")
    is_status(second.cli("restore", "t1", "--yes"), 0, "the second restores the nodes")
    is_(first.agent.api("GET", "/health")[1]["status"], "ok", "so that the first is well again")


def goes_on_meanwhile(cluster, first, second, rows):
    """The first goes on and overwrites nodes while the second, which has read that nothing is
    touched, is about to give the restore up."""
    timeline = cluster.primary.server.timeline()
    pid, thread, _ = asleep_at(cluster, first, "touching")
    job = first.journal()["id"]
    second.restart(TIDEMARK_TEST_PAUSE="cluster-taking")
    abort = threading.Thread(target=lambda: second.cli("abort", job))
    abort.start()
    taker = poll(lambda: stopped_below(second.state_dir), 60, "the second to stop itself")
    os.kill(pid, signal.SIGCONT)
    poll(lambda: cluster.primary.agent.api("GET", "/jobs")[1]["jobs"][-1].get("old_gone"), 60,
         "the first to go on")
    os.kill(taker, signal.SIGCONT)
    for waiting in (thread, abort):
        waiting.join()
    second.restart()
    like(newest(second, "cancelled", "meanwhile")["error"]["text"], "volumes are not usable",
         "meanwhile: the second knows what the first did")
    is_(first.journal()["state"], "taken_over", "meanwhile: the first lost it")
    is_([m.health() for m in cluster.members], ["partial"] * len(cluster.members),
        "meanwhile: all are partial")
    is_status(second.cli("restore", "t1", "--yes"), 0, "meanwhile: another restore")
    restored(cluster, second, timeline + 1, rows, "meanwhile")


def stale_epoch(cluster, certificate):
    """What the first would do with a node's part, had it not asked before."""
    for member in cluster.members:
        part = member.agent.api("GET", "/jobs")[1]["jobs"][-1]
        for method, path in (("POST", f"/restores/{part['id']}/execute"),
                             ("DELETE", f"/jobs/{part['id']}?epoch=1")):
            body = {"epoch": 1, "until": "fenced"} if method == "POST" else None
            status, answer = member.agent.api(method, path, body)
            is_((status, answer["code"]), (409, "refused"), f"{member.name}: {method} is refused")
            like(answer["detail"], "epoch 1 of cluster restore .* is over", "for its epoch")
        answer = output("curl", "-sk", "--cert", certificate.crt, "--key", certificate.key, "-X",
                        "DELETE", f"{member.address}/jobs/{part['id']}?force=1")
        like(answer, r'(?s)(?=.*"refused").*other nodes may be past', "nor any without one, by TCP")


def no_repository(cluster, first):
    """The copy before old data goes is not to be had."""
    timeline = cluster.primary.server.timeline()
    pid, thread, results = asleep_at(cluster, first, "touching")
    path = break_repository(cluster.repository)
    os.kill(pid, signal.SIGCONT)
    thread.join()
    is_status(results[0], "store", "no repository: refused before old data goes")
    like(results[0].err, "nothing was touched: .* could not be copied", "and says so")
    is_(newest(first, "failed", "no repository").get("touched"), None, "no repository: untouched")
    is_(Watch(cluster).count(), 0, "no repository: the fence cannot be lifted without it")
    mend_repository(path)
    is_status(first.cli("abort"), 0, "no repository: it is back")
    newest(first, "cancelled", "no repository: given back")
    as_before(cluster, timeline, "no repository")


def make(box, cluster, name, **options):
    coordinator = Coordinator(box, cluster, name, options)
    coordinator.name, coordinator.told = name, box.mkdir(f"{name}-told")
    return coordinator


def main():
    box = tm.need_root() or tm.Sandbox("takeover")
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal")
    cluster, authority = Cluster(box, ("db1", "db2")), Authority(box.mkdir("ca"))
    for member in cluster.members:
        member.open_door(authority, "127.0.0.1")
    cluster.start()
    conninfo = cluster.standbys[0].conninfo_to(cluster.primary) + f" password={SECRET}"
    told = box.join("first-told")
    first = make(box, cluster, "first", coordinator={
        "primary_conninfo": conninfo,
        "members": " ".join(f"{m.name}=unix:{m.socket}" for m in cluster.members)},
        notify={"on": "failure", "command": f"cat >$(mktemp {told}/XXXXXX)"}).start()
    second, third = [make(box, cluster, name, tls=authority.issue(name, "coordinator").options)
                     .start() for name in ("second", "third")]
    rows = tagged(cluster, first)
    with Watch(cluster):
        for level in LEVELS if tm.CAMPAIGN else SHORT:
            taken_over(cluster, first, second, rows, level)
        stale_epoch(cluster, authority.issue("stale", "coordinator"))
        at_work(cluster, first, second, rows)
        two_at_once(cluster, first, (second, third), rows)
        given_up(cluster, first, second, rows)
        no_repository(cluster, first)
        if tm.CAMPAIGN:
            only_asleep(cluster, first, second, rows)
            taker_dies(cluster, first, second, third, rows)
            goes_on_meanwhile(cluster, first, second, rows)
    cluster.stop()


run(main)
