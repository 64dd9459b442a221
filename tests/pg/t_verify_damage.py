#!/usr/bin/env python3
"""`tidemark verify` against the whole table of mutilations: a real snapshot of two generations, and
for each {kind of object} x {bit flip, cut, missing, swapped} first the intact snapshot, then the
damaged one with its exit status and a message that names the object.

check: timeout=600
"""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import mutilate  # noqa: E402
import snapshots as snap  # noqa: E402

ROUNDS = 8 if CAMPAIGN else 1


def try_case(node, case, who):
    with mutilate.mutilated(case):
        done = node.cli("verify", who)
    if not ok(done.status in case.statuses and re.search(case.pattern, done.err),
              f"{case.name}: exit {done.status}"):
        diag(f"{case}\nwanted {case.statuses} and {case.pattern}\nstdout: {done.out[-500:]}\n"
             f"stderr: {done.err[-1000:]}")
    like(done.err, "hint: ", f"{case.name}: with a hint")


def inspect_all(node):
    """tidemark-inspect finds nothing wrong with any object that the agent wrote."""
    directory, kinds = snap.repository(node), set()
    for base, _, names in os.walk(directory):
        for name in names:
            done = run_program(os.path.join(BUILD, "tidemark-inspect"), os.path.join(base, name))
            if done.status != 0:
                is_status(done, 0, f"inspect {os.path.join(base, name)}")
            kinds.add(done.out.split("\n")[0])
    is_(len(kinds), 6, f"all kinds of objects were inspected: {sorted(kinds)}")


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian",
                  "tidemark-inspect")
    box = Sandbox("t_verify_damage")
    node = Node(box, [box.volume("pgdata", 512 * MIB)], provider="freeze")
    node.start()
    node.server.pgbench_init(1)
    is_status(node.cli("snapshot", "--tag", "first"), 0, "a full snapshot")
    node.server.psql("create table more as select g, md5(g::text) from generate_series(1, 9999) g")
    is_status(node.cli("snapshot", "--tag", "second"), 0, "an incremental one")
    inspect_all(node)
    identity = snap.record(node, "second")["id"]
    rng, _ = seeded()
    for _ in range(ROUNDS):
        table = mutilate.cases(snap.repository(node), identity, rng)
        is_(len(table), 28, "all kinds of objects, all mutilations")
        for case in table:
            try_case(node, case, identity)
        is_status(node.cli("verify", "second"), 0, "put right again, the snapshot is good")
    # A copy of tidemark.repo is enough.
    repo = next(c for c in table if c.name == "repo bit")
    del repo.changes["tidemark.repo"]
    with mutilate.mutilated(repo):
        is_status(node.cli("verify", "second"), 0, "a damaged copy of tidemark.repo")
    repo = mutilate.make_case(rng, mutilate.Places(snap.repository(node), identity), "repo", "bit")
    del repo.changes["tidemark.repo.copy"]
    with mutilate.mutilated(repo):
        is_status(node.cli("verify", "second"), 0, "a damaged tidemark.repo")
    node.server.stop()


run(main)
