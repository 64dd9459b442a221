#!/usr/bin/env python3
"""Cold snapshots: server stopped, volumes mounted read-only or not mounted at all. Not one byte of
them is written."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import schemas  # noqa: E402
import snapshots as snap  # noqa: E402

CHUNK = 32 * KIB


def copied(node, volume):
    """The device's own bytes, read past the page cache: buffered reads of a device that is, or was
    just, mounted can return pages that are older than what its filesystem wrote."""
    path = node.box.join(f"{volume.name}.copy")
    snap.copy_device(volume.device, path)
    return path


def digest(node, volume):
    path = copied(node, volume)
    try:
        return output("sha256sum", path).split()[0]
    finally:
        os.unlink(path)


def check_cold(node, tag, system_id):
    record = snap.record(node, tag)
    server = record["postgresql"]
    is_((server["online"], server["archived"], record["wal_in_image"]), (False, False, True),
        f"{tag}: no label, WAL in the image")
    is_(server["backup_label"], None, f"{tag}: no backup label")
    is_(server["system_id"], system_id, f"{tag}: the system identifier")
    is_(server["port"], node.server.port, f"{tag}: the port is known without a server")
    is_([v["provider"] for v in record["volumes"]], ["offline", "offline"], f"{tag}: provider")
    is_(server["wal_directory"], os.path.join(node.volumes[1].mount, "wal"),
        f"{tag}: pg_wal is resolved to its volume")
    for volume in node.volumes:
        image, chunks = snap.image(node, tag, volume.name)
        copy = copied(node, volume)
        is_(snap.differences(image, copy, chunks, CHUNK), [],
            f"{tag}: {volume.name} is what is on the device")
        os.unlink(image)
        os.unlink(copy)
    return record


def test_read_only(node, system_id):
    for volume in node.volumes:
        output("mount", "-o", "remount,ro", volume.mount)
    is_status(node.cli("snapshot", "--tag", "read-only"), 0, "volumes mounted read-only")
    check_cold(node, "read-only", system_id)


def test_unmounted(node, box, system_id):
    for volume in node.volumes:
        box.umount(volume.mount)
    before = [digest(node, v) for v in node.volumes]
    is_status(node.cli("snapshot", "--tag", "unmounted"), 0, "volumes that are not mounted")
    is_([digest(node, v) for v in node.volumes], before, "not one byte of them was written")
    is_([p for p in mounts_below(box.path) if p in {v.mount for v in node.volumes}], [],
        "and nothing is mounted afterwards")
    record = check_cold(node, "unmounted", system_id)
    ok(int(record["parent"], 16) != 0, "it is an incremental of the one before")
    stored = sum(v["chunks_stored"] for v in record["volumes"])
    ok(stored < 200, f"that stores {stored} chunks")
    is_status(node.cli("verify", "unmounted"), 0, "verify finds it good")
    for verb in (["list"], ["show", "unmounted"], ["jobs"]):
        schemas.conform(node.cli, "offline", *verb, want=1)


def test_refused(node):
    before = snap.tags(node)
    done = node.cli("snapshot", "--tag", "running")
    is_status(done, "refused", "the server runs: refused")
    like(done.err, "(?s)provider is offline, but the server runs.*hint: stop the server",
         "the server runs: message and hint")
    node.server.stop("immediate")
    for volume in node.volumes:
        output("mount", "-o", "remount,ro", volume.mount)
    done = node.cli("snapshot", "--tag", "crashed")
    is_status(done, "refused", "a server that crashed: refused")
    like(done.err, "not shut down cleanly: its state is 'in production'",
         "a server that crashed: message")
    for volume in node.volumes:
        output("mount", "-o", "remount,rw", volume.mount)
    node.server.start()
    node.server.stop()
    done = node.cli("snapshot", "--tag", "writable")
    is_status(done, "refused", "volumes mounted read-write: refused")
    is_(snap.tags(node), before, "nothing is visible")


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    box = Sandbox("t_snapshot_offline")
    volumes = [box.volume("pgdata", 400 * MIB), box.volume("pgwal", 400 * MIB, fs="xfs")]
    node = Node(box, volumes, wal_volume=volumes[1], provider="offline")
    node.start()
    node.server.pgbench_init(2)
    system_id = node.server.psql("select system_identifier from pg_control_system()")
    test_refused(node)
    test_read_only(node, system_id)
    test_unmounted(node, box, system_id)


run(main)
