#!/usr/bin/env python3
"""Every fuzz target runs its corpus with gcc, ASan and UBSan: what was found once stays fixed also
where clang is not installed.

check: build=asan
"""
import glob
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
from tm import BUILD, diag, ok, run  # noqa: E402


def main():
    sources = sorted(glob.glob(os.path.join(HERE, "fuzz_*.c")))
    ok(len(sources) >= 8, f"there are targets ({len(sources)})")
    for source in sources:
        name = os.path.basename(source)[:-2]
        corpus = os.path.join(HERE, "corpus", name[len("fuzz_"):])
        inputs = len(os.listdir(corpus)) if os.path.isdir(corpus) else 0
        done = subprocess.run([os.path.join(BUILD, "tests/fuzz", name), corpus], check=False,
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        good = done.returncode == 0 and done.stdout.strip().endswith(f"{inputs} inputs")
        if not ok(good, f"{name}: {inputs} inputs"):
            diag(done.stdout[-4000:])


run(main)
