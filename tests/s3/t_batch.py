#!/usr/bin/env python3
"""Removing many objects in batches, on both servers: more than one batch holds, some absent, a key
that may not, keys that fail one by one.
check: build=asan timeout=200"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from faultproxy import FaultProxy, Rule  # noqa: E402
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


def answer(*errors):
    """What a server says whose batch went well but for these (key, code)."""
    return '<?xml version="1.0"?><DeleteResult>' + "".join(
        f"<Error><Key>{key}</Key><Code>{code}</Code><Message>m</Message></Error>"
        for key, code in errors) + "</DeleteResult>"


def single_keys(box, store):
    """200, and in it an error for some keys: those are asked for again, nothing else is."""
    store.bucket("keys")
    client, proxy = store.client(), FaultProxy(box, store.endpoint)

    def lengths():
        """Of the batches; the proxy notes a request after it has passed the answer on."""
        poll(lambda: proxy.running == 0, 10, "the proxy")
        return [x.length for x in proxy.requests("^POST ")]

    def rule(body, times=None):
        lengths()
        proxy.rules(Rule("^POST .*delete", "status", code=200, body=body, times=times))
        proxy.forget()
        for i in range(3):
            client.put(f"keys/p/a{i}", b"x")
    with StoreTool(store, "s3://keys/p", endpoint=proxy.endpoint, retry_ms=3000) as tool:
        for code in ("InternalError", "SlowDown", "ServiceUnavailable"):
            rule(answer(("p/a1", code), ("p/a1", code), ("p/a7", "NoSuchKey")), times=2)
            is_(tool("clear", "a", 3), "ok 3", f"{code} of one key passes")
            sizes = lengths()
            ok(len(sizes) == 3 and sizes[1] == sizes[2] < sizes[0],
               f"it alone is tried again, twice ({sizes})")
            is_(client.list("keys", "p/"), ["p/a0", "p/a2"], "and is removed in the end")
        rule(answer(("p/a2", "InternalError")))
        like(tool("clear", "a", 3), r"^error store remove 'p/a2'.*InternalError.*gave up with 1 ",
             "one that never passes: an error in the end")
        rule(answer(("p/a0", "InternalError"), ("p/a2", "AccessDenied")))
        like(tool("clear", "a", 3), "^error auth .*'p/a2'.*AccessDenied", "a refusal is final")
        is_(len(lengths()), 1, "at once")
        rule(answer(("p/other", "InternalError")))
        like(tool("clear", "a", 3), "^error store .*'p/other'", "a key that nobody asked for")


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
        is_(tool("put", "a0", 20, 2), "exists", "nothing is replaced by the way")
    single_keys(box, ceph)
    if s3.missing("swift"):
        skip(s3.missing("swift"))
    else:
        batches(s3.swift(box), 40)


run(main)
