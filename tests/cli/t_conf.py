#!/usr/bin/env python3
"""Configuration files: the intact one first, then every refusal with exact message and status."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
from node import run_program  # noqa: E402

# (what, lines after "[tidemark]", message after "FILE:")
REFUSED = [
    ("unknown option", "memory_mx = 1GiB",
     "2: unknown option 'memory_mx' in [tidemark] (did you mean 'memory_max'?)"),
    ("malformed line", "lanes", "2: malformed line, expected KEY = VALUE"),
    ("colon", "lanes: 2", "2: malformed line, expected KEY = VALUE"),
    ("too long", "lanes = " + "1" * 5000, "2: line is longer than 4096 bytes"),
    ("indented", "lanes = 1\n  node = x", "3: indented line: begin it in the first column"),
    ("out of range", "lanes = 65",
     "2: lanes: '65' is out of range, expected: number (0 … 64)"),
    ("no unit", "freeze_deadline = 5",
     "2: freeze_deadline: '5' is not valid, expected: time (100ms … 60s)"),
    ("comment in a value", "node = a ; b",
     "2: ';' after a blank could be a comment or part of the value: put comments on lines of their "
     "own"),
    ("twice", "lanes = 1\nlanes = 2", "3: 'lanes' is set twice in [tidemark]"),
    ("socket too long", "socket = /" + "s" * 107,
     "2: socket: value is longer than 107 bytes"),
    ("unknown section", "[repositry]",
     "2: unknown section [repositry] (did you mean [repository]?)"),
]


def main():
    box = Sandbox("conf")
    intact = f"[tidemark]\nstate_dir = {box.join('state')}\nsocket = {box.join('sock')}\n"
    programs = [("tidemark", ["list"]), ("tidemark-agent", ["--check-config"])]
    need_programs(*(name for name, _ in programs))

    conf = box.write("good.conf", intact)
    done = run_program(f"{BUILD}/tidemark-agent", "--check-config", conf=conf)
    is_status(done, 0, "the intact file is accepted")
    like(done.err, r"warn: \[repository\] url is not set", "but nothing could be stored")
    long = box.write("long.conf", f"[tidemark]\nstate_dir = /{'s' * 900}\nlanes = 2\n")
    is_status(run_program(f"{BUILD}/tidemark-agent", "--check-config", conf=long), 0,
              "a line of 900 bytes is read whole (libinih alone would cut it)")

    for what, lines, message in REFUSED:
        conf = box.write("bad.conf", "[tidemark]\n" + lines + "\n")
        for name, args in programs:
            done = run_program(f"{BUILD}/{name}", *args, f"--config={conf}")
            is_status(done, "config", f"{name}: {what}: exit status")
            is_(done.err, f"error: {conf}:{message}\n", f"{name}: {what}: message")

    for url in ("ftp://x/y", "/var/x"):
        conf = box.write("bad.conf", intact + f"[repository]\nurl = {url}\n")
        for name, args in programs:
            done = run_program(f"{BUILD}/{name}", *args, f"--config={conf}")
            is_status(done, "config", f"{name}: url = {url}: exit status")
            is_(done.err, f"error: {conf}: [repository] url = {url} is no repository\n"
                          "hint: write file:///absolute/directory or s3://bucket/prefix\n",
                f"{name}: url = {url}: message")

    done = cli("list", f"--config={box.join('none.conf')}")
    is_status(done, "config", "a file that does not exist")
    like(done.err, "open configuration '.*none.conf': No such file.*\nhint: --config=FILE or ",
         "says so, and what names it")
    done = cli("list", conf=box.write("good.conf", intact), TIDEMARK_REPOSITORY_ULR="file:///x")
    is_status(done, "config", "an unknown TIDEMARK_ variable")
    is_(done.err, "error: unknown environment variable TIDEMARK_REPOSITORY_ULR\n"
                  "hint: did you mean TIDEMARK_REPOSITORY_URL?\n", "names the nearest")


run(main)
