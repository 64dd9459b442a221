#!/usr/bin/env python3
"""Pushing ahead (`tidemark-wal push` with [wal] push_ahead), without a server: this plays the
archiver. After every call that ends with 0 the very bytes must be in the repository, whatever
happens to the process that pushes ahead."""
import glob
import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from wal_lib import (Archive, Archiver, Pushers, SealedArchive, name_of,  # noqa: E402
                     segment)

HISTORY = b"1\t0/100000\tno reason\n"


def fresh(box, name, kind=Archive, **options):
    archive = kind(box, name + "-repo")
    archiver = Archiver(box, archive, name, **options)
    box.before_clean.append(Pushers(archiver.data.path).kill)
    return archiver


def test_ahead(box):
    """Many wait: the first call has the rest pushed, which is then acknowledged at once. Into an
    encrypted repository."""
    a = fresh(box, "ahead", SealedArchive)
    a.ready(1, 2)
    is_(a.all(), [], "two files: pushed")
    is_(a.pushers(), [], "one by one: no process is started for them")
    a.ready(*range(3, 30))
    is_status(a.call(name_of(3)), 0, "27 files: the first call")
    poll(lambda: len(a.pushers()) == 1, 30, "the process")
    ok(True, "starts the process")
    poll(lambda: len(a.stored()) == 29, 30, "the others in the repository")
    ok(True, "which stores all of them without being asked")
    os.chmod(a.archive.path, 0)
    running = a.start(name_of(4))
    is_(running.wait(30), 0, "what it has stored is acknowledged without the repository")
    os.chmod(a.archive.path, 0o2770)
    a.end(name_of(4), running)
    is_(a.all(), [], "so is the rest")
    is_(len(a.pushers()), 1, "by one process")
    a.data.write("pg_wal/00000002.history", HISTORY)
    a.ready(30, "00000002.history")
    is_(a.all(), [], "history files too, first")
    is_(a.wrong, [], "every acknowledged file is in the repository")
    with open(glob.glob(f"{a.archive.path}/wal/main/*/*/{name_of(5)}")[0], "rb") as file:
        is_(file.read()[16:20], bytes([2, 0, 0, 0]), "sealed with the key of WAL")
    return a


def test_concurrent(box):
    a = fresh(box, "concurrent")
    a.ready(*range(1, 13))
    running = [(name, a.start(name)) for name in a.waiting()]
    is_([a.end(*x).status for x in running], [0] * 12, "twelve calls at the same time")
    ok(len(a.pushers()) <= 1, "at most one process")
    is_(a.wrong, [], "every acknowledged file is in the repository")


def test_changed(box):
    """An acknowledgement is of a file, not of a name."""
    a = fresh(box, "changed")
    a.ready(*range(1, 9))
    is_status(a.call(name_of(1)), 0, "the first of eight")
    poll(lambda: len(a.stored()) == 8, 30, "all eight in the repository")
    pids = a.pushers()
    os.utime(a.path(name_of(3)))
    is_status(a.call(name_of(3)), 0, "the same bytes with other times: looked at anew, and fine")
    before = os.stat(a.path(name_of(4)))
    with open(a.path(name_of(4)), "r+b") as file:
        file.seek(5000)
        file.write(b"other")
    os.utime(a.path(name_of(4)), ns=(before.st_atime_ns, before.st_mtime_ns))
    done = a.call(name_of(4))
    is_status(done, "refused", "other bytes in the same file, its mtime put back: not acknowledged")
    like(done.err, "the archive holds another", "and it says why")
    os.unlink(a.path(name_of(5)))
    a.data.write("pg_wal/" + name_of(5), segment(5, fill=5))
    is_status(a.call(name_of(5)), "refused", "another file under the same name: not acknowledged")
    spool = os.path.join(a.data.path, "pg_wal/tidemark-spool")
    other = Archiver(box, a.archive, "changed-other")
    other.ready(6, fill=6)
    os.symlink(spool, os.path.join(other.data.path, "pg_wal/tidemark-spool"))
    is_status(other.call(name_of(6)), "refused", "another server's, through the same spool")
    other = fresh(box, "changed-2")
    other.data, other.status = a.data, a.status
    is_status(other.call(name_of(6)), 0, "another repository: the process of the first one is not "
              "believed, it is pushed there")
    ok(pids and set(pids) <= set(a.pushers()), "all of it with the first process alive")
    is_(a.wrong + other.wrong, [], "every acknowledged file is in its repository")


def test_refused_first(box):
    """A server that must not archive here leaves nothing but what it would have left one by one."""
    a = fresh(box, "conflict")
    a.ready(1)
    is_(a.all(), [], "somebody has taken the name of the first segment")
    a.ready(*range(1, 12), fill=9)
    done = a.call(name_of(1))
    is_status(done, "refused", "another server with eleven files: its first is refused")
    like(done.err, r"error: tidemark-wal push 0{7}10{15}1: .*holds another.*\nhint: ",
         "what the process found is told by archive_command, with the hint")
    report = os.path.join(a.data.path, "pg_wal/tidemark-spool/push-failed")
    ok(os.path.exists(report), "and left for the agent")
    poll(lambda: not a.pushers(), 30, "the end of the process")
    is_(a.stored(), [name_of(1)], "nothing of the others was stored")
    a = fresh(box, "history")
    a.data.write("pg_wal/00000002.history", b"garbage\n")
    a.ready("00000002.history", *range(1, 6))
    is_status(a.call("00000002.history"), "refused", "a history file that is none")
    poll(lambda: not a.pushers(), 30, "the end of the process")
    is_(a.stored(), [], "no segment is stored before the history file ahead of it")


