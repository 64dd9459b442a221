#!/usr/bin/env python3
"""Ctrl-C, SIGTERM and kill -9 in the middle of the demo: nothing stays behind.
check: timeout=400"""
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


def interrupted(line, number):
    """The demo is stopped when it prints line; returns (sandbox, exit status)."""
    process = subprocess.Popen([os.path.join(SOURCE, "tests/demo.py")], text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True,
                               env={**os.environ, "TIDEMARK_DEMO_CHAPTERS": "1"})
    path, text = None, ""
    for output_line in process.stdout:
        text += output_line
        found = re.search(r"made below (\S+)", output_line)
        path = found.group(1) if found else path
        if re.search(line, output_line):
            # As a terminal does it: the whole foreground group, servers and agent are not in it.
            os.killpg(process.pid, number)
            break
    else:
        diag(text)
    process.stdout.read()
    return path, process.wait(120)


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent")
    for line, number in CASES:
        path, status = interrupted(line, number)
        name = f"{signal.Signals(number).name} at '{line}'"
        if number == signal.SIGKILL:
            is_(status, -number, f"{name}: the demo is gone")
            is_(reap_stale(), [], "the reaper cleans up")
        else:
            is_(status, 128 + number, f"{name}: the demo ends")
        ok(path and not os.path.exists(path), "its directory is gone")
        left = mounts_below(path) + loops_below(path) + processes_below(path)
        is_(left, [], "no mounts, loop devices or processes are left")


run(main)
