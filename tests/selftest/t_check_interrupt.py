#!/usr/bin/env python3
"""`make check` interrupted while a test has volumes, a server and an agent: Ctrl-C on its terminal,
and SIGTERM to make alone. It waits until the test has cleaned up, counts itself as failed, and
nothing stays behind.
check: timeout=400"""
import os
import pty
import re
import signal
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
from sandbox import sandboxes  # noqa: E402

TEST = "pg/t_restore_recycled.py"


def parent(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def descends(pid, ancestor):
    while pid > 1 and pid != ancestor:
        pid = parent(pid)
    return pid == ancestor


class Check:
    """`make check` of one test on a terminal of its own, which somebody reads."""

    def __init__(self):
        environ = {k: v for k, v in os.environ.items()
                   if k not in ("TESTS", "MAKEFLAGS", "MAKELEVEL", "TIDEMARK_CAMPAIGN")}
        self.text, self.status = "", None
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(SOURCE)
            os.execvpe("make", ["make", "check", f"TESTS={TEST}"], environ)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        """Until the last process that has the terminal open has ended."""
        while True:
            try:
                part = os.read(self.terminal, 65536)
            except OSError:  # EIO: nobody has it open any more
                return
            self.text += part.decode("utf-8", "replace").replace("\r\n", "\n")

    def ended(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def wait(self):
        """Also when nothing has worked: it is not left behind."""
        try:
            poll(self.ended, 120, "the end of make")
        except TimeoutError:
            kill_pid(self.pid, signal.SIGTERM, 100)
            raise
        self.reader.join(60)
        os.close(self.terminal)


def find_sandbox(make):
    """The sandbox of the test that runs below make, once everything is in it: (path, reports)."""
    for path in sandboxes():
        try:
            with open(os.path.join(path, ".owner"), encoding="ascii") as file:
                owner = int(file.read().split()[0])
            with open(f"/proc/{owner}/environ", "rb") as file:
                reports = re.search(rb"ASAN_OPTIONS=log_path=([^:]*)/report", file.read())
        except (OSError, ValueError, IndexError):
            continue
        if descends(owner, make) and reports and mounts_below(path, owner) and loops_below(path):
            names = {program(pid) for pid in processes_below(path)}
            if {"postgres", "tidemark-agent"} <= names:
                return path, reports.group(1).decode()
    return None


def program(pid):
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return ""


def test_interrupt(name, interrupt):
    check = Check()
    try:
        def found():
            if check.ended():
                raise RuntimeError(f"make ended: {check.text}")
            return find_sandbox(check.pid)
        path, reports = poll(found, 240, f"{name}: a test with all its parts")
        pids = processes_below(path)
        interrupt(check)
    finally:
        check.wait()
    isnt(check.status, 0, f"{name}: make says that it failed ({check.status})")
    text = check.text
    if not like(text, r"stopping: the running tests clean up", f"{name}: says what it does"):
        diag(text)
    like(text, r"Failed: stopped by signal \d+\n", f"{name}: counts itself as failed")
    like(text, r"\n\d+ passed, 1 failed, 0 skipped\n", f"{name}: the last line is there")
    ok(not os.path.exists(path), f"{name}: the test's directory is gone")
    ok(not os.path.exists(reports), f"{name}: and that of its reports")
    is_(loops_below(path) + processes_below(path), [], f"{name}: no loop device, no process")
    is_([pid for pid in pids if not process_gone(pid)], [], f"{name}: all {len(pids)} ended")


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent")
    need_tools("make")
    test_interrupt("Ctrl-C", lambda check: os.write(check.terminal, b"\x03"))
    test_interrupt("SIGTERM", lambda check: os.kill(check.pid, signal.SIGTERM))


run(main)