def test_outage(box):
    a = fresh(box, "outage")
    a.ready(*range(1, 20))
    is_status(a.call(name_of(1)), 0, "the first of 19")
    poll(lambda: len(a.stored()) == 19, 30, "the rest")
    aside = a.archive.path + ".aside"
    os.rename(a.archive.path, aside)
    os.mkdir(a.archive.path)
    a.ready(*range(20, 40))
    done = a.call(name_of(20))
    is_status(done, "store", "an empty directory in the repository's place: the next one fails")
    like(done.err, "error: tidemark-wal push", "and says so")
    is_(os.listdir(a.archive.path), [], "nothing is written there")
    is_status(a.call(name_of(20)), "store", "again")
    os.rmdir(a.archive.path)
    os.rename(aside, a.archive.path)
    is_(a.all(), [], "once it is back, all are archived")
    is_(a.wrong, [], "every acknowledged file is in the repository")
    ok(not os.path.exists(os.path.join(a.data.path, "pg_wal/tidemark-spool/push-failed")),
       "and no report of a failure is left")


def test_no_spool(box):
    """Nowhere to put even a socket: one by one, nothing is dropped nor wrongly acknowledged."""
    point = box.mkdir("spool", 0o777)
    box.mount("tmpfs", point, "-t", "tmpfs", "-o", "size=4k,nr_inodes=1,mode=0777")
    a = fresh(box, "full", spool=point)
    a.ready(*range(1, 9))
    is_(a.all(), [], "a full filesystem of the spool: everything is archived")
    is_(a.pushers(), [], "without the process")
    is_(a.waiting(), [], "nothing waits any more")
    box.umount(point)
    a.options = {"spool": "/proc/tidemark-no-such-directory"}
    a.ready(*range(9, 16))
    is_(a.all(), [], "a spool that cannot be made: the same")
    is_(a.wrong, [], "every acknowledged file is in the repository")
    is_(a.stored(), [name_of(n) for n in range(1, 16)], "in all: every one")


def test_kills(box):
    """kill -9 of the process at its 1st, 2nd, … step, until one lives."""
    archive = Archive(box, "kills-repo")
    wrong, killed, files = [], 0, 12 if CAMPAIGN else 5
    for step in range(1, 200):
        a = Archiver(box, archive, f"kills-{step}")
        first = step * 20
        a.ready(*range(first, first + files))
        failed = a.all(TIDEMARK_TEST_AHEAD_KILL=str(step))
        wrong += a.wrong + [f"step {step}: status {x}" for x in failed]
        alive = a.pushers()
        Pushers(a.data.path).kill()
        if alive:
            break
        killed += 1
    is_(wrong, [], f"killed at each of {killed} steps: every call ended well, and rightly")
    ok(killed >= files, "a step for each file, at least: a successor may end what is left")
    is_(len(a.stored()), files * (killed + 1), "nothing is missing")
    sockets = [x for x in os.listdir(os.path.join(a.data.path, "pg_wal/tidemark-spool"))]
    is_(len(sockets), 1, "a killed process leaves its socket")
    a.ready(*range(1, 8))
    is_(a.all(), [], "which does not hinder the next one")
    is_(len(a.pushers()), 1, "that there is")
    Pushers(a.data.path).kill()


def test_hanging(box):
    """A process that is stopped: the call does it alone. Returns what ends the test, later."""
    a = fresh(box, "hanging")
    a.ready(*range(1, 30))
    is_status(a.call(name_of(1)), 0, "the first of 29")
    for pid in a.pushers():
        os.kill(pid, signal.SIGSTOP)
    a.ready(30)
    running = a.start(name_of(30))

    def finish():
        is_status(a.end(name_of(30), running), 0, "a process that hangs is not waited for")
        is_(a.wrong, [], "and the file is in the repository")
        Pushers(a.data.path).kill()
    return finish


def test_server_end(box):
    """With the server the process ends, or pg_wal could not be unmounted."""
    a = fresh(box, "ending")
    with subprocess.Popen(["sleep", "300"]) as postmaster:
        a.data.write("postmaster.pid", f"{postmaster.pid}\n".encode())
        a.ready(*range(1, 6))
        is_status(a.call(name_of(1)), 0, "the first of five")
        pid = a.pushers()[0]
        is_({os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (1, 2)}, {"/dev/null"},
            "the process has none of the server's descriptors")
        postmaster.kill()
        postmaster.wait()
        poll(lambda: process_gone(pid), 9, "the end of the process")
    ok(True, "it ends with the server")
    is_(os.listdir(os.path.join(a.data.path, "pg_wal/tidemark-spool")), [],
        "and takes its socket along")
    a.options = {"push-ahead": 0}
    os.unlink(os.path.join(a.data.path, "postmaster.pid"))
    is_(a.all(), [], "push-ahead = 0: archived")
    a.ready(*range(10, 20))
    is_(a.all(), [], "however many wait")
    is_(a.pushers(), [], "without such a process")


def main():
    need_root()
    box = Sandbox("walasync")
    first = test_ahead(box)
    finish = test_hanging(box)
    test_concurrent(box)
    test_changed(box)
    test_refused_first(box)
    test_outage(box)
    test_no_spool(box)
    test_server_end(box)
    test_kills(box)
    finish()
    poll(lambda: not first.pushers(), 30, "the end of a process that nobody asks")
    ok(True, "a process that nobody asks any more has ended")
    is_(os.listdir(os.path.join(first.data.path, "pg_wal/tidemark-spool")), [], "with its socket")


run(main)
