#!/usr/bin/env python3
"""tidemark-wal on object stores: exit statuses of push and get, answers that only look like "it is
not there", segments through a proxy that fails by a seed, pushed ahead too, and a recovery over
TLS.
check: build=asan timeout=300"""
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), os.path.join(HERE, "..", "pg")]
import s3  # noqa: E402
import tm  # noqa: E402
from delayproxy import DelayProxy  # noqa: E402
from faultproxy import FaultProxy, Rule  # noqa: E402
from s3_node import Place, credentials_file  # noqa: E402
from tm import *  # noqa: E402,F403
from wal_lib import (Archiver, Copy, Directory, Primary, Pushers,  # noqa: E402
                     S3Archive, SYSTEM_ID, name_of, segment)  # noqa: E402

FAULTS = ("status", "reset", "reset_up", "reset_down", "lost_answer", "fin_down", "flip_up",
          "flip_down", "short_length", "close_idle", "duplicate", "delay", "rate")
FAST = {"get-timeout": "2s"}


def push(archive, data, number, fill=0, **options):
    data.write("pg_wal/" + name_of(number), segment(number, fill=fill))
    return archive.run("push", "pg_wal/" + name_of(number), cwd=data.path, **options)


def get(archive, data, number, **options):
    """(Result, what was delivered or None)."""
    path = os.path.join(data.path, "pg_wal/RECOVERYXLOG")
    if os.path.exists(path):
        os.unlink(path)
    done = archive.run("get", name_of(number), "pg_wal/RECOVERYXLOG", cwd=data.path,
                       **{**FAST, "prefetch": 0, **options})
    return done, data.read("pg_wal/RECOVERYXLOG") if os.path.exists(path) else None


def configured(archive, **more):
    """Options that take all from a configuration file."""
    conf = archive.box.write("wal.conf", conf_text({
        "tidemark": {"cluster": "main"}, "repository": archive.place.section(**more)}))
    return {"config": conf, **dict.fromkeys(("repository", "cluster", "endpoint",
                                             "credentials-file", "ca-file"))}


def statuses(archive, data, store):
    is_status(push(archive, data, 1), 0, "push")
    is_status(push(archive, data, 1), 0, "the same again")
    is_status(push(archive, data, 1, fill=1), "refused", "other bytes under its name")
    is_(archive.objects(SYSTEM_ID), [name_of(1)], "one object")
    done, got = get(archive, data, 1)
    ok(done.status == 0 and got == segment(1), "get delivers it")
    done, got = get(archive, data, 2)
    ok(done.status == 1 and got is None, f"get of what is not there: {done.status}")
    wrong = credentials_file(archive.box, "wal-wrong", s3.Keys(store.keys.access, "wrong"))
    unused = f"http://127.0.0.1:{s3.free_ports(1)[0]}"
    for what, options, want in (
            ("a wrong key", {"credentials-file": wrong}, "auth"),
            ("no such file of keys", {"credentials-file": "/nonexistent"}, "auth"),
            ("a bucket that is not there", {"repository": "s3://absent-bucket"}, "store"),
            ("an empty prefix", {"repository": "s3://wal/other"}, "store"),
            ("a server that is not there", configured(archive, endpoint=unused,
                                                      retry_timeout="1s"), "store")):
        is_status(push(archive, data, 3, **options), want, f"push, {what}")
        done, got = get(archive, data, 1, **options)
        ok(done.status == 126 and got is None, f"get, {what}: {done.status}, not 1")
        like(done.err, "hint: ", f"get, {what}: with a hint")


def round_trips(archive, data, proxy):
    """A push costs three: who the repository is, whether the segment is there, and its PUT. Nobody
    knows yet whether the server creates once."""
    proxy.forget()
    is_status(push(archive, data, 50), 0, "a push")
    poll(lambda: proxy.running == 0, 10, "the proxy")
    lines = [x.method + " " + x.target.partition("?")[0] for x in proxy.log]
    is_(len(lines), 3, f"three round trips: {lines}")


def only_looks_absent(archive, data, proxy):
    """Answers of proxies, portals and broken servers that must not end a recovery early."""
    bodies = (
        ("an HTML page", 404, "<html><body>404 Not Found</body></html>"), ("no body", 404, ""),
        ("NoSuchBucket", 404, "<Error><Code>NoSuchBucket</Code></Error>"),
        ("half an error", 404, "<Error><Code>NoSuch"), ("a 200 without a body", 200, ""),
        ("an error in a 200", 200, "<Error><Code>InternalError</Code></Error>"),
        ("a redirect", 301, ""), ("403", 403, "<Error><Code>AccessDenied</Code></Error>"))
    for what, code, body in bodies:
        proxy.rules(Rule("^(GET|HEAD) .*wal", "status", code=code, body=body))
        done, got = get(archive, data, 1)
        ok(done.status == 126 and got is None, f"{what}: get says {done.status}, not 1")
    proxy.rules()
    done, got = get(archive, data, 1)
    ok(done.status == 0 and got == segment(1), "afterwards it is delivered")


