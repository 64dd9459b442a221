#!/usr/bin/env python3
"""The main path on real object stores: one server, whose repository is in turn a bucket of Ceph
and of Swift (each plain and path style; TLS and virtual-host style, Ceph's encrypted). Then a host
that has nothing but the bucket.
check: build=asan timeout=500"""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from s3_node import Place, World  # noqa: E402
from tm import *  # noqa: E402,F403


def move(world, place):
    """The same server archives and is saved somewhere else from now on."""
    world.node.agent.stop()
    world.place = place
    world.node.sections["repository"] = place.section()
    world.node.sections.pop("wal", None)
    world.node.init_options = ()
    world.node.repository = place.url
    world.node.write_conf()
    if place.sealed:
        world.node.encrypt()
    is_status(world.cli("init", *world.node.init_options), 0, f"{place.what}: init")
    world.node.agent.start()


def stored(world, tag):
    record = json.loads(world.cli("show", tag, "--json").out)
    record = record.get("record", record)
    return sum(volume["bytes_stored"] for volume in record["volumes"])


def path_of(world, what):
    """Snapshot, incremental, list, verify, restore of both, WAL."""
    for tag in ("t1", "t2"):
        is_status(world.snapshot(tag), 0, f"{what}: snapshot {tag}")
        world.change(2)
    is_(world.tags(), ["t1", "t2"], f"{what}: list shows both")
    sizes = [stored(world, tag) for tag in ("t1", "t2")]
    # What PostgreSQL wrote meanwhile, WAL on the same volume as well, may be most of the volume.
    ok(sizes[1] < sizes[0], f"{what}: the second one stores what changed ({sizes})")
    is_status(world.cli("verify", "t2"), 0, f"{what}: verify")
    if world.place.sealed:
        rotate(world, what)
    else:  # the other reader takes minutes to decrypt it
        world.read_back("t2", what)
    world.server.psql("drop table orders")
    if not is_status(world.restore("t1"), 0, f"{what}: restore"):
        diag(tail(world.node.agent.log))
    world.check_rows("t1", what)
    world.change(1)
    world.node.wait_archived(world.server.switch_wal())
    kinds = sorted({key.split("/")[0] for key in world.place.keys_below()})
    is_([k for k in kinds if k != "key"],
        ["pack", "snapshot", "table", "tidemark.repo", "tidemark.repo.copy", "volume", "wal"],
        f"{what}: all of it is in the bucket, and nothing else")
    is_("key" in kinds, world.place.sealed, f"{what}: a key ring, if it is encrypted")


def rotate(world, what):
    """New keys; then another key file. The server goes on to archive with the old ones' file."""
    is_status(world.cli("key", "rotate"), 0, f"{what}: rotate")
    new = world.box.join("new.key")
    is_status(world.cli("key", "generate", new), 0, f"{what}: another key file")
    is_status(world.cli("key", "rewrap", new), 0, f"{what}: takes the place of the first")
    is_(world.place.keys_below("key/"), ["key/00000003", "key/00000003.copy"],
        f"{what}: older key rings are gone")
    is_status(world.cli("list"), "auth", f"{what}: the old key file is good for nothing")
    os.rename(new, world.node.key)
    os.unlink(world.node.wal_key)
    is_status(world.cli("key", "wal", world.node.wal_key), 0, f"{what}: with its file for WAL")
    is_status(world.snapshot("t3"), 0, f"{what}: a snapshot with the new keys")
    is_status(world.cli("verify", "t3"), 0, f"{what}: verify of old and new objects")


def replay(world, what):
    """The WAL of many segments comes back through tidemark-wal get, with prefetch."""
    for _ in range(4):
        world.change(10)
        last = world.server.switch_wal()
    world.node.wait_archived(last)
    rows = world.rows()
    timeline = world.server.timeline()
    done = world.restore("t1", "--target=latest", f"--target-timeline={timeline}")
    is_status(done, 0, f"{what}: restore to the end of the WAL")
    world.server.wait_ready()
    is_(world.rows(), rows, f"{what}: every segment was replayed")


def empty_host(world, what):
    """A blank device, the URL, the key and PostgreSQL's programs."""
    world.node.agent.stop()
    world.server.stop()
    world.box.umount(world.volume.mount)
    world.box.unloop(world.volume.device)
    os.rmdir(world.volume.mount)
    blank = world.box.loop(world.box.image("blank.img", 700 * MIB))
    place = world.place
    done = run_program(os.path.join(world.node.programs, "tidemark"), "restore", "--yes",
                       f"--repository={place.url}", f"--endpoint={place.endpoint}",
                       f"--credentials-file={place.credentials}",
                       f"--device={world.volume.name}:{blank}", "t1",
                       TIDEMARK_TIDEMARK_STATE_DIR=world.box.join("empty-state"),
                       TIDEMARK_WAL_ARCHIVE_TIMEOUT="20s")
    is_status(done, 0, f"{what}: restore on an empty host")
    world.check_rows("t1", f"{what}, empty host")
    world.server.stop("immediate", check=False)
    world.box.umount(world.volume.mount)


def places(box, ceph):
    yield Place(box, ceph, "vhost", "deep/er", what="Ceph, TLS, virtual-host style, encrypted",
                endpoint=f"https://{ceph.vhost_domain}:{ceph.gateway.tls_port}", sealed=True,
                addressing="virtual")
    if s3.missing("swift"):
        skip(s3.missing("swift"))
        return
    swift = s3.swift(box, tls=True)
    yield Place(box, swift, "swift", what="Swift")
    yield Place(box, swift, "swift-vhost", "deep/er", what="Swift, TLS, virtual-host style",
                endpoint=f"https://{swift.vhost_domain}:{swift.tls_port}", addressing="virtual")


def main():
    s3.need_ceph()
    box = need_root() or Sandbox("s3path")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    ceph = s3.ceph(box)
    world = World(box, ceph, "plain", proxy=False, size=600 << 20).start()
    path_of(world, "Ceph")
    replay(world, "Ceph")
    first, rows = world.place, world.rows_of["t1"]
    for place in places(box, ceph):
        move(world, place)
        path_of(world, place.what)
    world.place, world.rows_of["t1"] = first, rows
    empty_host(world, "Ceph")


run(main)
