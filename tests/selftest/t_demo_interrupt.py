#!/usr/bin/env python3
"""Ctrl-C, SIGTERM and kill -9 in the middle of the demo, a check of it that fails, a restore of it
that fails: nothing stays behind.
check: timeout=400"""
import glob
import os
import re
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
from sandbox import reap_stale  # noqa: E402

CASES = [("pgbench and a writer", signal.SIGINT), ("\\$ tidemark snapshot", signal.SIGINT),
         ("\\$ tidemark restore", signal.SIGTERM), ("\\$ tidemark restore", signal.SIGKILL)]


def demo(line, act, **env):
    """Runs the demo; act(process, its directory) is called when it prints line. Returns (its
    directory, exit status, what it printed)."""
    process = subprocess.Popen([os.path.join(SOURCE, "tests/demo.py")], text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True,
                               env={**os.environ, "TIDEMARK_DEMO_CHAPTERS": "1", **env})
    path, text = None, ""
    for output_line in process.stdout:
        text += output_line
        found = re.search(r"made below (\S+)", output_line)
        path = found.group(1) if found else path
        if line and re.search(line, output_line):
            act(process, path)
            line = None
    if not ok(line is None, "the demo came to the line"):
        diag(text)
    return path, process.wait(120), text


def nothing_left(path, name):
    ok(path and not os.path.exists(path), f"{name}: its directory is gone")
    left = mounts_below(path) + loops_below(path) + processes_below(path)
    is_(left, [], f"{name}: no mounts, loop devices or processes are left")


def test_interrupted(line, number):
    # As a terminal does it: the whole foreground group, servers and agent are not in it.
    path, status, _ = demo(line, lambda process, _: os.killpg(process.pid, number))
    name = f"{signal.Signals(number).name} at '{line}'"
    if number == signal.SIGKILL:
        is_(status, -number, f"{name}: the demo is gone")
        is_(reap_stale(), [], "the reaper cleans up")
    else:
        is_(status, 128 + number, f"{name}: the demo ends")
    nothing_left(path, name)


def test_wrong_row():
    """A check that fails: the story is told to its end."""
    path, status, text = demo("\\$ tidemark restore", lambda *_: None, TIDEMARK_DEMO_BREAK="1")
    is_(status, 1, "a failed check: the demo fails")
    like(text, r"WRONG:  orders is back with 19999 rows", "a failed check: it says so")
    like(text, r"\d+ checks, [1-9]\d* wrong", "a failed check: and counts it")
    nothing_left(path, "a failed check")


def test_no_wal():
    """A restore that fails: somebody has removed the WAL that the tag needs."""
    def sabotage(_process, path):
        found = glob.glob(path + "/repository1/wal/*/*/00000001/*")
        ok(len(found) > 1, f"there is WAL to be removed ({len(found)} objects)")
        for name in found:
            os.unlink(name)
    path, status, text = demo("Life goes on", sabotage)
    is_(status, 1, "a failed restore: the demo fails")
    like(text, r"The demo failed: tidemark restore before-release: exit status 15",
         "a failed restore: it says so")
    nothing_left(path, "a failed restore")


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent")
    for line, number in CASES:
        test_interrupted(line, number)
    test_wrong_row()
    test_no_wal()


run(main)
