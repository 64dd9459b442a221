#!/usr/bin/env python3
# check: build=asan campaign=release timeout=200
"""Nothing acknowledged is lost: the archiver stands still since the tag, many segments are only in
pg_wal, and the tag is restored. A later recovery to the end of the old timeline has every commit,
and so it has when the server was killed, and when the fence was interrupted after its push."""
import glob
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story, journal_of  # noqa: E402
from t_restore_kill import kill_at  # noqa: E402


def latest(story, timeline, ledger, what):
    story.box.write("hold", "none")
    story.restore("--target=latest", f"--target-timeline={timeline}", "--verify=quick")
    story.server.wait_ready()
    count, last = ledger.present(story.server)
    ok(count == last and ledger.acknowledged <= last <= ledger.sent,
       f"{what}: all {ledger.acknowledged} acknowledged commits are there ({count})")


def write(story):
    """Commits over several segments that nobody archives; the ledger of them."""
    server = story.server
    story.box.write("hold", f"{server.timeline():08X}")
    ledger = Ledger(server).start()
    for _ in range(5):
        ledger.wait(20)
        server.switch_wal()
    ledger.wait(20)
    return ledger


def fenced(story, what, kill=False):
    """One restore of the tag, then one to the end of the timeline that it left."""
    node, timeline, ledger = story.node, story.server.timeline(), write(story)
    if kill:
        story.server.kill()
    story.restore()
    ledger.stop()
    pushed = journal_of(node)["wal_pushed"]
    ok(pushed >= 5, f"{what}: {pushed} segments were pushed by the fence")
    story.timeline = story.server.timeline() - 1
    story.check_tag(what)
    latest(story, timeline, ledger, what)


def archiver_stopped(story):
    fenced(story, "archiver stopped")


def server_killed(story):
    fenced(story, "server killed", kill=True)


def fence_interrupted(story):
    """The fence is lifted, the old server takes more commits, then the restore is run again: the
    partial segment that the first fence pushed is too short by then."""
    timeline, ledger = story.server.timeline(), write(story)
    kill_at(story, "fenced-pushed")
    ledger.stop()
    story.node.agent.start()
    poll(lambda: journal_of(story.node)["state"] == "cancelled", 60, "the job cancelled")
    story.server.wait_ready()
    more = Ledger(story.server)
    more.start().wait(50)
    story.restore()
    more.stop()
    wal = story.node.repository.removeprefix("file://") + "/wal"
    names = glob.glob(f"{wal}/**/{timeline:08X}*.partial", recursive=True)
    ok(any("." in os.path.basename(x).removesuffix(".partial") for x in names),
       f"a .partial is named after its length, and none is replaced ({len(names)})")
    latest(story, timeline, more, "fence interrupted")


def main():
    box = need_root() or Sandbox("restore-salvage")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    story = Story(box, "salvage", resume="wait")
    node = story.node
    hold = box.write("hold", "none", 0o644)  # segments of this timeline cannot be archived
    node.settings["archive_command"] = (f'case %f in "$(cat {hold})"*) exit 1;; esac; '
                                        f"{node.archive_command}")
    story.begin()
    for case in sample((archiver_stopped, server_killed, fence_interrupted), 1):
        case(story)
    story.end()


run(main)
