#!/usr/bin/env python3
# check: build=release timeout=120
"""The first snapshot into a new repository after a failover: the server is on timeline 2, and its
history file went to the archive that it had before."""
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import record_of  # noqa: E402
import snapshots as snap  # noqa: E402


def fail_over(node):
    """The server as a standby, promoted; its history file arrives in the repository of today."""
    server = node.server
    server.stop()
    signal_file = os.path.join(node.data, "standby.signal")
    with open(signal_file, "w", encoding="ascii"):
        pass
    output("chown", "postgres:", signal_file)
    server.start()
    server.psql("select pg_promote()")
    server.wait_ready()
    is_(server.timeline(), 2, "the server is on timeline 2")
    node.wait_archived(server.switch_wal())


def history_path(node, name="00000002.history"):
    found = output("find", snap.repository(node), "-name", name).split()
    return found[0] if found else None


def test_new_repository(node, box):
    ok(history_path(node), "the old repository has the history")
    node.repository = node.sections["repository"]["url"] = make_repository(box, "second")
    node.write_conf()
    is_status(node.cli("init"), 0, "a second repository")
    done = node.cli("snapshot", "--tag", "t1")
    is_status(done, 0, "the first snapshot there")
    ok(history_path(node), "the snapshot pushed the history")
    is_(record_of(node, "t1")["postgresql"]["timeline"], 2, "the snapshot is of timeline 2")
    is_status(node.cli("verify", "t1"), 0, "verify finds all of it")
    is_status(node.cli("restore", "--dry-run", "t1"), 0, "it can be restored")


def test_lost_history(node, box):
    """A plan without the history says where it may come from."""
    path = history_path(node)
    os.rename(path, box.join("lost"))
    done = node.cli("restore", "--dry-run", "t1")
    is_status(done, "missing", "a lost history: exit status")
    like(done.err, r"00000002\.history", "a lost history: it is named")
    like(done.err, r"hint: .*tidemark-wal push pg_wal/", "a lost history: hint")
    shutil.move(os.path.join(node.data, "pg_wal/00000002.history"), box.join("kept"))
    done = node.cli("snapshot", "--tag", "t2")
    is_status(done, "missing", "a history that nobody has: refused before the checkpoint")
    like(done.err, r"00000002\.history.* is not in the repository.*pg_wal", "it says what lacks")
    like(done.err, "hint: .*tidemark-wal push", "and where it may come from")


def main():
    box = need_root() or Sandbox("snapshot-timeline")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    node = Node(box, [box.volume("pgdata", 448 * MIB)],
                options={"wal": {"archive_timeout": "5s"}, "tidemark": {"freeze_deadline": "20s"}})
    node.start(agent=False)
    fail_over(node)
    test_new_repository(node, box)
    test_lost_history(node, box)
    node.server.stop()


if __name__ == "__main__":
    run(main)
