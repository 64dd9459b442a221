#!/usr/bin/env python3
"""Outages: longer than half of the retry deadline during snapshot, restore and WAL archiving;
longer than all of it; a gateway that is killed and comes back; a store that hangs, that throttles.
check: build=asan timeout=600"""
import glob
import os
import re
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from faultproxy import Rule  # noqa: E402
from s3_node import World  # noqa: E402
from tm import *  # noqa: E402,F403

RETRY_S = 20
OUTAGE_S = 12
SHORT_S = 4  # a deadline that is there to be missed


class When:
    """Does something once the proxy has seen count requests that match, in a thread of its own."""

    def __init__(self, world, pattern, count, action):
        self.error = None
        world.proxy.forget()

        def work():
            try:
                poll(lambda: len(world.proxy.requests(pattern)) >= count, 120,
                     f"{count} × {pattern}", 0.01)
                action()
            except Exception as error:  # pylint: disable=broad-except
                self.error = error
        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    def join(self):
        self.thread.join()
        if self.error:
            raise self.error


def outage(world, seconds):
    def action():
        world.proxy.down()
        time.sleep(seconds)  # the outage is the case under test, not a wait for something
        world.proxy.up()
    return action


def slow(world, pattern="^(PUT|GET) "):
    """Bodies take a while, so that something is under way."""
    world.proxy.rules(Rule(pattern + ".*pack/", "delay", ms=300))


def in_time(what, step, least_s=0.0, most_s=RETRY_S + 60):
    start = time.monotonic()
    done = step()
    seconds = time.monotonic() - start
    ok(least_s <= seconds <= most_s, f"{what}: ends after {seconds:.0f} s")
    return done


def said_once(world):
    """The newest job's log tells of the outage and of its end, a line each."""
    log = max(glob.glob(world.node.state_dir + "/jobs/*/log"), key=os.path.getmtime)
    with open(log, encoding="utf-8") as file:
        lines = re.findall(r"warn: the store (does not answer|answers again)", file.read())
    is_(lines, ["does not answer", "answers again"], "its log says so, once")


def short_outage(world):
    """The agent goes on where it was."""
    world.change(20)
    slow(world)
    when = When(world, "^PUT .*pack/", 1, outage(world, OUTAGE_S))
    done = in_time("outage in a snapshot", lambda: world.snapshot("outage"), OUTAGE_S)
    when.join()
    is_status(done, 0, f"a snapshot outlives {OUTAGE_S} s without the store")
    said_once(world)
    world.proxy.rules()
    is_status(world.cli("verify", "outage"), 0, "and is whole")
    world.change(2)
    slow(world)
    when = When(world, "^GET .*pack/", 2, outage(world, OUTAGE_S))
    done = in_time("outage in a restore", lambda: world.restore("outage"), OUTAGE_S)
    when.join()
    is_status(done, 0, f"a restore outlives {OUTAGE_S} s without the store")
    world.proxy.rules()
    world.check_rows("outage", "restore with an outage")


def wal_outage(world):
    """The server keeps its segments meanwhile, none is lost, none is late for long."""
    world.change(3)
    outage_thread = When(world, "^", 0, outage(world, OUTAGE_S))
    poll(lambda: not world.proxy.open, 10, "the outage")
    names = []
    for _ in range(3):
        world.change(2)
        names.append(world.server.switch_wal())
    outage_thread.join()
    world.node.wait_archived(names[-1], 120)
    keys = world.place.keys_below("wal/")
    is_([n for n in names if not any(k.endswith(n) for k in keys)], [],
        "every segment of the outage is in the archive afterwards")
    rows, timeline = world.rows(), world.server.timeline()
    done = world.restore("outage", "--target=latest", f"--target-timeline={timeline}")
    is_status(done, 0, "and is replayed")
    world.server.wait_ready()
    is_(world.rows(), rows, "no row is missing")


def settle(world, retry_s):
    """The agent with this deadline."""
    world.node.agent.stop()
    world.node.sections["repository"]["retry_timeout"] = f"{retry_s}s"
    world.node.write_conf()
    world.node.agent.start()


def long_outage(world):
    """Longer than the deadline: a clear end, nothing half, and the next one works."""
    settle(world, SHORT_S)
    world.change(20)
    slow(world)
    before = world.tags()
    when = When(world, "^PUT .*pack/", 1, world.proxy.down)
    done = in_time("the store stays away", lambda: world.snapshot("never"), SHORT_S / 2)
    when.join()
    world.proxy.up()
    world.proxy.rules()
    is_status(done, "store", "a snapshot gives up")
    like(done.err, r"(?s)error: .*\nhint: ", "with a text and a hint")
    is_(world.tags(), before, "nothing of it is listed")
    is_status(world.snapshot("later"), 0, "the next one succeeds")
    is_status(world.cli("verify", "later"), 0, "and is whole")
    slow(world)
    when = When(world, "^GET .*pack/", 1, world.proxy.down)
    done = in_time("the store stays away", lambda: world.restore("later"), SHORT_S / 2)
    when.join()
    world.proxy.up()
    world.proxy.rules()
    ok(done.status in (12, 20), f"a restore gives up as store or partial ({done.status})")
    is_status(world.cli("restore", "--resume"), 0, "and is resumed")
    world.check_rows("later", "resumed restore")
    settle(world, RETRY_S)


def gateway(world, ceph):
    """kill -9 of the gateway in the middle of PUTs; another process answers soon after."""
    world.change(20)
    slow(world)

    def restart():
        ceph.gateway.kill()
        ceph.gateway.start()
    when = When(world, "^PUT .*pack/", 1, restart)
    done = world.snapshot("gateway")
    when.join()
    is_status(done, 0, "a snapshot outlives kill -9 of the gateway")
    slow(world)
    when = When(world, "^GET .*pack/", 1, restart)
    done = world.cli("verify", "gateway")
    when.join()
    is_status(done, 0, "a verification as well")
    world.proxy.rules()


def hanging(world, ceph):
    """The store takes the connection and does not answer for a while: no byte moves."""
    ceph.pause()
    resume = threading.Timer(6, lambda: ceph.pause(False))
    resume.start()
    done = in_time("a store that hangs", lambda: world.cli("verify", "gateway"), 3)
    resume.join()
    is_status(done, 0, "a verification outlives a store that hangs for 6 s")


def throttled(world, ceph):
    """503 SlowDown of the gateway itself."""
    slow_gateway = ceph.throttled_gateway(1)
    upstream, world.proxy.upstream = world.proxy.upstream, ("127.0.0.1", slow_gateway.port)
    world.proxy.down()
    world.proxy.up()
    world.proxy.forget()
    world.change(20)
    done = world.snapshot("throttled")
    codes = {x.status for x in world.proxy.log}
    is_status(done, 0, "a snapshot through a gateway that takes one request at a time")
    ok(503 in codes, f"which said 503 to others ({codes})")
    is_status(world.cli("verify", "throttled"), 0, "and is whole")
    world.proxy.upstream = upstream
    slow_gateway.kill()
    world.proxy.down()
    world.proxy.up()


def main():
    s3.need_ceph()
    box = need_root() or Sandbox("s3outages")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    ceph = s3.ceph(box)
    world = World(box, ceph, "outages", retry_timeout=f"{RETRY_S}s",
                  size=600 << 20).start()
    is_status(world.snapshot("intact"), 0, "without an outage a snapshot is taken")
    is_status(world.cli("verify", "intact"), 0, "and is whole")
    short_outage(world)
    wal_outage(world)
    long_outage(world)
    gateway(world, ceph)
    hanging(world, ceph)
    throttled(world, ceph)


run(main)
