#!/usr/bin/env python3
"""What our code relies on in the two stores: which checks they make, which they only seem to make.
When a new release of a store changes one of these, this says so before anything else breaks.
check: build=release timeout=180"""
import base64
import hashlib
import os
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
import sandbox  # noqa: E402
from tm import *  # noqa: E402,F403

DATA = os.urandom(300000)
SHA = hashlib.sha256(DATA).hexdigest()


def md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def got(answer):
    return f"{answer.status} {answer.code}".strip()


class Probe:
    def __init__(self, store, want):
        self.store, self.want, self.client = store, want, store.client()
        self.kind = want["kind"]

    def is_(self, answer, want, text):
        is_(answer if isinstance(answer, str) else got(answer), want, f"{self.kind}: {text}")


def integrity(p):
    p.is_(p.client.put("probe/a", DATA), "200", "a signed SHA-256 is taken")
    p.is_(p.client.put("probe/bad", DATA, payload=hashlib.sha256(b"").hexdigest()),
          p.want["sha"], "a body that differs from its signed SHA-256 is refused")
    p.is_(p.client.put("probe/bad", DATA, headers={"content-md5": md5(b"other")},
                       payload=s3.UNSIGNED), "400 BadDigest", "and from its Content-MD5")
    p.is_(p.client.put("probe/md5", DATA, headers={"content-md5": md5(DATA)},
                       payload=s3.UNSIGNED), "200", "the right Content-MD5 is taken")
    p.is_(p.client.head("probe/bad"), "404", "nothing of the refused ones is stored")
    wrong = {"x-amz-checksum-sha256": base64.b64encode(bytes(32)).decode()}
    p.is_(p.client.put("probe/checksum", DATA, headers=wrong), "200",
          "a wrong x-amz-checksum-sha256 is ignored: not to be relied on")


def refusals(p):
    access, secret = p.store.keys
    p.is_(p.store.client(s3.Keys(access, "wrong")).get("probe/a"), "403 SignatureDoesNotMatch",
          "a wrong secret")
    p.is_(p.store.client(s3.Keys("NOBODY:nobody", secret)).get("probe/a"), p.want["unknown"],
          "an unknown key")
    p.is_(p.client.get("probe/a", skew_s=-3600), "403 RequestTimeTooSkewed",
          "a clock that is an hour late")
    p.is_(p.client.get("probe/none"), "404 NoSuchKey", "a missing object")
    p.is_(p.client.get("absent-bucket/none"), "404 NoSuchBucket", "a missing bucket")


def ranges(p):
    answer = p.client.get("probe/a", headers={"range": "bytes=100-199"})
    ok(answer.status == 206 and answer.body == DATA[100:200], f"{p.kind}: a ranged GET")
    p.is_(p.client.get("probe/a", headers={"range": "bytes=300000-"}), p.want["range"],
          "a range beyond the end")
    is_(p.client.head("probe/a").headers.get("content-length"), "300000", f"{p.kind}: HEAD's size")


