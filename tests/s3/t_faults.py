#!/usr/bin/env python3
"""Snapshots, verifications and restores through a proxy that does, by a seed, what networks and
servers do. Each run ends with the right bytes or with a clear error and exit status 12 or 13, in
time; a snapshot that is listed afterwards is whole.
check: build=asan timeout=500"""
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from faultproxy import Rule  # noqa: E402
from s3_node import World  # noqa: E402
from tm import *  # noqa: E402,F403

RETRY_S = 20
SLACK_S = 60  # a loaded machine, the server's own work, sanitizers
FAULTS = ("status", "reset", "reset_up", "reset_down", "lost_answer", "fin_down", "stall_up",
          "stall_down", "flip_up", "flip_down", "short_length", "close_idle", "duplicate", "delay",
          "rate")
ALL = "^(GET|PUT|HEAD) "


def chaos(seed, prob=0.15):
    return Rule(ALL, FAULTS, prob=prob, seed=seed, ms=700, bps=4e6)


def timed(world, what, step, want=(0, 12, 13)):
    """Runs step() with a clock. Its status is one of want; a failure is explained."""
    start = time.monotonic()
    done = step()
    seconds = time.monotonic() - start
    hits = [x.fault for x in world.proxy.hits()]
    if not ok(done.status in want and seconds < RETRY_S + SLACK_S,
              f"{what}: exit {done.status} after {seconds:.0f} s, {len(hits)} faults"):
        diag(f"{done.out[-1500:]}\n{done.err[-1500:]}")
    if done.status:
        like(done.err, r"(?s)error: .*\nhint: ", f"{what}: the failure has a text and a hint")
    world.proxy.forget()
    return done.status


def snapshot_round(world, what, tag, *rules):
    """A snapshot under faults; whatever became of it, what is listed is whole."""
    world.change(4)
    world.proxy.forget()
    world.proxy.rules(*rules)
    status = timed(world, f"{what}: snapshot", lambda: world.snapshot(tag))
    world.proxy.rules()
    listed = tag in world.tags()
    ok(listed or status != 0, f"{what}: a snapshot that succeeded is listed")
    if listed:
        is_status(world.cli("verify", tag), 0, f"{what}: and every chunk of it is there")
    return listed


def restore_round(world, what, tag, *rules):
    """A restore under faults; one that stopped half way is resumed."""
    world.proxy.forget()
    world.proxy.rules(*rules)
    status = timed(world, f"{what}: restore", lambda: world.restore(tag), (0, 12, 13, 20))
    world.proxy.rules()
    if status:
        done = world.cli("restore", "--resume")
        if done.status == 15:  # it ended before anything was touched
            done = world.restore(tag)
        is_status(done, 0, f"{what}: it is finished without faults")
    world.check_rows(tag, what)


def each(world, rng):
    """One kind alone, many times."""
    for number, kind in enumerate(FAULTS if CAMPAIGN else ["flip_down", *sample(FAULTS, 2)]):
        # What is damaged on the way is read three times: two flips never damage anything.
        limit = {"every": 5, "times": 2} if kind in ("flip_down", "short_length") else {"every": 3}

        def rule():
            return Rule(ALL, kind, seed=rng.randrange(1 << 30), ms=700, bps=4e6, **limit)
        snapshot_round(world, f"only {kind}", f"kind-{number}", rule())
        world.proxy.rules(rule())
        timed(world, f"only {kind}: verify", lambda: world.cli("verify", "intact"), (0, 12))
        world.proxy.rules()


def main():
    s3.need_ceph()
    box = need_root() or Sandbox("s3faults")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    rng, seed = seeded()
    world = World(box, s3.ceph(box), "faults", retry_timeout=f"{RETRY_S}s").start()
    snapshot_round(world, "no faults", "intact")
    restore_round(world, "no faults", "intact")
    last = "intact"
    for number in range(40 if CAMPAIGN else 3):
        tag = f"r{number}"
        if snapshot_round(world, f"seed {seed}+{number}", tag, chaos(seed + number)):
            last = tag
    world.read_back(last, "after all faults")
    for number in range(10 if CAMPAIGN else 1):
        restore_round(world, f"seed {seed}+{number}", last, chaos(seed + 1000 + number))
    each(world, rng)


run(main)
