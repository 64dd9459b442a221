#!/usr/bin/env python3
"""A store whose disks are full. Ceph does not refuse then, as it does for a quota: whoever writes
or removes waits until there is space; whoever reads is served until 100 MiB of writes wait in the
gateway (objecter_inflight_op_bytes), then waits as well. A snapshot and a push of WAL end at their
deadline, the server keeps its WAL, and with more space all goes on.
check: build=asan timeout=400"""
import os
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from faultproxy import Rule  # noqa: E402
from s3_node import World  # noqa: E402
from tm import *  # noqa: E402,F403

RETRY_S = 8


def in_time(what, step):
    start = time.monotonic()
    done = step()
    seconds = time.monotonic() - start
    ok(seconds < RETRY_S + 90, f"{what}: ends after {seconds:.0f} s, not when there is space")
    return done


def filled_by_packs(world, ceph):
    """The first packs fill the disk."""
    with open(os.path.join(world.volume.mount, "ballast"), "wb") as file:
        file.write(os.urandom(120 << 20))
    # The OSD looks at its disk once a second: packs take longer, and what follows them waits.
    world.proxy.rules(Rule("^PUT .*pack/", "rate", bps=8e6),
                      Rule("^PUT .*(table|volume|snapshot)/", "delay", ms=3000))
    ceph.room(30 << 20)
    done = in_time("packs that fill the disk", lambda: world.snapshot("t2"))
    world.proxy.rules()
    ok(ceph.is_full(), "the store is full")
    is_status(done, "store", "the snapshot that filled it ends with 12")
    like(done.err, r"(?s)error: .*gave up after .*\nhint: ", "with a text and a hint")


def archiving(world):
    """The name of the segment that waits."""
    def failed():
        return int(world.server.psql("select failed_count from pg_stat_archiver"))
    before = failed()
    world.change(3)
    segment = world.server.switch_wal()
    poll(lambda: failed() > before, 120, "a push that gives up")
    like(tail(world.server.log, 300), r"error: tidemark-wal push [^\n]*gave up[^\n]*\nhint: ",
         "a push gives up with a text and a hint")
    return segment


def space_again(world, ceph, segment):
    ceph.room()
    poll(lambda: not ceph.is_full(), 60, "space")
    world.node.wait_archived(segment, 120)
    ok(True, "with more space the segment arrives")
    is_(world.tags(), ["t1"], "nothing of the snapshot is listed")
    is_status(world.snapshot("t2"), 0, "it is taken now, under the same tag")
    is_status(world.cli("verify", "t2"), 0, "and is whole")


def reading(world, ceph):
    """No write waits."""
    ceph.room(0)
    poll(ceph.is_full, 60, "a full store")
    is_(world.tags(), ["t1", "t2"], "a full store can be listed")
    is_status(world.cli("verify", "t2"), 0, "and read")
    ceph.room()
    poll(lambda: not ceph.is_full(), 60, "space")


def full_at_the_commit(world, ceph):
    """The last PUT, the record's, is the one that waits. It may be done later, when nobody asks any
    more: the snapshot is whole then. In no case is there half of one."""
    world.change(2)
    world.proxy.rules(Rule("^PUT .*/snapshot/", "delay", ms=8000))
    world.proxy.forget()

    def fill():
        poll(lambda: world.proxy.requests("^PUT .*/volume/"), 120, "manifests", 0.01)
        ceph.room(0)
        poll(ceph.is_full, 60, "a full store")
    filler = threading.Thread(target=fill, daemon=True)
    filler.start()
    done = in_time("a disk that is full at the commit", lambda: world.snapshot("t3"))
    filler.join()
    world.proxy.rules()
    is_status(done, "store", "full at the commit: 12")
    like(done.err, "may still arrive", "it says that the outcome is unknown")
    like(done.err, "hint: .*tidemark list.* 't3'.*takes requests and does not answer",
         "and where to look")
    ceph.room()
    poll(lambda: not ceph.is_full(), 60, "space")
    is_status(world.snapshot("t4"), 0, "the next snapshot is taken")
    tags = world.tags()
    ok(set(tags) - {"t3"} == {"t1", "t2", "t4"}, f"what was committed is listed ({tags})")
    for tag in tags:
        is_status(world.cli("verify", tag), 0, f"and {tag} is whole")


def main():
    s3.need_ceph()
    box = need_root() or Sandbox("s3full")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    ceph = s3.ceph(box)
    world = World(box, ceph, "full", retry_timeout=f"{RETRY_S}s", size=700 << 20,
                  options={"wal": {"archive_timeout": "20s"}}).start()
    is_status(world.snapshot("t1"), 0, "a snapshot while there is space")
    filled_by_packs(world, ceph)
    segment = archiving(world)
    space_again(world, ceph, segment)
    reading(world, ceph)
    full_at_the_commit(world, ceph)


run(main)
