#!/usr/bin/env python3
# check: build=release timeout=180
"""WAL stays in pg_wal until the repository has it, with PostgreSQL as the archiver and as the one
that wants to remove it: segments of 1 MiB, max_wal_size of two, a checkpoint after every few. The
spool's and state_dir's filesystem is full; the store is dead; the process that pushes ahead is
killed again and again. At no moment a segment is neither waiting in pg_wal nor in the repository,
and in the end a copy recovers from what was archived."""
import os
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from wal_lib import Archive, Copy, Primary, Pushers, name_of  # noqa: E402


class Watched:
    """A primary, its archive, and what of its WAL is where."""

    def __init__(self, box):
        self.box, self.archive = box, Archive(box)
        self.spool = box.mkdir("tiny", 0o777)
        box.mount("tmpfs", self.spool, "-t", "tmpfs", "-o", "size=4k,nr_inodes=1,mode=0777")
        self.server = Primary(box, self.archive, max_wal_size="2MB", min_wal_size="2MB",
                              checkpoint_timeout="1h", initdb=["--wal-segsize=1"])
        self.wal = os.path.join(self.server.data, "pg_wal")
        self.pushers = Pushers(self.server.data)
        box.before_clean.append(self.pushers.kill)
        self.lost, self.first = set(), self.number()
        self.repository = self.archive.path  # where it is, be it mounted or not

    def archive_by(self, command):
        self.server.psql(f"alter system set archive_command = '{command}'")
        self.server.reload()

    def full_command(self):
        """Everything that is ours and local lies on the full filesystem."""
        conf = self.box.write("wal.conf", conf_text({
            "tidemark": {"cluster": self.archive.cluster, "state_dir": self.spool},
            "repository": {"url": self.archive.url}, "wal": {"spool": self.spool}}))
        return f"{self.archive.wal} push %p --config={conf}"

    def waiting(self):
        status = os.path.join(self.wal, "archive_status")
        return {x[:24] for x in os.listdir(status) if x.endswith(".ready")
                and os.path.exists(os.path.join(self.wal, x[:24]))}

    def number(self):
        """Of the segment that is written to; at its very beginning still of the one before."""
        now = self.server.psql("select pg_walfile_name(pg_current_wal_lsn())")
        return int(now[8:16], 16) * 4096 + int(now[16:], 16)

    def finished(self):
        """Every segment that has ended since initdb, which does not archive."""
        return {name_of(n) for n in range(self.first, self.number())}

    def look(self):
        """Segments that are not in the repository. Those that are nowhere are noted: what does not
        wait any more has to be there from then on."""
        finished, waiting = self.finished(), self.waiting()
        stored = {name for _, _, names in os.walk(self.repository + "/wal") for name in names}
        self.lost |= finished - waiting - stored
        return finished - stored

    def write(self, megabytes):
        """WAL that checkpoints would like to remove."""
        for _ in range(0, megabytes, 4):
            self.server.fill(4)
            self.server.psql("checkpoint")
            self.look()
        self.server.switch_wal()
        self.server.psql("checkpoint")

    def failing(self):
        return self.server.psql("select last_failed_time > coalesce(last_archived_time,"
                                " '-infinity') from pg_stat_archiver") == "t"

    def settle(self, what):
        """Until everything is in the repository; the archiver sleeps for a minute after failures,
        and a reload wakes it."""
        def all_there():
            if self.failing():
                self.server.reload()
            return not self.look() or self.lost
        poll(all_there, 90, f"{what}: all segments in the repository", 0.5)
        is_(sorted(self.lost), [], f"{what}: nothing was lost, at no moment")


def test_full_spool(w):
    w.archive_by(w.full_command())
    w.write(24)
    w.settle("a full filesystem of spool and state_dir")
    ok(len(w.finished()) > 24, "that were many segments")
    is_(os.listdir(w.spool), [], "nothing had room there")
    is_(w.pushers.pids(), [], "not even the socket of a process that pushes ahead")


def dead_store(w, what, megabytes):
    """The repository's filesystem is not mounted: an empty directory. Returns its end."""
    aside = w.archive.path + ".aside"
    os.rename(w.archive.path, aside)
    w.repository = aside
    os.mkdir(w.archive.path)
    before = w.finished()
    w.write(megabytes)
    behind = w.finished() - before
    poll(w.failing, 30, "a failed push")
    ok(len(behind) > megabytes and behind <= w.waiting(),
       f"{what}: all {len(behind)} segments stay, after {megabytes // 4} checkpoints")
    is_(os.listdir(w.archive.path), [], f"{what}: nothing is written elsewhere")

    def end():
        os.rmdir(w.archive.path)
        os.rename(aside, w.archive.path)
        w.repository = w.archive.path
    return end


def test_dead_store(w):
    end = dead_store(w, "a dead store and a full spool", 16)
    end()
    w.settle("the store is back")


def test_killed(w):
    """Another process that pushes ahead dies every few milliseconds while a backlog is stored."""
    w.archive_by(w.archive.archive_command())
    end = dead_store(w, "a dead store", 40)
    killed, stop = set(), threading.Event()

    def kill():
        while not stop.wait(0.03):
            killed.update(w.pushers.pids())
            w.pushers.kill()
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        end()
        w.settle("kill -9 of the process again and again")
    finally:
        stop.set()
        thread.join()
    ok(killed, f"{len(killed)} of them were killed")


def main():
    need_root()
    box = Sandbox("walkept")
    w = Watched(box)
    base = w.server.base_backup("base")
    test_full_spool(w)
    test_dead_store(w)
    test_killed(w)
    rows = w.server.psql("select count(*), sum(hashtext(x)::bigint) from filler")
    w.settle("the end")
    copy = Copy(box, base, "copy", w.archive.restore_command())
    w.server.stop()
    copy.start()
    copy.wait_ready()
    is_(copy.psql("select count(*), sum(hashtext(x)::bigint) from filler"), rows,
        "a copy recovers from it: every row")
    copy.stop()


run(main)
