#!/usr/bin/env python3
"""A key that cannot delete, one that is revoked in the middle, a store that is full; and where keys
must not show up.
check: build=asan timeout=300"""
import glob
import os
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from s3_node import World  # noqa: E402
from tm import *  # noqa: E402,F403


def no_delete(box, store):
    """Snapshots and WAL with a key that cannot delete."""
    keys = store.user("agent", "read, write")
    world = World(box, store, "nodelete", keys=keys, proxy=False).start()
    is_status(world.snapshot("t1"), 0, "a snapshot without permission to delete")
    world.node.wait_archived(world.server.switch_wal())
    is_status(world.cli("verify", "t1"), 0, "is whole")
    first = world.place.keys_below()[0]
    is_(store.client(keys).delete("nodelete/" + first).code, "AccessDenied",
        "and the key really cannot delete")
    return world, keys


def leaks(world, secret):
    """Nowhere where others can see it."""
    needle = secret.encode()

    def holds(path):
        try:
            with open(path, "rb") as file:
                return needle in file.read()
        except OSError:
            return False
    pid = world.node.agent.pid()
    seen = [f"/proc/{p}/cmdline" for p in os.listdir("/proc") if p.isdigit()
            and holds(f"/proc/{p}/cmdline")]
    is_(seen, [], "the secret is in no process' arguments")
    ok(not holds(f"/proc/{pid}/environ"), "nor in the agent's environment")
    files = [p for top in (world.node.state_dir, world.box.join("log"), world.node.data)
             for p in glob.glob(top + "/**", recursive=True) if os.path.isfile(p) and holds(p)]
    is_(files, [], "nor in a log, a journal or the data directory")
    for path in ("/health", "/version", "/status"):
        ok(secret not in str(world.node.agent.api("GET", path)), f"nor in {path}")
    with open(world.place.credentials, "rb") as file:
        ok(needle in file.read(), "it is where it belongs")


def watch_arguments(world, secret, step):
    """step() while somebody looks at all processes: (its result, where the secret was seen)."""
    stop, seen = threading.Event(), set()

    def look():
        while not stop.is_set():
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{pid}/cmdline", "rb") as file:
                        args = file.read()
                except OSError:
                    continue
                if secret.encode() in args:
                    seen.add(args)
            stop.wait(0.005)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        return step(), seen
    finally:
        stop.set()
        thread.join()


def revoked(world, store, uid):
    """The key's user is suspended while packs are being stored."""
    world.change(20)
    done = []
    before = len(world.place.keys_below("pack/"))
    world.node.sections["tidemark"]["rate_limit"] = "8MiB"  # leaves time for the revocation
    world.node.write_conf()
    world.node.agent.stop()
    world.node.agent.start()
    thread = threading.Thread(target=lambda: done.append(world.snapshot("revoked")))
    thread.start()
    poll(lambda: thread.is_alive() and len(world.place.keys_below("pack/")) > before, 60,
         "a new pack", 0.02)
    store.suspend(uid)
    thread.join()
    is_status(done[0], "auth", "a key that is revoked in the middle ends the snapshot with 13")
    like(done[0].err, r"(?s)error: .*\nhint: ", "with a text and a hint")
    world.change(1)
    segment = world.server.switch_wal()
    failed = "select failed_count from pg_stat_archiver"
    poll(lambda: int(world.server.psql(failed)) > 0, 60, "a failed push")
    store.suspend(uid, False)
    is_(world.tags(), ["t1"], "nothing of it is listed")
    world.node.wait_archived(segment, 120)
    ok(True, "the segment is archived once the key works again")
    is_status(world.snapshot("again"), 0, "and a snapshot is taken")
    is_status(world.cli("verify", "again"), 0, "which is whole")


def fill_up(world):
    """Segments of about 14 MiB until one does not fit: how much is left of the quota depends on
    what the failed snapshot wrote and removed again. The name of that segment."""
    def refused():
        return "QuotaExceeded" in tail(world.server.log, 300)
    for _ in range(5):
        world.change(14)
        segment = world.server.switch_wal()
        archived = "select coalesce(last_archived_wal, '') from pg_stat_archiver"
        poll(lambda: refused() or world.server.psql(archived) >= segment, 60, "the push's end")
        if refused():
            break
    return segment


def full(box, store):
    """The store has no space left (a quota): 12, nothing listed, and on once there is space."""
    keys = store.user("small")
    store.quota("small", 48 << 20)
    world = World(box, store, "small", keys=keys, proxy=False, retry_timeout="5s").start()
    is_status(world.snapshot("t1"), 0, "there is space for one snapshot")
    with open(os.path.join(world.volume.mount, "ballast"), "wb") as file:
        file.write(os.urandom(60 << 20))  # on the volume, but not in the WAL
    start = time.monotonic()
    done = world.snapshot("t2")
    is_status(done, "store", "a full store ends a snapshot with 12")
    ok(time.monotonic() - start < 60, "soon")
    like(done.err, r"(?si)error: .*(full|quota|space).*hint: ", "which says that it is full")
    is_(world.tags(), ["t1"], "nothing of it is listed")
    segment = fill_up(world)
    like(tail(world.server.log, 300), r"tidemark-wal push .*QuotaExceeded\nhint: the store is full",
         "a push says so as well, and the server keeps the segment")
    done = world.snapshot("t2")
    is_status(done, "store", "so does a snapshot with 12: its WAL has nowhere to go")
    like(done.err, r"error: .*QuotaExceeded.*\nhint: the store is full",
         "and does not call it a server that does not archive")
    done = world.cli("check")
    is_status(done, "store", "a check, too")
    like(done.out, r"FAILED archiving +archiving of .* fails, last at .*: .*QuotaExceeded",
         "says why")
    store.quota("small", 4 << 30)
    store.gateway.kill()  # it caches the quota
    store.gateway.start()
    world.node.wait_archived(segment, 120)
    is_status(world.snapshot("t3"), 0, "with more space the WAL arrives, and a snapshot is taken")
    is_status(world.cli("verify", "t3"), 0, "and it is whole")
    world.stop()


def main():
    s3.need_ceph()
    box = need_root() or Sandbox("s3keys")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    store = s3.ceph(box)
    world, keys = no_delete(box, store)
    _, seen = watch_arguments(world, keys.secret, lambda: world.cli("list"))
    is_(seen, set(), "while commands run, no process has the secret in its arguments")
    leaks(world, keys.secret)
    revoked(world, store, "agent")
    world.stop()
    full(box, store)


run(main)
