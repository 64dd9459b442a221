#!/usr/bin/env python3
"""Finding a snapshot among 200 in a bucket: records are read over several connections, no more than
there may be; a damaged one and a store that fails are told as by one.
check: build=asan,tsan timeout=180"""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from faultproxy import FaultProxy, Rule  # noqa: E402
from tm import *  # noqa: E402,F403

COUNT = 200


def catalog(store, endpoint, *lines, **options):
    """Answers of tests/s3/tool_catalog."""
    words = [f"{k}={v}" for k, v in {"endpoint": endpoint, **options}.items()]
    done = subprocess.run(
        [os.path.join(BUILD, "tests/s3/tool_catalog"), "s3://catalog/p", *words], text=True,
        input="\n".join(lines) + "\n", stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120,
        check=False, env={**os.environ, "AWS_ACCESS_KEY_ID": store.keys.access,
                          "AWS_SECRET_ACCESS_KEY": store.keys.secret})
    diag(done.stderr)
    return done.stdout.splitlines()


def main():
    s3.need_ceph()
    box = Sandbox("s3catalog")
    need_programs("tests/s3/tool_catalog")
    store = s3.ceph(box)
    store.bucket("catalog")
    is_(catalog(store, store.endpoint, f"fill {COUNT}"), [f"ok {COUNT}"], "a repository")
    proxy = FaultProxy(box, store.endpoint, latency_ms=20)
    whole = f"ok {COUNT} 0, the first is tag-0"
    is_(catalog(store, proxy.endpoint, "list", "find tag-150", "find latest"),
        [whole, "ok tag-150", f"ok tag-{COUNT - 1}"], "20 ms away: all, one and the newest")
    ok(4 <= proxy.peak <= 8, f"up to {proxy.peak} requests at once")
    poll(lambda: proxy.running == 0, 10, "the proxy")
    proxy.forget()
    is_(catalog(store, proxy.endpoint, "list", connections=1), [whole], "over one connection")
    is_(proxy.peak, 1, "which is no more than one")
    proxy.latency_ms = 0
    name = store.client().list("catalog", "p/snapshot/")[17].rpartition("/")[2]
    proxy.rules(Rule("^GET .*" + name, "flip_down", at=500))
    is_(catalog(store, proxy.endpoint, "list")[0].partition(",")[0], f"ok {COUNT - 1} 1",
        "a damaged record is counted")
    proxy.rules(Rule("^GET .*" + name, "status", code=403))
    like(catalog(store, proxy.endpoint, "list")[0], "^error auth .*" + name,
         "a store that refuses one ends it")


run(main)
