#!/usr/bin/env python3
# check: build=asan campaign=release timeout=400
"""kill -9 of a restore's job at every step of its state machine (the job kills itself at the point
that TIDEMARK_TEST_STOP names), then what a person might do: mount the volume and start the server.
Before `marked` that gives the old server back untouched; after it either the volume cannot be
mounted or PostgreSQL refuses to start, until the restore starts it. Then the restore is resumed
and has to end with the rows of the tag. A sample in `make check`, all points in `make campaign`."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story, journal_of, job_log  # noqa: E402
import tm  # noqa: E402

OLD, GONE, REFUSED, RECOVERS = "old server", "not mountable", "refuses to start", "recovers"
# Point → what starting by hand gives there.
POINTS = {
    "planned": OLD, "fenced": OLD, "fenced-stopped": OLD, "fenced-closed": OLD,
    "fenced-pushed": OLD, "marked": OLD, "marked-one": GONE, "pulling": GONE,
    "pulling-ack": GONE, "written": GONE, "written-one": REFUSED, "configured": REFUSED,
    "configured-files": REFUSED,
    "configured-control": REFUSED, "recovering": REFUSED, "recovering-started": RECOVERS,
    "recovering-reached": RECOVERS, "verifying": RECOVERS, "complete": RECOVERS,
}
# With WAL and a tablespace on volumes of their own; the data volume is marked first and committed
# last, so that no half can be started.
THREE = {**POINTS, "written-one": GONE}
BEFORE_MARK = ("planned", "fenced", "fenced-stopped", "fenced-closed", "fenced-pushed")


def mount_by_hand(volume):
    """True when the volume is, or can be, mounted."""
    if tm.mounts_below(volume.mount):
        return True
    return subprocess.run(["mount", volume.device, volume.mount], stderr=subprocess.DEVNULL,
                          check=False).returncode == 0


def start_by_hand(story):
    """What a person finds: one of the four words above."""
    server = story.server
    if not all([mount_by_hand(volume) for volume in story.node.volumes]):
        return GONE
    if not server.running():
        done = server.start(check=False)
        # The agent may have seen the death first: then its abort starts the server beside us.
        if done.returncode != 0 and not server.running():
            tm.diag(tm.tail(server.log, 5))
            return REFUSED
    server.wait_ready()
    if server.psql("select to_regclass('orders') is null") == "t":
        return OLD
    return RECOVERS


def kill_at(story, point):
    """A restore whose job kills itself at point."""
    node = story.node
    node.agent.stop()
    node.agent.start(TIDEMARK_TEST_STOP=point)
    done = node.cli("restore", "t1", "--yes")
    if point != "complete":
        isnt(done.status, 0, f"{point}: the command says that the job died ({done.status})")
    node.agent.stop()


def finish(story, point):
    """Resume. A job that had touched nothing is cancelled by the agent instead, which also gives
    the old server back; the restore is then run anew."""
    node = story.node
    node.agent.start()
    if point in BEFORE_MARK:
        poll(lambda: journal_of(node)["state"] == "cancelled", 60, f"{point}: the job cancelled")
        ok(not os.path.exists(node.state_dir + "/fence"), f"{point}: the fence is lifted")
        story.server.wait_ready()
        is_(story.server.psql("select to_regclass('orders') is null"), "t",
            f"{point}: the old server runs, untouched")
        done = node.cli("restore", "t1", "--yes")
    elif point == "complete":
        is_(journal_of(node)["state"], "complete", f"{point}: nothing is left to do")
        return
    else:
        done = node.cli("restore", "--resume", "--yes")
    if not is_status(done, 0, f"{point}: the restore ends well"):
        tm.diag(job_log(node))
        tm.diag(tm.tail(story.server.log, 20))


def test_point(story, point, name, wanted):
    """wanted: what starting by hand gives."""
    server = story.server
    server.psql("drop table if exists orders")
    kill_at(story, point)
    journal = journal_of(story.node)
    is_(journal["step"], point.split("-")[0], f"{name}: the journal says where")
    by_hand = start_by_hand(story)
    is_(by_hand, wanted, f"{name}: started by hand: {wanted}")
    if by_hand == OLD:
        server.psql("create table by_hand (); drop table by_hand")
    finish(story, point)
    server.wait_ready()
    story.timeline = server.timeline() - 1
    story.check_tag(name)


def test_agent_resumes(story):
    """resume = auto: the agent that starts again finishes by itself."""
    node = story.node
    story.server.psql("drop table if exists orders")
    kill_at(story, "pulling-ack")
    node.agent.start()
    poll(lambda: journal_of(node)["state"] in ("complete", "executed", "failed"), 120,
         "the agent to finish the restore")
    if journal_of(node)["state"] == "executed":
        is_status(node.cli("restore", "--resume", "--yes"), 0, "auto: verified")
    story.server.wait_ready()
    story.timeline = story.server.timeline() - 1
    story.check_tag("resume = auto")


def test_volumes(box, fs):
    """Data, WAL and tablespace on a volume each."""
    story = Story(box, "many" + fs, fs, wal=True, tablespace=True, resume="wait")
    story.begin()
    for point in THREE if tm.CAMPAIGN else ("marked-one", "written-one"):
        test_point(story, point, f"three volumes, {point}", THREE[point])
    story.end()


def main():
    box = need_root() or Sandbox("restore-kill")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    wanted = os.environ.get("TIDEMARK_POINTS")
    points = wanted.split(",") if wanted else sample(POINTS, 6)
    for fs in ("ext4", "xfs") if tm.CAMPAIGN else ("ext4",):
        story = Story(box, fs, fs, resume="wait")
        story.begin()
        for point in points:
            test_point(story, point, point, POINTS[point])
        story.node.sections["tidemark"]["resume"] = "auto"
        story.node.write_conf()
        test_agent_resumes(story)
        story.end()
        if not wanted:
            test_volumes(box, fs)


if __name__ == "__main__":
    run(main)
