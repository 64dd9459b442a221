"""What integration tests are made of. Python 3 standard library only.

    #!/usr/bin/env python3
    import os, sys
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
    from tm import *

    def main():
        box = need_root() or Sandbox("snapshot")       # cleaned at exit, whatever happens
        volume = box.volume("pgdata", 512 * MIB)        # loop device, ext4, mounted
        node = Node(box, volumes=[volume])              # repository, conf, server, agent
        node.start()
        is_(node.cli("snapshot", "--tag", "t1").status, 0, "a snapshot is taken")

    run(main)

TAP goes to stdout: ok(), is_(), isnt(), like(), skip(), diag(), bail(). run() reports an exception
as a failed test and prints the plan. Binaries come from $TIDEMARK_BUILD (default build/release).
TIDEMARK_CAMPAIGN=1 asks for the long loops, TIDEMARK_SEED for one seed, TIDEMARK_KEEP=1 keeps the
sandbox for a look.
"""
import ctypes
import os
import random
import re
import shutil
import subprocess
import sys
import traceback

from sandbox import (Sandbox, Volume, become_root, kill_pid, loops_below,  # noqa: F401
                     mounts_below, output, poll, process_gone, process_start, processes_below,
                     thaw)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("TIDEMARK_BUILD") or os.path.join(SOURCE, "build/release"))
CAMPAIGN = os.environ.get("TIDEMARK_CAMPAIGN") == "1"
PG_BIN = os.environ.get("TIDEMARK_PG_BIN") or "/usr/lib/postgresql/15/bin"

# Exit statuses of every program (README, "Exit statuses").
EXIT = {"ok": 0, "usage": 2, "config": 10, "device": 11, "store": 12, "auth": 13, "corrupt": 14,
        "missing": 15, "postgres": 16, "busy": 17, "cancelled": 18, "refused": 19, "partial": 20,
        "internal": 70}

# --- TAP ------------------------------------------------------------------------------------------
_tap = {"count": 0, "failed": 0, "on_fail": []}


def diag(text):
    for line in str(text).splitlines() or [""]:
        print("# " + line, flush=True)


def ok(cond, name):
    _tap["count"] += 1
    print(f"{'' if cond else 'not '}ok {_tap['count']} - {name}", flush=True)
    if not cond:
        _tap["failed"] += 1
        frames = [f for f in traceback.extract_stack() if not f.filename.endswith("lib/tm.py")]
        if frames:
            diag(f"failed at {os.path.relpath(frames[-1].filename, SOURCE)}:{frames[-1].lineno}")
    return bool(cond)


def is_(got, want, name):
    if not ok(got == want, name):
        diag(f"got  {got!r}\nwant {want!r}")
        return False
    return True


def isnt(got, other, name):
    if not ok(got != other, name):
        diag(f"got  {got!r}")
        return False
    return True


def like(text, pattern, name):
    if not ok(re.search(pattern, text) is not None, name):
        diag(f"text    {text!r}\npattern {pattern!r}")
        return False
    return True


def unlike(text, pattern, name):
    if not ok(re.search(pattern, text) is None, name):
        diag(f"text    {text!r}\npattern {pattern!r}")
        return False
    return True


def is_status(result, want, name):
    """result of cli(): its exit status is want (a number or a name of EXIT)."""
    want = EXIT.get(want, want)
    if not ok(result.status == want, name):
        diag(f"exit {result.status}, want {want}\nstdout: {result.out[-2000:]}\n"
             f"stderr: {result.err[-2000:]}")
        return False
    return True


def skip(reason, count=1):
    for _ in range(count):
        _tap["count"] += 1
        print(f"ok {_tap['count']} # SKIP {reason}", flush=True)


def skip_all(reason):
    print(f"1..0 # SKIP {reason}", flush=True)
    sys.exit(0)


def bail(reason):
    print(f"Bail out! {reason}", flush=True)
    sys.exit(255)


def failures():
    return _tap["failed"]


def on_fail(step):
    """step() is called when the program ends with a failed test: to show logs."""
    _tap["on_fail"].append(step)


def done():
    """Prints the plan and exits."""
    if _tap["failed"]:
        for step in _tap["on_fail"]:
            try:
                step()
            except Exception as error:  # pylint: disable=broad-except
                diag(f"while showing logs: {error}")
    print(f"1..{_tap['count']}", flush=True)
    sys.exit(1 if _tap["failed"] else 0)


def run(main):
    """Runs main(); an exception is a failed test."""
    try:
        main()
    except Exception:  # pylint: disable=broad-except
        ok(False, "the test ran to its end")
        diag(traceback.format_exc())
    done()


# --- the surroundings -----------------------------------------------------------------------------
def need_root():
    """Tests that mount need root: uses sudo where there is one, skips otherwise. They mount in a
    namespace of their own."""
    if not become_root():
        skip_all("needs root to mount volumes")
    _own_mounts()


def _own_mounts():
    """A mount namespace that another test makes meanwhile gets copies of all mounts that it sees:
    it would keep the devices of this test busy for as long as it lives."""
    clone_newns = 0x20000
    if ctypes.CDLL(None, use_errno=True).unshare(clone_newns) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
    output("mount", "--make-rprivate", "/")
    for mount in mounts_below("/var/tmp"):  # and this one must not keep theirs busy
        subprocess.run(["umount", "-l", mount], check=False, stderr=subprocess.DEVNULL)


def need_tools(*names):
    for name in names:
        if not shutil.which(name):
            skip_all(f"{name} is not installed")


def need_programs(*names):
    """Programs of this build that the test uses: missing ones are a failure, not a skip."""
    for name in names:
        if not os.access(os.path.join(BUILD, name), os.X_OK):
            bail(f"{BUILD}/{name} is not built")


def seeded():
    """(random.Random, seed); the seed is printed. TIDEMARK_SEED repeats a run."""
    seed = int(os.environ.get("TIDEMARK_SEED") or random.SystemRandom().randrange(1 << 32))
    diag(f"seed {seed} (repeat with TIDEMARK_SEED={seed})")
    return random.Random(seed), seed


def sample(items, count):
    """All items in a campaign, a seeded sample of count otherwise, in their order."""
    items = list(items)
    if CAMPAIGN or count >= len(items):
        return items
    chosen = set(seeded()[0].sample(range(len(items)), count))
    return [item for index, item in enumerate(items) if index in chosen]


def tail(path, lines=30):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-lines:])
    except OSError as error:
        return f"({error})"


def programs(box):
    """A directory with the binaries that the server's user can execute: the build directory, or a
    copy in the sandbox when the checkout lies where postgres cannot go (a home directory)."""
    probe = subprocess.run(["test", "-x", os.path.join(BUILD, "tidemark-wal")], check=False,
                           **as_user("postgres"))
    if probe.returncode == 0 or not os.path.exists(os.path.join(BUILD, "tidemark-wal")):
        return BUILD
    copy = box.mkdir("bin")
    for name in os.listdir(BUILD):
        path = os.path.join(BUILD, name)
        if name.startswith("tidemark") and os.path.isfile(path):
            if not os.path.exists(os.path.join(copy, name)):
                shutil.copy2(path, copy)
    return copy


def as_user(user):
    """Arguments of subprocess.run that run it as this user when we are root."""
    if os.geteuid() != 0:
        return {}
    return {"user": user, "group": user, "extra_groups": [], "cwd": "/"}


from server import Ledger, Pgbench, Server  # noqa: E402,F401
from node import (Agent, Node, Result, cli, conf_text, make_repository,  # noqa: E402,F401
                  run_program)
