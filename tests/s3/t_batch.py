#!/usr/bin/env python3
"""Removing many objects in batches, on both servers: more than one batch holds, some absent, and a
key that may not.
check: build=asan timeout=200"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from s3_tool import StoreTool  # noqa: E402
from tm import *  # noqa: E402,F403


def batches(store, count):
    """count objects, made with the client of the tests; three of them are absent."""
    store.bucket("batch")
    client = store.client()
    for i in list(range(count - 3)) + ["kept"]:
        client.put(f"batch/p/a/{i}", b"x")
    with StoreTool(store, "s3://batch/p") as tool:
        is_(len(tool.names("a/")), count - 2, f"{store.name}: the objects are there")
        is_(tool("clear", "a/", count), f"ok {count}", f"{store.name}: {count} are removed")
        is_(tool.names("a/"), ["a/kept"], f"{store.name}: and nothing else")


def main():
    s3.need_ceph()
    box = Sandbox("s3batch")
    need_programs("tests/s3/tool_store")
    ceph = s3.ceph(box)
    batches(ceph, 1007)
    keys = ceph.user("nodelete", "read, write")
    ceph.bucket("kept", keys)
    with StoreTool(ceph, "s3://kept", keys=keys) as tool:
        is_(tool("put", "a0", 10, 1), "ok", "a key that cannot delete stores")
        like(tool("clear", "a", 1), "^error auth .*AccessDenied", "and may not remove in a batch")
        is_(tool("size", "a0"), "ok 10", "the object is still there")
    if s3.missing("swift"):
        skip(s3.missing("swift"))
    else:
        batches(s3.swift(box), 40)


run(main)
