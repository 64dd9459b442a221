#!/usr/bin/env python3
"""A wrong region on a server that insists on its own (Swift): the one that it names is used.
check: build=asan timeout=120"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from s3_tool import StoreTool  # noqa: E402
from tm import *  # noqa: E402,F403


def main():
    s3.need_swift()
    box = Sandbox("s3region")
    need_programs("tests/s3/tool_store")
    store = s3.swift(box)
    store.bucket("repo")
    for region in (store.region, "mars-north-1"):
        with StoreTool(store, "s3://repo/" + region, region=region) as tool:
            is_(tool("put", "a/b", 1000, 7), "ok", f"region {region}: put")
            is_(tool("get", "a/b", 1000, 7), "ok", f"region {region}: get")
            is_(tool.names("a/"), ["a/b"], f"region {region}: list")
            is_(tool("remove", "a/b"), "ok 0", f"region {region}: remove")


run(main)
