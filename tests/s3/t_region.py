#!/usr/bin/env python3
"""A wrong region on a server that insists on its own (Swift): the one that it names is used, in
client mode and, after it, by lanes.
check: build=asan timeout=120"""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from s3_tool import StoreTool  # noqa: E402
from tm import *  # noqa: E402,F403


def lanes(store, region):
    """Lanes begin with what client mode has learned."""
    store.bucket("lanes")
    done = subprocess.run(
        [os.path.join(BUILD, "tests/s3/tool_pipes"), "s3://lanes/p", "round", "48",
         f"endpoint={store.endpoint}", f"region={region}", "connections=12"],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=90, check=False,
        env={**os.environ, "AWS_ACCESS_KEY_ID": store.keys.access,
             "AWS_SECRET_ACCESS_KEY": store.keys.secret})
    ok(done.returncode == 0 and "not ok" not in done.stdout,
       f"region {region}: a volume there and back over lanes")
    if done.returncode != 0 or "not ok" in done.stdout:
        diag(done.stdout)


def main():
    s3.need_swift()
    box = Sandbox("s3region")
    need_programs("tests/s3/tool_store", "tests/s3/tool_pipes")
    store = s3.swift(box)
    store.bucket("repo")
    for region in (store.region, "mars-north-1"):
        with StoreTool(store, "s3://repo/" + region, region=region) as tool:
            is_(tool("put", "a/b", 1000, 7), "ok", f"region {region}: put")
            is_(tool("get", "a/b", 1000, 7), "ok", f"region {region}: get")
            is_(tool.names("a/"), ["a/b"], f"region {region}: list")
            is_(tool("remove", "a/b"), "ok 0", f"region {region}: remove")
    lanes(store, "mars-north-1")


run(main)
