#!/usr/bin/env python3
"""The fault proxy against a real gateway, plain and TLS: what the client sees, what the server has.
check: build=release timeout=120"""
import os
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from faultproxy import FaultProxy, Rule  # noqa: E402
from tm import *  # noqa: E402,F403

DATA = os.urandom(1 << 20)
AT = 500000


class Bench:
    """A proxy before a gateway, a client through it, a client beside it."""

    def __init__(self, box, store, tls):
        self.proxy = FaultProxy(box, store.endpoint,
                                (store.key_file, store.ca_file) if tls else None)
        self.client = s3.Client(self.proxy.endpoint, store.keys, timeout_s=20)
        self.direct, self.tls = store.client(), "TLS: " if tls else ""

    def seen(self, method, key, fault=None, **options):
        """(status or the error's kind, body, ms) of one request that the rule befalls."""
        self.proxy.rules(*([Rule(f"^{method} ", fault, **options)] if fault else []))
        start = time.monotonic()
        try:
            answer = self.client.request(method, key, body=DATA if method == "PUT" else b"",
                                         payload=s3.UNSIGNED)
            got, body = answer.status, answer.body
        except OSError as error:
            got, body = type(error).__name__, b""
        self.proxy.rules()
        return got, body, (time.monotonic() - start) * 1000

    def holds(self, key):
        answer = self.direct.get(key)
        return answer.body if answer.status == 200 else None


def broken(got):
    return isinstance(got, str)


def bits(one, other):
    return sum(bin(x ^ y).count("1") for x, y in zip(one, other))


def intact(b):
    got, _, _ = b.seen("PUT", "proxy/intact")
    is_((got, b.holds("proxy/intact") == DATA), (200, True), f"{b.tls}without a rule a PUT arrives")
    got, body, _ = b.seen("GET", "proxy/object")
    is_((got, body == DATA), (200, True), f"{b.tls}and a GET comes back")


def time_faults(b):
    got, _, ms = b.seen("PUT", "proxy/delay", "delay", ms=300)
    ok(got == 200 and ms >= 300, f"{b.tls}delay: 200, but not before 300 ms")
    got, _, ms = b.seen("PUT", "proxy/rate", "rate", bps=4e6)
    ok(got == 200 and ms >= 250, f"{b.tls}rate: 1 MiB takes a quarter of a second at 4 MB/s")
    for kind, method in (("stall_up", "PUT"), ("stall_down", "GET")):
        got, _, ms = b.seen(method, "proxy/object", kind, at=AT, ms=400)
        ok(got == 200 and ms >= 400, f"{b.tls}{kind}: 400 ms of silence, then the rest")


def statuses(b):
    for code, drain in ((503, True), (503, False), (500, True), (429, True)):
        key = f"proxy/status{code}{drain}"
        b.client.connection().close()  # the one whose body was not read has ended
        got, _, _ = b.seen("PUT", key, "status", code=code, drain=drain)
        ok((got == code or not drain and broken(got)) and b.holds(key) is None,
           f"{b.tls}status {code}{'' if drain else ', body unread'}: the server has nothing")
    b.client.connection().close()
    got, body, _ = b.seen("PUT", "proxy/ok", "status", code=200, body="<Error/>")
    is_((got, body, b.holds("proxy/ok")), (200, b"<Error/>", None),
        f"{b.tls}status 200 with an error in the body")


def resets(b):
    for kind in ("reset", "reset_up"):
        got, _, _ = b.seen("PUT", "proxy/" + kind, kind, at=AT)
        ok(broken(got) and b.holds("proxy/" + kind) is None, f"{b.tls}{kind}: nothing was stored")
    got, _, _ = b.seen("PUT", "proxy/lost", "lost_answer")
    ok(broken(got) and b.holds("proxy/lost") == DATA, f"{b.tls}lost_answer: stored all the same")
    for kind in ("reset_down", "fin_down"):
        got, _, _ = b.seen("GET", "proxy/object", kind, at=AT)
        ok(broken(got), f"{b.tls}{kind}: the answer breaks off ({got})")


