#!/usr/bin/env python3
"""How many requests a job has under way at the same time, as a proxy sees them that makes every
request last: as many as `connections` says, never more, over connections that are kept.
check: build=asan timeout=200"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from delayproxy import DelayProxy  # noqa: E402
from s3_node import World  # noqa: E402
from tm import *  # noqa: E402,F403


def settle(world, connections):
    world.node.agent.stop()
    repository = world.node.sections["repository"]
    repository["connections"] = connections
    world.node.sections["tidemark"]["lanes"] = 2
    world.node.write_conf()
    world.node.agent.start()


def main():
    s3.need_ceph()
    box = need_root() or Sandbox("s3connections")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian",
                  "tests/s3/tool_delay")
    store = s3.ceph(box)
    proxy = DelayProxy(box, store.endpoint)
    world = World(box, store, "connections", proxy=False, size=600 << 20,
                  endpoint=proxy.endpoint).start()
    world.change(120)
    is_status(world.snapshot("t1"), 0, "a snapshot")
    world.node.server.stop()  # what it archives goes through the proxy, too
    poll(lambda: proxy.stats()["open"] == 0, 60, "the last connection to end")
    proxy.latency_ms = 40
    seen = {}
    for count in (1, 4, 5, 32):
        settle(world, count)
        proxy.forget()
        is_status(world.cli("verify", "t1"), 0, f"verify with {count} connections")
        seen[count] = proxy.stats()
        # The job's control objects go over a connection of their own, one request at a time.
        ok(seen[count]["peak"] <= count + 1, f"never more than {count} at once, and one for control"
           f" objects: {seen[count]}")
        ok(seen[count]["connections"] <= count + 8, f"connections are kept: {seen[count]}")
        ok(seen[count]["peak_open"] <= count + 2, "no more are open, and those of control objects")
    ok(seen[4]["peak"] >= 4, "with 4 connections, all of them are busy")
    ok(seen[5]["peak_open"] <= seen[4]["peak_open"] + 1, "5 are not shared out as 3 a lane")
    ok(seen[32]["peak"] >= 16, "with 32, as many as this small volume can use")


run(main)
