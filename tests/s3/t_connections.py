#!/usr/bin/env python3
"""How many requests a job has under way at the same time, as a proxy sees them that makes every
request last: as many as `connections` says, never more, over connections that are kept.
check: build=asan timeout=200"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from s3_node import World  # noqa: E402
from tm import *  # noqa: E402,F403


def settle(world, connections):
    world.node.agent.stop()
    world.node.sections["repository"]["connections"] = connections
    world.node.write_conf()
    world.node.agent.start()
    world.proxy.forget()


def main():
    s3.need_ceph()
    box = need_root() or Sandbox("s3connections")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    world = World(box, s3.ceph(box), "connections", size=600 << 20).start()
    world.change(120)
    is_status(world.snapshot("t1"), 0, "a snapshot")
    world.proxy.latency_ms = 40
    peaks = {}
    for count in (1, 4, 32):
        settle(world, count)
        is_status(world.cli("verify", "t1"), 0, f"verify with {count} connections")
        gets = world.proxy.requests("^GET .*/pack/")
        peaks[count] = world.proxy.peak
        # The job's control objects go over a connection of their own, one request at a time.
        ok(world.proxy.peak <= count + 1, f"never more than {count} at once, and one for control "
           f"objects: {world.proxy.peak}, {len(gets)} reads of packs")
        ok(world.proxy.connections <= count + 8, f"connections are kept: {world.proxy.connections} "
           f"for {len(world.proxy.log)} requests")
    ok(peaks[4] >= 4, f"with 4 connections, all of them are busy: {peaks[4]}")
    ok(peaks[32] >= 10, f"with 32, as many as this small volume can use: {peaks[32]}")


run(main)
