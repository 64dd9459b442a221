#!/usr/bin/env python3
"""Every operation of io/store.h against Ceph (plain, TLS, virtual-host style) and Swift; listings
over a page; and the same operations while a proxy does what networks do, by seeds.
check: build=asan timeout=240"""
import os
import random
import sys
import threading
import time
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from faultproxy import FaultProxy, Rule  # noqa: E402
from s3_tool import StoreTool  # noqa: E402
from tm import *  # noqa: E402,F403

RETRY_MS = 20000
# A bit that flips, or an end that is missing, on the way down is noticed by the checksums above.
FAULTS = ("status", "reset", "reset_up", "reset_down", "lost_answer", "fin_down", "stall_up",
          "stall_down", "flip_up", "close_idle", "duplicate", "delay", "rate")


def operations(tool, what):
    is_(tool("put", "a/one", 100000, 7), "ok", f"{what}: put")
    is_(tool("get", "a/one", 100000, 7), "ok", f"{what}: and the same bytes come back")
    is_(tool("put", "a/one", 100000, 7), "exists", f"{what}: the name is taken")
    is_(tool("put", "a/one", 5, 8), "exists", f"{what}: for other bytes as well")
    is_(tool("get", "a/one", 100000, 7), "ok", f"{what}: the first ones stay")
    is_(tool("size", "a/one"), "ok 100000", f"{what}: size")
    is_(tool("range", "a/one", 777, 2000, 100000, 7), "ok", f"{what}: a range")
    is_(tool("range", "a/one", 99000, 2000, 100000, 7), "ok", f"{what}: a range that ends early")
    is_(tool("range", "a/one", 100000, 5, 100000, 7), "ok", f"{what}: a range at the end")
    is_(tool("put", "a/empty", 0, 1), "ok", f"{what}: an empty object")
    is_(tool("get", "a/empty", 0, 1), "ok", f"{what}: read back")
    like(tool("get", "a/none", 1, 1), "^error missing ", f"{what}: what is not there is missing")
    like(tool("size", "a/none"), "^error missing ", f"{what}: and has no size")
    tool("put", "ab", 1, 1)
    is_(tool.names("a/"), ["a/empty", "a/one"], f"{what}: a list of what begins with a prefix")
    is_(tool("remove", "a/one"), "ok 0", f"{what}: remove")
    is_(tool("remove", "a/one"), "ok 0", f"{what}: of what is gone as well")
    is_(tool.names("a/"), ["a/empty"], f"{what}: gone from the list")


def pages(store, tool):
    """Order of names is by bytes; a list goes on behind every page."""
    names = sorted(f"many/{i % 3}/{i:x}.x-{i % 7}" for i in range(2300))
    client, todo = store.client(), list(names)

    def upload():
        while todo:
            client.put("bucket/path/" + todo.pop(), b"x")
    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    is_(tool.names("many/"), names, "2300 names: three pages, in ascending order of their bytes")
    is_(tool.names("many/1/"), [n for n in names if n.startswith("many/1/")], "one directory of it")


def longest(box, store):
    """Names and prefix as long as they may be: a page of them, one that continues, a batch; and
    tokens as long as a server makes of such a name."""
    prefix = ("p" * 63 + "/") * 3 + "q" * 63
    base = "n" * 100 + "/" + "m" * 406
    names = sorted(f"{base}{i}" for i in range(1003))
    store.bucket("longest")
    client, todo = store.client(), list(names)

    def upload():
        while todo:
            client.put(f"longest/{prefix}/" + todo.pop(), b"x")
    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with StoreTool(store, f"s3://longest/{prefix}") as tool:
        is_(tool.names("n" * 100 + "/"), names, "1003 names of 511 bytes below a prefix of 255")
        is_(tool("clear", base, 1003), "ok 1003", "and a batch of removals")
    proxy = FaultProxy(box, store.endpoint)

    def page(token, number):
        return (f"<ListBucketResult><IsTruncated>{'true' if token else 'false'}</IsTruncated>"
                + (f"<NextContinuationToken>{token}</NextContinuationToken>" if token else "")
                + f"<Contents><Key>t/{number}</Key><Size>1</Size></Contents></ListBucketResult>")
    with StoreTool(store, "s3://longest", endpoint=proxy.endpoint, retry_ms=2000) as tool:
        for length in (1024, 1400, 2048, 2049):
            token = ("+/=a" * 600)[:length]
            proxy.rules(
                Rule("^GET .*continuation-token=" + urllib.parse.quote(token, "") + "&", "status",
                     code=200, body=page("", 2)),
                Rule("^GET .*list-type", "status", code=200, body=page(token, 1)))
            if length <= 2048:
                is_(tool.names("t/"), ["t/1", "t/2"], f"a token of {length} bytes is sent back")
            else:
                like(tool("list", "t/")[-1], "^error store ", "a longer one: refused, not cut")