def bodies(b):
    got, body, _ = b.seen("GET", "proxy/object", "flip_down", at=0.5, bit=3)
    is_((got, bits(body, DATA)), (200, 1), f"{b.tls}flip_down: one bit differs")
    got, _, _ = b.seen("PUT", "proxy/flip", "flip_up", at=0.5)
    is_((got, bits(b.holds("proxy/flip") or b"", DATA)), (200, 1),
        f"{b.tls}flip_up: one bit of the object differs")
    got, body, _ = b.seen("GET", "proxy/object", "short_length", at=4096)
    ok(got == 200 and body == DATA[:4096], f"{b.tls}short_length: a whole answer of 4096 bytes")


def connections(b):
    b.client.get("proxy/object")
    before = b.proxy.connections
    b.seen("GET", "proxy/object")
    is_(b.proxy.connections, before, f"{b.tls}connections are kept alive")
    b.seen("GET", "proxy/object", "close_idle")
    got, _, _ = b.seen("GET", "proxy/object")
    ok(broken(got), f"{b.tls}close_idle: the next request finds it closed ({got})")
    got, _, _ = b.seen("PUT", "proxy/twice", "duplicate")
    is_((got, b.holds("proxy/twice") == DATA), (200, True), f"{b.tls}duplicate: sent twice")
    b.proxy.rules(Rule("^PUT", "duplicate"))
    got = b.client.put("proxy/once", DATA, headers={"if-none-match": "*"}).status
    b.proxy.rules()
    is_(got, 412, f"{b.tls}a duplicate of a conditional PUT is told 412 for its own object")


def outage(b):
    b.client.get("proxy/object")
    b.proxy.down()
    ok(broken(b.seen("GET", "proxy/object")[0]), f"{b.tls}down: the open connection is gone")
    is_(b.seen("GET", "proxy/object")[0], "ConnectionRefusedError", f"{b.tls}down: nobody listens")
    b.proxy.up()
    is_(b.seen("GET", "proxy/object")[0], 200, f"{b.tls}up: it answers again at the same port")


def log_and_seeds(b):
    def sequence(seed):
        b.proxy.rules(Rule("^GET .*object", ("status", "reset"), prob=0.4, seed=seed))
        poll(lambda: b.proxy.running == 0, 10, "the line of the request before", 0.01)
        b.proxy.forget()
        for _ in range(30):
            try:
                b.client.get("proxy/object")
            except OSError:
                pass
        poll(lambda: len(b.proxy.log) == 30, 10, "30 lines in the log", 0.01)
        return [x.fault for x in b.proxy.log]
    first, again, other = sequence(7), sequence(7), sequence(8)
    ok(first == again != other and {None, "status", "reset"} == set(first),
       f"a seed gives the same faults again ({30 - first.count(None)} of 30), another one others")
    b.proxy.rules(Rule("^GET", "delay", ms=200))
    b.proxy.forget()
    threads = [threading.Thread(target=lambda: b.client.get("proxy/object")) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    is_(b.proxy.peak, 12, "peak counts requests that run at the same time")
    b.proxy.rules(Rule("^GET", "status", nth=3), Rule("^GET", "status", code=500, every=5))
    codes = [b.client.get("proxy/object").status for _ in range(10)]
    is_([c for c in codes if c != 200], [503, 500], "nth and every choose what they say")


def main():
    s3.need_ceph()
    box = Sandbox("faultproxy")
    store = s3.ceph(box)
    store.bucket("proxy")
    store.client().put("proxy/object", DATA)
    for tls in (False, True):
        b = Bench(box, store, tls)
        for part in (intact, time_faults, statuses, resets, bodies, connections, outage):
            part(b)
        if not tls:
            log_and_seeds(b)


run(main)
