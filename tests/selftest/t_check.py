#!/usr/bin/env python3
"""How `make check` counts: what has to fail does fail."""
import contextlib
import io
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import check  # noqa: E402
from tm import is_, ok, run  # noqa: E402

CASES = [
    ("all good", "ok 1 - a\nok 2\n1..2\n", 0, (2, 0, 0)),
    ("a failure", "ok 1 - a\nnot ok 2 - b\n1..2\n", 1, (1, 1, 0)),
    ("a skip", "ok 1 # SKIP no loop devices\nok 2\n1..2\n", 0, (1, 0, 1)),
    ("all skipped", "1..0 # SKIP not root\n", 0, (0, 0, 1)),
    ("no output", "", 0, (0, 1, 0)),
    ("no plan: it died", "ok 1\n", 0, (1, 1, 0)),
    ("fewer than planned", "1..3\nok 1\nok 2\n", 0, (2, 1, 0)),
    ("exit status without a failed test", "ok 1\n1..1\n", 139, (1, 1, 0)),
    ("a sanitizer report", "ok 1\n1..1\n", "sanitizer report", (1, 1, 0)),
    ("stopped by the time-out", "ok 1\n", "stopped after 300 s", (1, 1, 0)),
    ("bail out", "ok 1\nBail out! no binaries\n", 255, (1, 2, 0)),
]


def test_counting():
    for name, text, status, want in CASES:
        totals = check.Totals()
        with contextlib.redirect_stdout(io.StringIO()):
            check.report(totals, name, text, status, 0.0)
        is_((totals.passed, totals.failed, totals.skipped), want, name)


def run_shell(script, timeout_s=20):
    runner = check.Runner()
    return runner.run(check.Test("shell", ["sh", "-c", script], timeout_s=timeout_s))


def test_running():
    text, status, _ = run_shell("echo ok 1; echo $TIDEMARK_BUILD; exit 3")
    ok(status == 3 and text.endswith("build/release\n"), "status and output of a program")
    _, status, seconds = run_shell("sleep 60 & sleep 60", 1)
    ok("stopped after" in str(status) and seconds < 30, "a program that hangs is stopped")
    _, status, _ = check.Runner().run(check.Test("no program", [os.path.abspath(__file__) + "/x"]))
    ok("Not a directory" in str(status), "a program that cannot be executed is one failure")
    text, status, _ = run_shell('f=${ASAN_OPTIONS#log_path=}; echo leak > "${f%%:*}.1"; echo 1..0')
    ok(status == "sanitizer report" and "leak" in text, "a report of a daemon is found")


def main():
    test_counting()
    test_running()


run(main)
