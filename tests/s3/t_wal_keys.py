#!/usr/bin/env python3
"""Keys of the agent that the server's user cannot read: `tidemark check` says so, a restore finds
out before it touches anything, and [wal] credentials_file, that user's own, is the remedy.
check: build=release timeout=300"""
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from s3_node import World  # noqa: E402
from tm import *  # noqa: E402,F403


def give_wal_keys(world):
    """The same keys once more, in a file of the server's user."""
    path = world.place.credentials + ".wal"
    shutil.copy(world.place.credentials, path)
    os.chmod(path, 0o600)
    shutil.chown(path, "postgres")
    world.node.agent.stop()
    world.node.sections.setdefault("wal", {})["credentials_file"] = path
    world.node.write_conf()
    world.node.agent.start()


def main():
    s3.need_ceph()
    box = need_root() or Sandbox("s3walkeys")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    world = World(box, s3.ceph(box), "walkeys", proxy=False).start()
    is_status(world.snapshot("t1"), 0, "one file for root and the server's group")
    done = world.cli("check")
    is_status(done, 0, "with which a check passes") or diag(done.out)
    os.chmod(world.place.credentials, 0o600)
    os.chown(world.place.credentials, 0, 0)
    done = world.cli("check")
    is_status(done, "auth", "root's alone: a check fails")
    like(done.out, r"(?m)^FAILED archiving +the server's user 'postgres' cannot use the repository:"
         r" .*credentials.*\n +hint: .*\[wal\] credentials_file", "for whom, and the remedy")
    done = world.snapshot("t2")
    is_status(done, "auth", "so does a snapshot, with the reason of archive_command")
    like(done.err, "the server cannot archive: .*credentials", "in its text")
    done = world.restore("t1")
    is_status(done, "refused", "root's alone: the restore is refused")
    like(done.err, r"(?s)cannot fetch WAL.*hint: .*--wal-credentials-file", "with the remedy")
    is_(world.server.psql("select 1"), "1", "and the server was not touched")
    give_wal_keys(world)
    world.node.wait_archived(world.server.switch_wal())
    ok(True, "with keys of its own the server archives")
    is_status(world.cli("check"), 0, "and a check passes")
    is_status(world.restore("t1"), 0, "and is restored")
    world.check_rows("t1", "keys of its own")
    world.stop()


run(main)
