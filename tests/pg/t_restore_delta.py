#!/usr/bin/env python3
# check: build=asan timeout=300
"""restore --delta: onto the node's own later state little is fetched; onto a disk full of other
bytes, after a kill -9 in the middle, and onto another device, the result is the same. From an
encrypted repository. That the bytes are exact is tests/unit/t_push_pull.c's part; here the server
is."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story, journal_of, record_of  # noqa: E402
import tm  # noqa: E402


def copied(story, what):
    found = journal_of(story.node)["copied"]
    tm.diag(f"{what}: {found}")
    is_(found["delta"], True, f"{what}: the journal says how it was copied")
    is_(found["bytes"], record_of(story.node, "t1")["volumes"][0]["size"],
        f"{what}: and of how much")
    return found


def test_own(story):
    """The volume as it was, and what load and a dropped table have changed since."""
    plan = story.node.cli("restore", "t1", "--delta", "--dry-run")
    like(plan.out, "delta +the devices are read first", "the plan says so")
    stored = record_of(story.node, "t1")["volumes"][0]["bytes_stored"]
    done = story.restore("--delta")
    like(done.out, r"delta: .* were right already, .* fetched", "so does the last word")
    story.check_tag("delta onto its own later state")
    found = copied(story, "own state")
    ok(found["bytes_fetched"] * 2 < stored,
       f"{found['bytes_fetched']} bytes were fetched, the snapshot has {stored}")
    ok(found["bytes_same"] > 0, "the rest was right")


def test_garbage(story):
    """Every sector is somebody else's; the job dies once some of it is right."""
    volume = story.node.volumes[0]
    story.server.stop("immediate", check=False)
    if tm.mounts_below(volume.mount):
        story.box.umount(volume.mount)
    with open(volume.device, "r+b", buffering=0) as device:
        for _ in range(os.stat(volume.image).st_size // MIB):
            device.write(b"\xdb" * MIB)
        os.fsync(device.fileno())
    story.node.agent.stop()
    story.node.agent.start(TIDEMARK_TEST_STOP="pulling-ack")
    done = story.node.cli("restore", "t1", "--yes", "--delta")
    isnt(done.status, 0, "the job dies when the volume is written")
    story.node.agent.stop()
    is_(journal_of(story.node)["step"], "pulling", "while it pulls")
    story.node.agent.start()  # resume = auto
    poll(lambda: journal_of(story.node)["state"] in ("complete", "failed"), 120, "the resumed job")
    story.check_tag("delta onto garbage, killed and resumed")
    found = copied(story, "resumed")
    ok(found["bytes_same"] * 2 > found["bytes"],
       "what the first run wrote was read back and not fetched again")


def test_other(story):
    """Another, larger disk takes the place of the volume's."""
    volume, box = story.node.volumes[0], story.box
    blank = box.loop(box.image("other.img", os.stat(volume.image).st_size + 64 * MIB))
    story.restore("--delta", f"--device={volume.name}:{blank}")
    story.check_tag("delta onto another device")
    is_(output("findmnt", "-no", "SOURCE", volume.mount).strip(), blank, "it is mounted there")
    ok(copied(story, "another device")["bytes_fetched"] > 0, "what it needs was fetched")
    story.server.stop("immediate")
    box.umount(volume.mount)


def main():
    box = need_root() or Sandbox("restore-delta")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    story = Story(box, "delta")
    story.node.encrypt()
    story.begin()
    test_own(story)
    test_garbage(story)
    test_other(story)
    story.end()


run(main)