class Chaos:
    """Operations with random names and sizes through a proxy that fails by a seed. After an answer
    "ok" the object has to be whole, whatever happened; after an error it is whole or absent."""

    def __init__(self, box, store, direct, bucket, certificate=None):
        self.store, self.direct, self.bucket = store, direct, bucket
        self.proxy = FaultProxy(box, store.endpoint, certificate)
        self.problems, self.errors, self.operations = [], [], 0
        self.longest_s = 0.0

    def worker(self, tool, rng, count):
        known = {}
        for _ in range(count):
            name, verb = f"c{rng.randrange(1 << 40):x}", rng.choice(("put", "get", "put", "range"))
            if verb == "put" or not known:
                args, verb = (rng.choice((0, 1, 5000, 300000)), rng.randrange(1 << 30)), "put"
            else:
                name = rng.choice(sorted(known))
                args = known[name] if verb == "get" else (100, 3000, *known[name])
            start = time.monotonic()
            answer = tool(verb, name, *args)
            self.longest_s = max(self.longest_s, time.monotonic() - start)
            self.operations += 1
            if answer == "exists" and self.doubled(name):
                answer = "ok"
            if answer == "ok":
                known.update({name: args} if verb == "put" else {})
            elif answer.startswith("error store "):
                self.errors.append(answer)
            else:
                self.problems.append(f"{verb} {name} {args}: {answer}")
            if verb == "put":
                held = self.direct("get", name, *args)
                absent = answer != "ok" and held.startswith("error missing")
                if held != "ok" and not absent:
                    self.problems.append(f"put {name} {args}: {answer}, but {held}")

    def doubled(self, name):
        """The network itself sent the first try of this PUT twice: its own object was there."""
        return any(x.fault == "duplicate" and x.method == "PUT" and name in x.target
                   for x in list(self.proxy.log))

    def run(self, rng, seed, count, rule, retry_ms=RETRY_MS):
        self.proxy.rules(*rule)
        self.proxy.forget()
        threads = []
        for index in range(3):
            tool = StoreTool(self.store, f"s3://{self.bucket}", self.proxy.endpoint,
                             retry_ms=retry_ms, stall_ms=1000, seed=seed + index)
            threads.append(threading.Thread(target=self.worker, args=(
                tool, random.Random(rng.randrange(1 << 60)), count)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.proxy.rules()


def chaos(box, store, bucket, what, certificate=None):
    rng, seed = seeded()
    with StoreTool(store, f"s3://{bucket}") as direct:
        run_ = Chaos(box, store, direct, bucket, certificate)
        run_.run(rng, seed, 10, ())
        ok(not run_.problems and not run_.errors, f"{what}, no faults: everything is right")
        rounds = 60 if CAMPAIGN else 1
        for number in range(rounds):
            run_.run(rng, seed + number, 40 if CAMPAIGN else 25,
                     (Rule("^(GET|PUT|HEAD) ", FAULTS, prob=0.25, seed=seed + number, ms=1500,
                           bps=1e6, code=rng.choice((500, 503, 429))),))
        is_(run_.problems, [], f"{what}: every answer was right, nothing half is stored")
        ok(len(run_.errors) <= run_.operations // 20,
           f"{what}: retries hide nearly all ({len(run_.errors)} of {run_.operations} failed)")
        ok(run_.longest_s < RETRY_MS / 1000 + 10, f"{what}: no operation outlived its deadline "
           f"(longest {run_.longest_s:.1f} s)")
        diag(f"{run_.errors[:3]}")
        if what == "Ceph" or CAMPAIGN:
            each_fault(run_, rng, seed, what)


def each_fault(run_, rng, seed, what):
    """Every second request of one kind fails, for each kind."""
    for kind in FAULTS if CAMPAIGN else sample(FAULTS, 2):
        run_.errors.clear()
        run_.problems.clear()
        run_.run(rng, seed, 6, (Rule("^(GET|PUT|HEAD) ", kind, every=2, ms=1500, bps=1e6),))
        ok(not run_.problems and run_.proxy.hits(kind),
           f"{what}, every second request {kind}: no wrong bytes, "
           f"{len(run_.errors)} errors, {len(run_.proxy.hits(kind))} faults {run_.problems[:2]}")


def main():
    s3.need_ceph()
    box = Sandbox("store")
    store = s3.ceph(box)
    for bucket in ("bucket", "tls-bucket", "vhost-bucket", "chaos"):
        store.bucket(bucket)
    with StoreTool(store, "s3://bucket/path") as tool:
        operations(tool, "Ceph")
        pages(store, tool)
    with StoreTool(store, "s3://tls-bucket", store.tls_endpoint) as tool:
        operations(tool, "Ceph, TLS")
    vhost = store.endpoint.replace("127.0.0.1", store.vhost_domain)
    with StoreTool(store, "s3://vhost-bucket/x/y", vhost, addressing="virtual") as tool:
        operations(tool, "Ceph, virtual-host style")
    longest(box, store)
    chaos(box, store, "chaos", "Ceph")
    store.kill()
    if s3.missing("swift"):
        skip(s3.missing("swift"))
        return
    store = s3.swift(box)
    store.bucket("bucket")
    with StoreTool(store, "s3://bucket/path") as tool:
        operations(tool, "Swift")
    store.bucket("chaos")
    chaos(box, store, "chaos", "Swift")


run(main)
