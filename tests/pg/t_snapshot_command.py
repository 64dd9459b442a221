#!/usr/bin/env python3
"""Snapshots through a snapshot device (provider command, the shipped reflink script): data, WAL and
a tablespace on three volumes captured at one instant under load; leftovers of a killed job."""
import glob
import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import snapshots as snap  # noqa: E402

CHUNK = 32 * KIB
SCRIPT = os.path.join(SOURCE, "conf/capture/reflink-loop")
# The shipped script, and a second clone of the same instant for the test to compare with.
WRAPPER = """#!/bin/sh
set -e
loop=$({script} snapshot)
cp --reflink=always {images}/.tidemark-$TIDEMARK_JOB-$TIDEMARK_VOLUME.img \\
    {images}/keep-$TIDEMARK_VOLUME.img
[ ! -e {fail} ] || exit 3
echo "$loop"
"""


def leftovers(node, images):
    """Clones and loop devices of captures."""
    loops = [d for d in os.listdir("/sys/block") if d.startswith("loop")
             and ".tidemark-" in read(f"/sys/block/{d}/loop/backing_file")
             and read(f"/sys/block/{d}/loop/backing_file").startswith(images)]
    return glob.glob(images + "/.tidemark-*") + loops


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def keep_paths(node, images):
    return {v.name: os.path.join(images, f"keep-{v.name}.img") for v in node.volumes}


def clean_keeps(node, images):
    for path in keep_paths(node, images).values():
        if os.path.exists(path):
            os.unlink(path)


def test_one_instant(node, images, load):
    heart = snap.Heartbeat(node.volumes[0].mount)
    done = node.cli("snapshot", "--tag", "one")
    heart.stop()
    is_status(done, 0, "three volumes are captured")
    record = snap.record(node, "one")
    is_([v["name"] for v in record["volumes"]], ["pgdata", "pgwal", "fast"], "all in one record")
    is_({v["provider"] for v in record["volumes"]}, {"command"}, "by snapshot devices")
    ok(record["freeze_ns"] < 5e9 and heart.longest_s < 6,
       f"freeze {record['freeze_ns'] / 1e6:.0f} ms, longest write {heart.longest_s * 1e3:.0f} ms")
    for volume in record["volumes"]:
        image, chunks = snap.image(node, "one", volume["name"])
        keep = keep_paths(node, images)[volume["name"]]
        is_(snap.differences(image, keep, chunks, CHUNK), [],
            f"{volume['name']}: image and clone of the same instant are the same")
        ok(any(c not in ("zero", "free") for c in chunks), f"{volume['name']}: it holds data")
        os.unlink(image)
    is_([t["name"] for t in record["postgresql"]["tablespaces"]], ["ts_fast"],
        "the tablespace is recorded")
    ok(record["postgresql"]["wal_directory"].startswith(node.volumes[1].mount),
       "pg_wal is resolved to its own volume")
    is_(record["wal_in_image"], False, "WAL is left out")
    wal = record["volumes"][1]
    ok(wal["bytes_read"] < 100 * MIB, f"the WAL volume: {wal['bytes_read'] >> 20} MiB read")
    is_(leftovers(node, images), [], "clones and loop devices are gone")
    load.wait_transactions(200)


def test_incremental(node, images):
    clean_keeps(node, images)
    before = {v.name: snap.chunk_map(node, "one", v.name) for v in node.volumes}
    is_status(node.cli("snapshot", "--tag", "two"), 0, "an incremental of three volumes")
    record = snap.record(node, "two")
    for volume in record["volumes"]:
        after = snap.chunk_map(node, "two", volume["name"])
        is_(volume["chunks_stored"], len(snap.changed_chunks(before[volume["name"]], after)),
            f"{volume['name']}: stores what changed ({volume['chunks_stored']} chunks)")


def test_failures(node, images, fail):
    clean_keeps(node, images)
    open(fail, "w", encoding="ascii").close()
    done = node.cli("snapshot", "--tag", "fails")
    isnt(done.status, 0, f"a snapshot_command that fails: exit {done.status}")
    like(done.err, "snapshot_command", "and is named")
    os.unlink(fail)
    is_(leftovers(node, images), [], "what it made is dropped")
    clean_keeps(node, images)
    running = snap.Running(node, "snapshot", "--tag", "killed")
    running.wait_phase("copying")
    poll(lambda: leftovers(node, images), 20, "a snapshot device", 0.01)
    kill_pid(running.pid(), signal.SIGKILL)
    isnt(running.wait().status, 0, "kill -9 of the job while it copies")
    ok(leftovers(node, images), "leaves a snapshot device")
    is_(snap.tags(node), ["one", "two"], "and nothing that is visible")
    clean_keeps(node, images)
    is_status(node.cli("snapshot", "--tag", "three"), 0, "the next snapshot works")
    is_(leftovers(node, images), [], "and drops what the killed one left")


def main():
    need_root()
    need_tools("mkfs.xfs")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    box = Sandbox("t_snapshot_command")
    images = box.volume("images", 3 * GIB, fs="xfs").mount
    volumes = [box.volume(name, 400 * MIB, fs="xfs", backing=images)
               for name in ("pgdata", "pgwal", "fast")]
    fail = box.join("fail")
    command = box.join("snapshot.sh")
    box.write("snapshot.sh", WRAPPER.format(script=SCRIPT, images=images, fail=fail), 0o755)
    node = Node(box, volumes, wal_volume=volumes[1], provider="command",
                volume_options={"snapshot_command": command, "drop_command": f"{SCRIPT} drop"},
                options={"repository": {"rewrite_budget": "0%"}},  # chunks are counted
                settings={"max_wal_size": "128MB"})
    node.start()
    node.server.pgbench_init(3, "postgres", "--tablespace=ts_fast")
    load = node.server.pgbench()
    load.wait_transactions(50)
    test_one_instant(node, images, load)
    test_incremental(node, images)
    test_failures(node, images, fail)
    load.stop()
    node.server.stop()


run(main)