def conditional(p):
    create = {"if-none-match": "*"}
    p.is_(p.client.put("probe/once", b"1", headers=create), p.want["create"],
          "PUT with If-None-Match: * of a new object")
    p.is_(p.client.put("probe/once", b"2", headers=create), p.want["again"],
          "and of one that exists")
    if p.want["create"] != "200":
        return
    statuses, barrier = [], threading.Barrier(16)

    def race(index):
        barrier.wait()
        statuses.append(p.client.put("probe/race", b"%d" % index, headers=create).status)
    threads = [threading.Thread(target=race, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    is_(statuses.count(200), 1, f"{p.kind}: one of 16 at the same time wins ({statuses})")


def addressing(p):
    host = f"probe.{p.store.vhost_domain}:{p.client.port}"
    answer = p.client.request("GET", "a", host=host)
    ok(answer.status == 200 and answer.body == DATA, f"{p.kind}: virtual-host style")
    names = ("a b", "plus+x", "pct%41", "uni-\u00e9", "a=b&c", "tilde~", "col:on", "dd//x")
    bad = [n for n in names if p.client.put("probe/" + n, n.encode()).status != 200
           or p.client.get("probe/" + n).body != n.encode()]
    is_(bad, [], f"{p.kind}: names with odd characters")
    is_(sorted(set(names) - set(p.client.list("probe"))), [], f"{p.kind}: and they are listed")


def listing(p):
    if not p.want["many"]:
        keys = [f"list/{i:02d}" for i in range(7)]
        for key in keys:
            p.client.put("probe/" + key, b"x")
        is_(p.client.list("probe", "list/", page=3), keys, f"{p.kind}: three pages")
        return
    keys = [f"list/{i:04d}" for i in range(1003)]
    for key in keys:
        p.client.put("probe/" + key, b"x")
    query = {"list-type": "2", "prefix": "list/", "max-keys": "5000"}
    answer = p.client.request("GET", "probe", query)
    ok(answer.body.count(b"<Key>") == 1000 and b"<IsTruncated>true" in answer.body,
       f"{p.kind}: a page holds 1000 keys, whatever is asked")
    is_(p.client.list("probe", "list/"), keys, f"{p.kind}: the token brings the rest, in order")


def deleting(p):
    body = b"".join(b"<Object><Key>list/%s</Key></Object>" % n for n in (b"0000", b"0001", b"nil"))
    body = b"<Delete>" + body + b"</Delete>"
    answer = p.client.request("POST", "probe", {"delete": ""}, {"content-md5": md5(body)}, body)
    ok(answer.status == 200 and answer.body.count(b"<Deleted>") == 3,
       f"{p.kind}: a batch delete, also of a key that is not there")
    p.is_(p.client.delete("probe/a"), "204", "DELETE")
    p.is_(p.client.delete("probe/a"), "204", "DELETE of what is gone")
    p.is_(p.client.delete("probe"), "409 BucketNotEmpty", "DELETE of a bucket in use")


def tls(p):
    p.client.put("probe/tls", DATA)
    answer = p.store.client(endpoint=p.store.tls_endpoint).get("probe/tls")
    ok(answer.status == 200 and answer.body == DATA, f"{p.kind}: TLS on a port of its own")


def keys_of_ceph(p):
    """Ways in which credentials can be less than an administrator's."""
    agent = p.store.user("agent", "read, write")
    client = p.store.client(agent)
    p.store.bucket("agentbucket", agent)
    p.is_(client.put("agentbucket/a", DATA), "200", "a key without delete permission writes")
    p.is_(client.delete("agentbucket/a"), "403 AccessDenied", "and does not delete")
    p.is_(client.put("probe/a", DATA), "403 AccessDenied", "nor writes into another's bucket")
    p.store.suspend("agent")
    p.is_(client.get("agentbucket/a"), "403 UserSuspended", "a suspended user")
    small = p.store.user("small")
    p.store.quota("small", 1 << 20)
    p.store.bucket("smallbucket", small)
    answers = [got(p.store.client(small).put(f"smallbucket/{i}", DATA)) for i in range(6)]
    ok(answers[0] == "200" and answers[-1] == "403 QuotaExceeded", f"Ceph: a quota ({answers})")


def throttle_of_ceph(p):
    gateway = p.store.throttled_gateway(1)
    p.client.put("probe/big", DATA * 20)
    client, codes = p.store.client(endpoint=gateway.endpoint), []

    def fetch():
        for _ in range(10):
            codes.append(got(client.get("probe/big")))
    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    is_(set(codes), {"200", "503 SlowDown"}, "Ceph: a gateway over its limit says 503 SlowDown")
    gateway.kill()


def killed_run(kind):
    """A test that dies with kill -9 leaves a store behind: its directory's name finds it all."""
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import s3, tm; box = tm.Sandbox('dying');"
            f"s3.{kind}(box); print(box.path, flush=True); sys.stdin.read()")
    lib = os.path.join(SOURCE, "tests/lib")
    child = subprocess.Popen([sys.executable, "-c", code, lib], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    root = child.stdout.readline().strip()
    child.kill()
    child.wait()
    left = len(processes_below(root))
    is_(sandbox.clean(root), [], f"{kind}: the {left} processes of a killed run are ended")
    ok(left >= 3 and not os.path.exists(root) and not processes_below(root),
       f"{kind}: nothing is left of it")


CEPH = {"kind": "Ceph", "sha": "400 XAmzContentSHA256Mismatch", "unknown": "403 InvalidAccessKeyId",
        "range": "416 InvalidRange", "create": "200", "again": "412 PreconditionFailed",
        "many": True}
SWIFT = {"kind": "Swift", "sha": "400 BadDigest", "unknown": "403 SignatureDoesNotMatch",
         "range": "416 InvalidRange", "create": "501 NotImplemented",
         "again": "501 NotImplemented", "many": False}


def probes(store, want, *more):
    store.bucket("probe")
    p = Probe(store, want)
    for part in (integrity, refusals, ranges, conditional, addressing, listing, deleting, tls,
                 *more):
        part(p)
    store.kill()


def main():
    s3.need_ceph()
    box = Sandbox("stores")
    probes(s3.ceph(box), CEPH, keys_of_ceph, throttle_of_ceph)
    killed_run("ceph")
    if s3.missing("swift"):
        skip(s3.missing("swift"))
        return
    probes(s3.swift(box, tls=True), SWIFT)
    killed_run("swift")


run(main)
