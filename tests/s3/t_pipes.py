#!/usr/bin/env python3
"""Whole volumes to object stores and back over many connections: Ceph (plain, TLS) and Swift;
latency; a network that fails by seeds; a gateway that dies and comes back; an outage that is
cancelled or that lasts; the Nth operation of the ring failing.
check: build=asan,tsan timeout=400"""
import os
import re
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from delayproxy import DelayProxy  # noqa: E402
from faultproxy import FaultProxy, Rule  # noqa: E402
from tm import *  # noqa: E402,F403

TSAN = os.environ.get("TIDEMARK_BUILD", "").endswith("tsan")
FAULTS = ("status", "reset", "reset_up", "reset_down", "lost_answer", "fin_down", "stall_up",
          "stall_down", "flip_up", "close_idle", "delay")


class Pipes:
    """One run of tests/s3/tool_pipes, beside whatever the test does meanwhile."""
    number = 0

    def __init__(self, store, verb, mib, endpoint=None, **options):
        Pipes.number += 1
        endpoint = endpoint or store.endpoint
        if endpoint.startswith("https"):
            options.setdefault("ca_file", store.ca_file)
        words = [f"{k}={v}" for k, v in {"endpoint": endpoint, **options}.items() if v]
        self.process = subprocess.Popen(
            [os.path.join(BUILD, "tests/s3/tool_pipes"), f"s3://bucket/{Pipes.number}", verb,
             str(mib), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "AWS_ACCESS_KEY_ID": store.keys.access,
                 "AWS_SECRET_ACCESS_KEY": store.keys.secret})

    def end(self):
        self.output = self.process.communicate(timeout=300)[0]
        self.good = self.process.returncode == 0 and "not ok" not in self.output
        if not self.good:
            diag(self.output)
        return self

    def number_of(self, what, key):
        return float(re.search(rf"^# {what} .*\b{key} ([0-9.]+)", self.output, re.M).group(1))


def rounds(store, what, endpoint=None):
    for connections in (1, 32):
        pipes = Pipes(store, "round", 96, endpoint, connections=connections).end()
        ok(pipes.good, f"{what}: 96 MiB there and back over {connections} connections")


def latency(box, store):
    """The rate of one connection is that of the latency; 32 hide it."""
    proxy = DelayProxy(box, store.endpoint, latency_ms=20)
    seconds, seen = {}, {}
    for connections in (1, 32):
        proxy.forget()
        pipes = Pipes(store, "round", 512, proxy.endpoint, connections=connections).end()
        ok(pipes.good, f"20 ms latency, {connections} connections")
        seconds[connections], seen[connections] = pipes.number_of("pull", "seconds"), proxy.stats()
        diag(pipes.output)
    ratio = seconds[1] / seconds[32]
    diag(f"32 connections are {ratio:.1f} x as fast as one: {seen}")
    ok(seen[1]["peak"] <= 1 + 1 and seen[32]["peak"] <= 32 + 1,
       "never more at once than connections, and the client's")
    ok(seen[32]["peak"] >= 16, "many of them at once")
    ok(ratio > 2, "32 connections hide latency")  # the bench measures; this machine is shared


def straggler(box, store):
    """One read that takes long holds up no other, also when there is but one lane."""
    proxy = FaultProxy(box, store.endpoint)
    pushed = Pipes(store, "round", 192, proxy.endpoint, lanes=1, random=1)
    poll(lambda: proxy.requests("^GET .*/pack/"), 120, "the first read of a pack")
    proxy.rules(Rule("^GET .*/pack/", "delay", nth=1, ms=10000))
    ok(pushed.end().good, "192 MiB there and back, one read takes 10 s")
    reads = proxy.requests("^GET .*/pack/")
    late = [i for i, x in enumerate(reads) if x.fault]
    ok(late and late[0] >= 50, f"{late} of {len(reads)} reads end before it; buffers hold 33")
    proxy.close()


