#!/usr/bin/env python3
# check: build=asan campaign=release timeout=400
"""kill -9 of the agent alone, and of agent and job, at every step of a restore (the job stops
itself at the point that TIDEMARK_TEST_PAUSE names). The agent alone: the job goes on, the restarted
agent finds it. Both: as in t_restore_kill.py, starting by hand and resuming. A sample in `make
check`, all points in `make campaign`."""
import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
import snapshots as snap  # noqa: E402
from t_restore import Story, job_log, journal_of  # noqa: E402
from t_restore_kill import POINTS, finish, start_by_hand  # noqa: E402
import tm  # noqa: E402


def state_of(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def pause_at(story, point):
    """A restore whose job has stopped at point; the command's process and the job's pid."""
    node = story.node
    node.agent.stop()
    node.agent.start(TIDEMARK_TEST_PAUSE=point)
    running = snap.Running(node, "restore", "t1", "--yes")

    def paused():
        if running.process.poll() is not None:
            raise RuntimeError(f"{point}: not reached: {running.wait().err}")
        return next((pid for pid in processes_below(node.state_dir) if state_of(pid) == "T"), None)
    return running, poll(paused, 120, f"{point}: the job to stop itself", 0.02)


def agent_alone(story, point, running, pid):
    """The job must not notice; a step later the restarted agent is asked for the rest."""
    node = story.node
    node.agent.kill()
    isnt(running.wait().status, 0, f"{point}, agent: the command says that it lost the agent")
    is_(state_of(pid), "T", f"{point}, agent: the job is still there")
    node.agent.start()

    def ended():
        if state_of(pid) == "T":
            os.kill(pid, signal.SIGCONT)
        return state_of(pid) in ("gone", "Z")
    poll(ended, 120, f"{point}: the job to end", 0.05)
    state = node.agent.wait_job(journal_of(node)["id"])["state"]
    ok(state in ("prepared", "executed", "complete"), f"{point}, agent: the job goes on: {state}")
    if state != "complete":
        rest = ["t1"] if state == "prepared" else ["--resume"]
        if not is_status(node.cli("restore", *rest, "--yes"), 0, f"{point}, agent: the rest"):
            tm.diag(job_log(node))


def both(story, point, running, pid):
    story.node.agent.kill()
    kill_pid(pid)
    running.wait()
    is_(journal_of(story.node)["step"], point.split("-")[0], f"{point}, both: the journal says so")
    is_(start_by_hand(story), POINTS[point], f"{point}, both: by hand: {POINTS[point]}")
    finish(story, point)


def main():
    box = need_root() or Sandbox("restore-kill-agent")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    story = Story(box, "agent", resume="wait")
    story.begin()
    pairs = [(point, who) for point in POINTS for who in (agent_alone, both)]
    wanted = os.environ.get("TIDEMARK_POINTS")
    for point, who in sample(pairs, 3) if not wanted else pairs:
        if not wanted or point in wanted.split(","):
            story.server.psql("drop table if exists orders")
            who(story, point, *pause_at(story, point))
            story.server.wait_ready()
            story.timeline = story.server.timeline() - 1
            story.check_tag(f"{point}, {who.__name__}")
    story.end()


run(main)