def chaos(archive, data, proxy):
    """Whatever happens, push is right about what is stored, get about what it delivers."""
    rng, seed = seeded()
    wrong, failed = [], 0
    count = 300 if CAMPAIGN else 12
    for number in range(100, 100 + count):
        proxy.rules(Rule("^", FAULTS, prob=0.25, seed=seed + number, ms=500, bps=4e6,
                         code=rng.choice((500, 503, 429))))
        pushed = push(archive, data, number, fill=number)
        done, got = get(archive, data, number, **{"get-timeout": "20s"})
        proxy.rules()
        direct, held = get(archive, data, number)
        if pushed.status == 0 and held != segment(number, fill=number):
            wrong.append(f"{number}: push said 0, but get says {direct.status}")
        if pushed.status not in (0, 12) or done.status not in (0, 1, 126) or \
                (done.status == 1) != (held is None and done.status == 1) or \
                (done.status == 0 and got != segment(number, fill=number)) or \
                (done.status != 0 and got is not None):
            wrong.append(f"{number}: push {pushed.status}, get {done.status}: {done.err}")
        failed += pushed.status != 0 or done.status != 0
    is_(wrong, [], f"{count} segments under faults: no wrong status, no wrong byte")
    ok(failed <= count // 4, f"{failed} of {count} failed: retries hide the rest")
    ok(proxy.hits(), f"{len(proxy.hits())} faults: "
       + " ".join(sorted({x.fault for x in proxy.hits()})))


def pushed_ahead(box, archive, store, proxy):
    """Many files wait: what the process that pushes ahead meets is told by archive_command, and
    whatever is acknowledged is stored."""
    rng, seed = seeded()
    wrong = credentials_file(box, "ahead-wrong", s3.Keys(store.keys.access, "wrong"))
    a = Archiver(box, archive, "ahead", **configured(archive, retry_timeout="3s"))
    box.before_clean.append(Pushers(a.data.path).kill)
    first = 2000
    a.ready(*range(first, first + 12))
    good, a.options = a.options, {"credentials-file": wrong}
    done = a.call(name_of(first))
    is_status(done, "auth", "twelve files wait, a wrong key")
    like(done.err, r"error: tidemark-wal push .*\nhint: ", "the error, with its hint")
    a.options = good
    proxy.rules(Rule("^PUT .*wal", "status", code=503))
    is_status(a.call(name_of(first)), "store", "a server that takes nothing")
    ok(name_of(first) not in a.stored(), "is not believed")
    proxy.rules()
    is_(a.all(), [], "once it does: all of them")
    failed, first, count = [], 3000, 400 if CAMPAIGN else 24
    a.ready(*range(first, first + count))
    proxy.rules(Rule("^", FAULTS, prob=0.15, seed=seed, ms=300, bps=4e6,
                     code=rng.choice((500, 503, 429))))
    for _ in range(5):
        failed += a.all()
    proxy.rules()
    ok(set(failed) <= {12}, f"under faults: {len(failed)} calls failed, with {set(failed)}")
    is_(a.all(), [], "the rest without")
    is_(a.wrong, [], "every acknowledged file is in the repository")
    ok(set(map(name_of, range(first, first + count))) <= set(a.stored()), "and all are there")
    Pushers(a.data.path).kill()


def asked_rarely(box, archive, proxy):
    """Who the repository is, is asked at connecting and then once a second a connection, not for
    every file that is pushed ahead. Returns the Archiver: its process lives."""
    a = Archiver(box, archive, "rarely", **configured(archive))
    box.before_clean.append(Pushers(a.data.path).kill)
    first, count, connections = 5000, 60, 8
    a.ready(*range(first, first + count))
    proxy.forget()
    start = time.monotonic()
    is_status(a.call(name_of(first)), 0, f"{count} files: the first")
    poll(lambda: len(proxy.requests("^PUT .*/wal/")) == count, 60, "the others")
    seconds = time.monotonic() - start
    asked = len(proxy.requests("^GET .*/tidemark.repo"))
    ok(asked <= connections * (seconds + 2), f"{asked} questions who it is in {seconds:.1f} s")
    is_(a.all(), [], "all are acknowledged")
    return a


def replaced(box, a, archive, store, proxy):
    """Another repository takes the place of the one that a living process pushes to, in the middle
    of a PUT: what ends up there is not acknowledged."""
    client, bucket = store.client(store.keys), archive.place.bucket
    other = S3Archive(box, Place(box, store, "other"))
    names = ("tidemark.repo", "tidemark.repo.copy")
    own = {name: client.get(f"{bucket}/{name}").body for name in names}
    theirs = {name: client.get(f"{other.place.bucket}/{name}").body for name in names}

    def put(objects):
        for name, body in objects.items():
            client.put(f"{bucket}/{name}", body)

    first = 6000
    slow = Rule("^PUT .*/wal/", "delay", ms=2000)
    proxy.rules(slow)
    a.ready(*range(first, first + 12))
    running = a.start(name_of(first))
    poll(lambda: slow.fired, 60, "the PUT of the first")
    put(theirs)
    done = a.end(name_of(first), running)
    is_status(done, "store", "another repository in its place while a PUT is under way")
    like(done.err, "another repository has taken the place of s3://", "and it says so")
    proxy.rules()
    put(own)
    is_(a.all(), [], "once its own is back, all are archived")
    is_(a.wrong, [], "every acknowledged file is in the repository")
    Pushers(a.data.path).kill()


def recovery(box, place, delay):
    """A real server archives over TLS, a copy of it recovers with prefetch."""
    archive = S3Archive(box, place)
    primary = Primary(box, archive, name="primary", max_wal_size="1GB")
    base = primary.base_backup("base")
    primary.pgbench_init(1)
    slow = primary.pgbench("-R", "200")
    delay.latency_ms = 300  # so that segments pile up
    primary.fill(150)
    poll(Pushers(primary.data).pids, 60, "the process that pushes ahead")
    ok(True, "a slow server: segments are pushed ahead")
    slow.stop()
    delay.latency_ms = 0
    sums = primary.pgbench_sums()
    primary.switch_and_wait()
    is_(primary.psql("select failed_count from pg_stat_archiver"), "0", "no push failed")
    rows = primary.psql("select count(*), sum(hashtext(x)::bigint) from filler")
    copy = Copy(box, base, "copy", archive.restore_command(prefetch=4))
    copy.start()
    copy.wait_ready()
    is_(copy.psql("select count(*), sum(hashtext(x)::bigint) from filler"), rows,
        "recovery over TLS: every row is there")
    is_(copy.pgbench_sums(), sums, "and pgbench's sums")
    unlike(copy.log_text(), "FATAL", "and the log tells of no failure")
    ok(int(copy.psql("select timeline_id from pg_control_checkpoint()")) == 2, "on a new timeline")
    copy.stop()
    primary.stop()


def main():
    s3.need_ceph()
    box = need_root() or Sandbox("s3wal")
    need_programs("tidemark", "tidemark-wal", "tidemark-wal-worker", "tests/s3/tool_delay")
    store = s3.ceph(box)
    proxy = FaultProxy(box, store.endpoint)
    data = Directory(box, "data")
    archive = S3Archive(box, Place(box, store, "wal", "pre/fix"))
    statuses(archive, data, store)
    behind = S3Archive(box, Place(box, store, "proxied", endpoint=proxy.endpoint))
    is_status(push(behind, data, 1), 0, "through the proxy: push")
    round_trips(behind, data, proxy)
    only_looks_absent(behind, data, proxy)
    chaos(behind, data, proxy)
    pushed_ahead(box, behind, store, proxy)
    replaced(box, asked_rarely(box, behind, proxy), behind, store, proxy)
    delay = DelayProxy(box, store.tls_endpoint)
    recovery(box, Place(box, store, "tls", endpoint=delay.endpoint), delay)
    if s3.missing("swift"):
        skip(s3.missing("swift"))
        return
    other = s3.swift(box)
    archive = S3Archive(box, Place(box, other, "wal"))
    is_status(push(archive, data, 1), 0, "Swift: push")
    is_status(push(archive, data, 1), 0, "Swift: the same again")
    is_status(push(archive, data, 1, fill=1), "refused", "Swift: other bytes under its name")
    done, got = get(archive, data, 1)
    ok(done.status == 0 and got == segment(1), "Swift: get delivers it")
    is_status(get(archive, data, 2)[0], 1, "Swift: get of what is not there")


run(main)
