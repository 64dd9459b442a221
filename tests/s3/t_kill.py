#!/usr/bin/env python3
"""kill -9 of jobs on an object store, at the Nth request that the store saw: a snapshot is listed
whole or not at all, a restore is resumed (or never began) and ends with the rows of the tag. N is
random; a campaign takes many.
check: build=asan campaign=release timeout=400"""
import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from s3_node import World  # noqa: E402
from snapshots import Running  # noqa: E402
from tm import *  # noqa: E402,F403

LATENCY_MS = 20  # so that there are moments between the requests


def killed_at(world, count, *words):
    """`tidemark WORDS`, its job killed once the store has seen count requests. The status."""
    world.proxy.forget()
    running = Running(world.node, *words)
    pid = running.pid()
    poll(lambda: len(world.proxy.log) >= count or running.process.poll() is not None, 120,
         f"{count} requests", 0.002)
    if running.process.poll() is None:
        kill_pid(pid, signal.SIGKILL)
    return running.wait().status


def snapshots(world, rng, most):
    for number in range(25 if CAMPAIGN else 4):
        tag, count = f"s{number}", rng.randrange(1, most)
        world.change(4)
        world.rows_of[tag] = world.rows()
        status = killed_at(world, count, "snapshot", "--tag", tag)
        listed = tag in world.tags()
        ok(listed if status == 0 else True,
           f"snapshot, killed at request {count}: exit {status}, {'' if listed else 'not '}listed")
        if listed:
            is_status(world.cli("verify", tag), 0, "and what is listed is whole")
    is_status(world.snapshot("after"), 0, "the next snapshot works")
    is_status(world.cli("verify", "after"), 0, "and is whole")
    world.read_back("after", "after the kills")


def restores(world, rng, most):
    for _ in range(12 if CAMPAIGN else 2):
        count = rng.randrange(1, most)
        world.server.psql("drop table if exists orders")
        status = killed_at(world, count, "restore", "after", "--yes")
        what = f"restore, killed at request {count} (exit {status})"

        def settled():
            """Done, by the agent or by us; 17 while the agent is at it."""
            done = world.cli("restore", "--resume", "--yes")
            return done if done.status != EXIT["busy"] else None
        done = poll(settled, 120, f"{what}: an end", 0.5) if status else None
        if done and done.status == EXIT["missing"]:  # nothing was touched
            done = world.restore("after")
        if done:
            is_status(done, 0, f"{what}: it is finished")
        world.check_rows("after", what)


def main():
    s3.need_ceph()
    box = need_root() or Sandbox("s3kill")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    rng, _seed = seeded()
    world = World(box, s3.ceph(box), "kill", retry_timeout="20s", size=600 << 20).start()
    world.proxy.latency_ms = LATENCY_MS
    is_status(world.snapshot("intact"), 0, "an intact snapshot")
    snapshots(world, rng, len(world.proxy.log) + 5)
    world.proxy.forget()
    is_status(world.restore("after"), 0, "an intact restore")
    world.check_rows("after", "intact restore")
    restores(world, rng, len(world.proxy.log))


run(main)