def faults(box, store):
    _, seed = seeded()
    proxy = FaultProxy(box, store.endpoint)
    for number in range(10 if CAMPAIGN else 2):
        proxy.rules(Rule("^(GET|PUT) ", FAULTS, prob=0.2, seed=seed + number, ms=1500))
        proxy.forget()
        pipes = Pipes(store, "round", 64, proxy.endpoint, retry_ms=60000, stall_ms=1000).end()
        ok(pipes.good, f"seed {seed + number}: all bytes right through "
           f"{sum(1 for x in proxy.log if x.fault)} faults")
    proxy.close()


def cut_off(proxy, pipes):
    """The network goes away in the middle of the packs: the third one is held back."""
    poll(lambda: any("/pack/" in x.target for x in list(proxy.log)), timeout_s=120)
    proxy.down()
    return pipes


def outages(box, store):
    proxy = FaultProxy(box, store.endpoint)
    proxy.rules(Rule("^PUT .*/pack/", "stall_up", nth=3, at=0.5, ms=60000))
    pipes = cut_off(proxy, Pipes(store, "round", 128, proxy.endpoint, retry_ms=60000,
                                 stall_ms=20000))
    threading.Timer(5, proxy.up).start()
    ok(pipes.end().good, "an outage of 5 s is waited for")
    for verb, options in (("cancel", {"retry_ms": 60000, "cancel_ms": 4000}),
                          ("push", {"retry_ms": 2000, "stall_ms": 20000})):
        proxy.rules(Rule("^PUT .*/pack/", "stall_up", nth=3, at=0.5, ms=60000))
        proxy.forget()
        pipes = cut_off(proxy, Pipes(store, verb, 128, proxy.endpoint, **options)).end()
        if verb == "cancel":
            like(pipes.output, "error cancelled", "cancelled in an outage")
            seconds = float(re.search(r"cancelled after ([0-9.]+)", pipes.output).group(1))
            ok(seconds < 10, f"… ends at once ({seconds:.1f} s)")
        else:
            like(pipes.output, r"error store .*gave up after \d+ tr",
                 "an outage that lasts is an error")
        proxy.up()
    proxy.close()


def certificates(store):
    pipes = Pipes(store, "push", 1, store.tls_endpoint, ca_file="").end()
    like(pipes.output, r"error auth .*the certificate of .*\| .*ca_file", "an unknown CA")
    other = store.tls_endpoint.replace("127.0.0.1", "other.localhost")
    pipes = Pipes(store, "push", 1, store.tls_endpoint, ca_file="/dev/null").end()
    like(pipes.output, "error config .*the CA file '/dev/null'", "a file without certificates")
    pipes = Pipes(store, "push", 1, other, ca_file=store.ca_file, retry_ms=1000).end()
    like(pipes.output, r"error auth .*other.localhost.* is not accepted.*\| .*a name that is in",
         "a name that the certificate does not have")


def nth(store):
    pipes = Pipes(store, "nth", 6, lanes=1, connections=2, memory_mib=64, retry_ms=300).end()
    for line in pipes.output.split("\n"):
        if line.startswith(("ok", "not ok")):
            ok(line.startswith("ok"), re.sub(r"^(not )?ok \d+ - ", "", line))


def main():
    s3.need_ceph()
    need_programs("tests/s3/tool_pipes")
    box = Sandbox("pipes")
    store = s3.ceph(box)
    store.bucket("bucket")
    rounds(store, "Ceph")
    rounds(store, "Ceph, TLS", store.tls_endpoint)
    straggler(box, store)
    faults(box, store)
    outages(box, store)
    if not TSAN:
        certificates(store)
        latency(box, store)
        nth(store)
    store.kill()
    if TSAN or s3.missing("swift"):
        skip(s3.missing("swift") or "Swift: not under TSan")
        return
    store = s3.swift(box)
    store.bucket("bucket")
    rounds(store, "Swift")


run(main)
