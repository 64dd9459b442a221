#!/usr/bin/env python3
"""Every header compiles alone: it includes what its declarations need."""
import subprocess
import sys

FLAGS = ["-std=gnu17", "-D_GNU_SOURCE", "-I.", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
         '-DTIDEMARK_VERSION="0"']


def main(headers):
    failed = 0
    for number, header in enumerate(headers, 1):
        # As an include of an empty file: -fsyntax-only on the header itself warns about its pragma.
        done = subprocess.run(["gcc", *FLAGS, "-include", header, "-xc", "-"], input="",
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False)
        print(f"{'not ' if done.returncode else ''}ok {number} - {header} compiles alone")
        if done.returncode:
            failed += 1
            print("".join(f"# {line}\n" for line in done.stdout.splitlines()[:20]), end="")
    print(f"1..{len(headers)}")
    return failed != 0


sys.exit(main(sys.argv[1:]))
