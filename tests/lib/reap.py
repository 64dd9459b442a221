#!/usr/bin/env python3
"""Cleans what test runs that were killed (SIGKILL, power cut, CI time-out) left on this machine:
mounts, loop devices, servers, directories. Sandboxes of runs that are alive are not touched.
`make check` and `make demo` run it first and last."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sandbox  # noqa: E402

if __name__ == "__main__":
    sandbox.become_root()
    remains = sandbox.reap_stale(lambda text: print(text, file=sys.stderr))
    for item in remains:
        print(f"could not remove {item}", file=sys.stderr)
    sys.exit(1 if remains else 0)
