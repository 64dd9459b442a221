#!/usr/bin/env python3
"""Object lock (lock_days) in a bucket of a real radosgw: what a snapshot needs is locked before the
snapshot is there, nobody removes it before its date, and expire takes it, with all versions, behind
it. Locks of a day for what must hold, of seconds (TIDEMARK_TEST_LOCK_S) for what must end.
check: build=release timeout=300"""
import argparse
import base64
import hashlib
import json
import os
import re
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
import schemas  # noqa: E402
import tidemark_reader as stranger  # noqa: E402
from faultproxy import Rule  # noqa: E402
from s3_node import Place, World  # noqa: E402
from tm import *  # noqa: E402,F403

LOCKED = ("pack/", "table/", "volume/", "snapshot/", "wal/", "tidemark.repo")


class Story:
    def __init__(self, box, store):
        self.box, self.store = box, store
        self.world = World(box, store, "locked", proxy=False, lock=True, lock_days=1,
                           rewrite_budget="0%")  # packs stay shared
        self.client = store.client()

    def path(self, name):
        return f"locked/{name}"

    def records(self):
        done = self.world.cli("list", "--json")
        is_status(done, 0, "the snapshots can be listed")
        return {r["tag"]: r for r in map(json.loads, done.out.splitlines())}

    def forged(self, identity, text, kind=None):
        """An object as FORMAT.md has it, by somebody who has keys: the record's header."""
        body = json.dumps(text).encode()
        path = self.path(f"snapshot/main/db-locked/{identity}.json")
        head = bytearray(self.client.get(path).body[:176])
        struct.pack_into("<Q", head, 24, len(body))
        if kind is not None:
            struct.pack_into("<I", head, 80, kind)
        head[88:120] = hashlib.sha256(body).digest()
        return bytes(head) + stranger.PLAIN.digest(bytes(head)) + body

    def mark(self, identity):
        """withdrawn/ID."""
        return self.forged(identity, {"format": 1, "id": identity, "why": "expired"}, 4)

    def hold(self, name, status):
        """A legal hold on an object, ON or OFF."""
        body = f"<LegalHold><Status>{status}</Status></LegalHold>".encode()
        digest = base64.b64encode(hashlib.md5(body).digest()).decode()
        answer = self.client.request("PUT", self.path(name), {"legal-hold": ""},
                                     {"content-md5": digest}, body)
        is_(answer.status, 200, f"a legal hold is {status}")

    def reached(self, tag):
        """What a snapshot needs, by the reader that shares no code with the product."""
        source = stranger.Repository(self.world.place.mirror("mirror"))
        record = stranger.find_record(source, tag)
        found = {"tidemark.repo", "tidemark.repo.copy",
                 f"snapshot/main/db-locked/{record['id']}.json"}
        for entry in record["volumes"]:
            volume = stranger.Volume(source, record, entry["name"])
            found.add(f"volume/{volume.id_text}/{record['id']}")
            found |= {f"pack/{volume.id_text}/{s.hex()}/{n:08x}" for s, n in volume.packs}
            found |= {f"table/{volume.id_text}/{p[0].hex()}/{p[1]:08x}" for p in volume.places}
        pg = record["postgresql"]
        size, per = pg["segment_size"], (1 << 32) // pg["segment_size"]
        start, tag = ((int(high, 16) << 32) + int(low, 16) for high, low in
                      (pg[key].split("/") for key in ("start_lsn", "tag_lsn")))
        for number in range(start // size, (tag - 1) // size + 1):
            found.add(f"wal/main/{pg['system_id']}/{pg['timeline']:08X}/"
                      f"{pg['timeline']:08X}{number // per:08X}{number % per:08X}")
        return found

    def whole(self, tag, why, mode="COMPLIANCE"):
        """All that it needs is locked until its date, at least."""
        until_s = self.records()[tag]["locked_until_s"]
        names = self.reached(tag)
        locks = {n: self.client.lock(self.path(n)) for n in names}
        is_([n for n, lock in sorted(locks.items()) if not lock or lock[1] < until_s], [],
            f"{why}: all {len(names)} objects that {tag} needs are locked until its date")
        is_([n for n, lock in locks.items() if lock and lock[0] != mode], [], f"{why}: {mode}")

    def restart(self, lock_s=None, **options):
        """The agent, with locks of so many seconds, or of a day."""
        agent = self.world.node.agent
        agent.stop()
        self.world.node.sections["repository"].update(options)
        self.world.node.write_conf()
        agent.start(**({"TIDEMARK_TEST_LOCK_S": str(lock_s)} if lock_s else {}))


def test_refused(box, store):
    plain = Place(box, store, "plain")
    sections = {"tidemark": {"state_dir": box.mkdir("no-state"), "socket": box.join("no.sock")}}
    for what, section, text in (
            ("a bucket without object lock", plain.section(lock_days=30),
             "lock_days is set, but bucket 'plain' has no object lock"),
            ("a directory", {"url": "file://" + box.join("directory"), "lock_days": 30},
             "file:///.* cannot lock objects")):
        conf = box.write("refused.conf", conf_text({**sections, "repository": section}))
        done = cli("init", conf=conf)
        is_status(done, "config", f"{what} is refused")
        like(done.err, text + "\nhint: ", "and it is said why")
    is_(plain.keys_below(), [], "nothing was made there")


def test_locked(story):
    world = story.world.start()
    is_status(world.snapshot("t1"), 0, "snapshot t1")
    story.whole("t1", "t1")
    refused, left = set(), []
    for key, version, _ in story.client.versions("locked"):
        answer = story.client.delete(story.path(key), query={"versionId": version})
        if key.startswith(LOCKED):
            refused.add(key.split("/")[0])
            left += [key] if answer.status == 204 else []
    is_(left, [], "no version of it can be removed, with the key of the bucket's owner")
    is_(sorted(refused), ["pack", "snapshot", "table", "tidemark.repo", "tidemark.repo.copy",
                          "volume", "wal"], "of any kind")
    is_status(world.cli("verify", "t1"), 0, "t1 verifies")
    world.change(2)
    is_status(world.snapshot("t2"), 0, "snapshot t2")
    record = story.records()["t2"]
    ok(record["parent"] == story.records()["t1"]["id"], "which shares packs with t1")
    ok(record["locked_until_s"] > story.records()["t1"]["locked_until_s"], "is locked for longer")
    story.whole("t2", "t2")


def test_told(story):
    world = story.world
    schemas.conform(world.cli, "locked", "list", want=2)
    schemas.conform(world.cli, "locked", "show", "t2", want=1)
    like(world.cli("list").out, r"LOCKED UNTIL\n(.*\d\d:\d\d:\d\d UTC\n){2}", "list has the dates")
    like(world.cli("show", "t2").out, r"(?m)^ *locked_until: +20.* UTC", "show has it")


def check_row(world):
    rows = [json.loads(line) for line in world.cli("check", "--json").out.splitlines()]
    found = [row for row in rows if row["check"] == "object_lock"]
    return found[0] if found else {"result": "no row"}


def refused(story, pack, status, why):
    done = story.world.snapshot("bad")
    is_status(done, status, f"a snapshot that needs it, where somebody {why}: fails")
    like(done.err, rf"(?s)needs .*'{pack}'.*hint: .*{why}.*`tidemark check`.*--full",
         "says what, and what to do")


def test_hidden(story):
    """Who has the keys can hide what he cannot remove."""
    world = story.world
    row = check_row(world)
    is_(row["result"], "ok", "check: nothing is hidden")
    like(row["detail"], "^1 days, compliance", "and how long it is locked")
    pack = min(n for n in story.reached("t2") if n.startswith("pack/"))
    is_(story.client.delete(story.path(pack)).status, 204, "a removal without a version")
    is_status(world.cli("verify", "t2"), "missing", "hides a pack: verify")
    row = check_row(world)
    is_(row["result"], "failed", "check")
    like(row["detail"], rf"removed 1 objects and replaced 0 .* first is '{pack}'", "says what")
    refused(story, pack, "missing", "removed it")
    marker = [v for k, v, m in story.client.versions("locked", pack) if m]
    is_(story.client.delete(story.path(pack), query={"versionId": marker[0]}).status, 204,
        "the marker can be removed")
    until_s = int(time.time()) + 86400
    digest = base64.b64encode(hashlib.md5(b"no pack").digest()).decode()
    is_(story.client.put(story.path(pack), b"no pack", headers={
        "content-md5": digest, "x-amz-object-lock-mode": "COMPLIANCE",
        "x-amz-object-lock-retain-until-date":
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until_s))}).status, 200,
        "a put, which is locked, hides it too")
    like(check_row(world)["detail"], "removed 0 objects and replaced 1", "check says so")
    is_status(world.cli("verify", "t2"), "corrupt", "and verify finds another object")
    refused(story, pack, "corrupt", "replaced it")
    is_(story.client.lock(story.path(pack)), ("COMPLIANCE", until_s),
        "which is not locked for longer in its place")
    oldest = story.client.versions("locked", pack)[-1][1]
    is_(story.client.put(story.path(pack), b"", headers={
        "x-amz-copy-source": f"/{story.path(pack)}?versionId={oldest}"}).status, 200,
        "the oldest is copied over it, as README says")
    is_(check_row(world)["result"], "ok", "then check is content again")
    is_status(world.cli("verify", "t2"), 0, "and t2 verifies")


def test_identity_hidden(story):
    """Both copies of tidemark.repo: nobody is led to make a new repository over the old one."""
    names = ("tidemark.repo", "tidemark.repo.copy")
    for name in names:
        is_(story.client.delete(story.path(name)).status, 204, f"{name} is hidden")
    for verb in (("list",), ("snapshot", "--tag", "none", "--local"), ("check",)):
        done = story.world.cli(*verb)
        ok(done.status != 0, f"{verb[0]} fails")
        like(done.out + done.err, "hint: 'tidemark.repo' is there as an older version.* README",
             "and says how the repository can be had back")
        unlike(done.out + done.err, "tidemark init", "not how a new one is made")
    done = story.world.cli("init")
    is_status(done, "refused", "init is refused")
    like(done.err, "'tidemark.repo' is hidden", "and says why")
    for name in names:
        for key, version, is_marker in story.client.versions("locked", name):
            if is_marker and key == name:
                story.client.delete(story.path(key), query={"versionId": version})
    is_(check_row(story.world)["result"], "ok", "without the markers check is content")
    is_(story.world.tags(), ["t1", "t2"], "and the snapshots are there")


def test_withdrawn(story):
    """Expire withdraws nothing that is locked: who does hides it, as all that has keys can."""
    identity = story.records()["t1"]["id"]
    mark = story.path(f"withdrawn/{identity}")
    for body, says in ((b"x", "cannot be read"), (story.mark(identity), "says 'expired'")):
        is_(story.client.put(mark, body).status, 200, f"a mark over a locked snapshot, {says}")
        is_(story.world.tags(), ["t2"], "hides it")
        row = check_row(story.world)
        is_((row["result"], row.get("code")), ("failed", "corrupt"), "check fails")
        like(row["detail"], rf"^1 locked snapshot is withdrawn.* 'withdrawn/{identity}', which "
             + says, "says what")
        like(row["hint"], "remove that mark", "and what to do")
        is_(story.client.delete(mark).status, 204, "the mark is removed")
        is_(check_row(story.world)["result"], "ok", "then check is content")
        is_(story.world.tags(), ["t1", "t2"], "and the snapshot is back")


def test_readme(story):
    """README's loop brings back what is locked, and nothing else."""
    with open(os.path.join(SOURCE, "README.md"), encoding="utf-8") as file:
        loop = re.search(r"(?m)^for kind in (.*); do\n.*list-object-versions.*--prefix P/\$kind ",
                         file.read())
    ok(loop, "README has the loop")
    for args in (("pin", "t1"), ("unpin", "t1"), ("verify", "t1")):
        is_status(story.world.cli(*args), 0, " ".join(args))
    needs = story.reached("t1")
    hidden = {min(n for n in needs if n.startswith(kind)) for kind in LOCKED}
    for name in hidden:
        is_(story.client.delete(story.path(name)).status, 204, f"{name.split('/')[0]} is hidden")
    like(story.world.cli("check").out, "FAILED (object_lock|repository)", "check fails")
    for kind in loop.group(1).split():
        seen = set()
        for key, version, is_marker in story.client.versions("locked", kind):
            if is_marker and key not in seen:
                story.client.delete(story.path(key), query={"versionId": version})
            seen.add(key)
    is_(check_row(story.world)["result"], "ok", "after the loop check is content")
    is_status(story.world.cli("verify", "t1"), 0, "and t1 verifies")
    is_([n for n in story.world.place.keys_below() if n.startswith(("pin/", "reading/"))], [],
        "no mark that was removed is back")


def test_killed(story):
    """What is visible is locked with all that it needs, wherever the job dies; also the pack that
    was put over what hid it."""
    world = story.world
    for point, listed in (("snapshot-locking", False), ("snapshot-committing", False),
                          ("snapshot-committed", True)):
        tag = point.removeprefix("snapshot-")
        world.change(1)
        done = world.cli("snapshot", "--local", "--tag", tag, TIDEMARK_TEST_STOP=point)
        ok(done.status != 0, f"kill -9 at {point}")
        is_(tag in world.tags(), listed, "it is visible" if listed else "nothing is visible")
    story.whole("committed", "the one that was killed behind its record")


def expire(story, *args, want=0):
    done = story.world.cli("expire", "--json", "--local", *args, TIDEMARK_TEST_GRACE_S="1")
    is_status(done, want, f"expire {' '.join(args)}")
    result = json.loads(done.out.splitlines()[-1])["result"] if done.out else {}
    return done, result, {s.get("tag"): s for s in result.get("snapshots", [])}


def retention(story, **options):
    story.world.node.sections["retention"] = options
    story.world.node.write_conf()


def versions_of(story):
    return {(key, version) for key, version, _ in story.client.versions("locked")
            if key.startswith(LOCKED) and not key.startswith("wal/")}


def test_kept(story):
    """No rule keeps them, but they are locked."""
    retention(story, count=1)
    before = versions_of(story)
    for args in (("--dry-run",), ()):
        _, result, found = expire(story, *args)
        is_({t: (s["action"], s["why"]) for t, s in found.items()},
            {"t1": ("keep", "locked"), "t2": ("keep", "locked"),
             "committed": ("keep", "newest of its node")}, "what is locked stays")
        is_(found["t1"]["locked_until_s"], story.records()["t1"]["locked_until_s"], "until then")
    like(story.world.cli("expire", "--dry-run", "--local").out,
         r"(?m)^keep +t1 .* locked until 20.* UTC$", "for people, too")
    done = story.world.cli("expire", "t1", "--confirm")
    is_status(done, "refused", "by name it is refused")
    like(done.err, r"snapshot 't1' is locked until 20.*UTC\n.*hint: nobody can remove it before",
         "with the date")
    identity = story.records()["t1"]["id"]
    is_(story.client.put(story.path(f"withdrawn/{identity}"), story.mark(identity)).status, 200,
        "somebody withdraws t1")
    time.sleep(2)  # longer than the grace
    _, result, found = expire(story)
    is_((found["t1"]["action"], found["t1"]["why"]), ("wait", "withdrawn, but locked"), "it stays")
    is_(versions_of(story), before, "nothing was removed, and nothing hidden")
    is_(story.client.delete(story.path(f"withdrawn/{identity}")).status, 204, "without the mark")
    is_status(story.world.cli("verify", "t1"), 0, "it is whole")
    manifest = [k for k in story.world.place.keys_below("volume/") if k.endswith(identity)][0]
    is_(story.client.put(story.path(manifest), b"no manifest").status, 200, "its manifest hidden")
    done = story.world.cli("expire", "--local", TIDEMARK_TEST_GRACE_S="1")
    is_status(done, "corrupt", "nothing is removed then")
    like(done.err, "hint: it cannot be restored, nor given up before its lock ends, 20.*`tidemark "
         "check` says whether", "and how it can be had back is said")
    newest = story.client.versions("locked", manifest)[0]
    is_(story.client.delete(story.path(manifest), query={"versionId": newest[1]}).status, 204,
        "without the newer version")
    is_status(story.world.cli("verify", "t1"), 0, "it is whole again")


def test_forged(story):
    """A record that claims a lock of 20 years, in a plain repository: nothing proves it, and what
    is locked once is locked."""
    name = f"snapshot/main/db-locked/{story.records()['committed']['id']}.json"
    needs = sorted(n for n in story.reached("committed") if n.startswith(("pack/", "table/")))
    before = {n: story.client.lock(story.path(n)) for n in needs}
    text = json.loads(story.client.get(story.path(name)).body[192:])
    text["locked_until_s"] += 20 * 365 * 86400
    forged = story.forged(story.records()["committed"]["id"], text)
    is_(story.client.put(story.path(name), forged).status, 200, "somebody writes a record anew")
    _, result, found = expire(story)
    is_(found["committed"]["action"], "keep", "expire takes it for the snapshot")
    is_({n: lock for n in needs if (lock := story.client.lock(story.path(n))) != before[n]}, {},
        f"and locks none of its {len(needs)} objects for longer")
    is_((result["locks_extended"], found["committed"].get("locked_until_s")), (0, None),
        "it goes by the store's word")
    newest = story.client.versions("locked", name)[0]
    is_(story.client.delete(story.path(name), query={"versionId": newest[1]}).status, 204,
        "without that record")
    is_(expire(story)[2]["committed"]["locked_until_s"],
        story.records()["committed"]["locked_until_s"], "it is locked as it was")


def test_held(story):
    """A record without a date, under a legal hold: without it no rule would keep its snapshot."""
    identity = story.records()["t1"]["id"]
    name = f"snapshot/main/db-locked/{identity}.json"
    body = story.client.get(story.path(name)).body
    is_(story.client.put(story.path(name), body).status, 200, "a record is put anew, unlocked")
    story.hold(name, "ON")
    found = expire(story)[2]["t1"]
    is_((found["action"], found["why"]), ("keep", "legal hold"), "its snapshot stays")
    done = story.world.cli("expire", "t1", "--confirm")
    is_status(done, "refused", "by name it is refused")
    like(done.err, "snapshot 't1' is under a legal hold\n.*hint: it stays until", "with the reason")
    story.hold(name, "OFF")
    found = expire(story, "--dry-run")[2]["t1"]
    is_((found["action"], found["why"]), ("keep", "locked, it says"),
        "without the hold its own word keeps it")
    done = story.world.cli("expire", "t1", "--confirm")
    is_status(done, "refused", "by name it is refused, too")
    like(done.err, "locked by its record, and the store shows no lock\n.*GetObjectRetention.*"
         f"`tidemark expire --confirm {identity}`",
         "with what may be missing, and what to do in a copy")
    like(story.world.cli("expire", "--dry-run", "--local").out,
         r"(?m)^keep +t1 .* locked, it says$", "for people: there is no date")
    is_status(story.world.cli("expire", "--confirm", identity), 0, "its id withdraws it")
    is_(story.client.delete(story.path(f"withdrawn/{identity}")).status, 204, "it is taken back")
    newest = story.client.versions("locked", name)[0]
    is_(story.client.delete(story.path(name), query={"versionId": newest[1]}).status, 204,
        "the first record again")


def test_removed(story):
    """Behind its date a snapshot goes, with all versions; what a newer one needs stays locked."""
    world = story.world
    story.restart(lock_s=5)
    # Bytes that LZ4 leaves as they are: the other reader, in Python, would take half a minute.
    world.server.psql("create table junk (pad bytea); alter table junk alter pad set storage "
                      "external; insert into junk select (select string_agg(sha512(convert_to("
                      "random()::text || j || i, 'UTF8')), ''::bytea) from"
                      " generate_series(1, 16384) j) from generate_series(1, 64) i")
    is_status(world.snapshot("short"), 0, "a snapshot that is locked for seconds")
    world.server.psql("drop table junk")
    story.restart(lock_mode="governance")
    is_status(world.snapshot("last"), 0, "one that is locked for a day, in governance mode")
    records = story.records()
    need = story.reached("last")
    shared = sorted(n for n in need if records["short"]["id"] in n)
    ok(shared, f"which needs {len(shared)} objects of the short one")
    until_s = records["last"]["locked_until_s"]
    is_([n for n in shared if story.client.lock(story.path(n))[1] < until_s], [],
        "and extended their locks")
    own = f"snapshot/main/db-locked/{records['last']['id']}.json"
    version = story.client.versions("locked", own)[0][1]
    is_(story.client.lock(story.path(own))[0], "GOVERNANCE", "its record is in governance mode")
    is_(story.client.delete(story.path(own), query={"versionId": version}).code, "AccessDenied",
        "which holds as well")
    doubled = shared[0]
    body = story.client.get(story.path(doubled)).body
    is_(story.client.put(story.path(doubled), body).status, 200, "an object is put anew, unlocked")
    poll(lambda: time.time() > records["short"]["locked_until_s"] + 1, 30, "the end of the lock")
    own = {n for n in world.place.keys_below() if records["short"]["id"] in n} - set(shared)
    ok(any(n.startswith("pack/") for n in own), "the short one has packs of its own")
    _, result, found = expire(story)
    is_((found["short"]["action"], found["t1"]["action"]), ("withdraw", "keep"), "it is withdrawn")
    ok(result["locks_extended"] >= 1, "what has no lock is locked again")
    is_(story.client.lock(story.path(doubled))[1], until_s, "for as long")
    held = sorted(n for n in own if n.startswith("pack/"))[0][:-8] + "0000ffff"
    is_(story.client.put(story.path(held), b"no lock").status, 200, "an object without a date")
    story.hold(held, "ON")
    own.add(held)
    poll(lambda: expire(story) and own & set(world.place.keys_below()) <= {held}, 60,
         "the end of the grace", 1)
    is_(own & set(world.place.keys_below()), {held}, "all goes but what is held")
    story.hold(held, "OFF")
    poll(lambda: expire(story)[2].get("short") is None, 60, "the end of the hold", 1)
    left = {key for key, _, _ in story.client.versions("locked")}
    is_(sorted(own & left), [], f"no version of its {len(own)} objects is left")
    ok(set(shared) <= set(world.place.keys_below()), "what the last one needs is there")
    is_status(world.cli("verify", "last"), 0, "the last one verifies")
    world.read_back("last", "expired", check=8)  # verify has looked at each


def outrun(world, client, until_s):
    """Another node's lock, later than ours, between our look and our change of a lock."""
    rule = Rule(r"^PUT .*/tidemark\.repo\?retention", "delay", ms=2000, times=1)
    world.proxy.rules(rule)

    def other():
        poll(lambda: rule.fired, 60, "our change to be under way")
        client.retain("sealed/tidemark.repo", "COMPLIANCE", until_s)

    thread = threading.Thread(target=other)
    thread.start()
    return thread


def test_twice(world, client):
    """WAL that is pushed twice at once, by processes that both find nothing: two sealings of it,
    and in buckets with versions the store keeps both."""
    once = world.node.archive_command + " --push-ahead=0"
    world.server.psql(f"alter system set archive_command = $cmd${once} & a=$!; {once} & b=$!;"
                      " wait $a && wait $b$cmd$")
    world.server.psql("select pg_reload_conf()")
    world.proxy.rules(Rule(r"^PUT .*/wal/", "delay", ms=1000))
    is_status(world.snapshot("s3"), 0, "WAL that is pushed twice at once is nobody's harm")
    world.proxy.rules()
    names = [key for key, _, _ in client.versions("sealed", "wal/")]
    twice = sorted({name for name in names if names.count(name) > 1})
    ok(twice, f"{len(twice)} files have two versions")
    is_(check_row(world)["result"], "ok", "check: nothing is hidden")
    is_(client.put(f"sealed/{twice[0]}", b"no WAL").status, 200, "another object over one of them")
    like(check_row(world)["detail"], f"replaced 1 .*first is '{twice[0]}'", "is harm")
    newest = client.versions("sealed", twice[0])[0][1]
    is_(client.delete(f"sealed/{twice[0]}", query={"versionId": newest}).status, 204, "away")


def test_sealed(box, store):
    """Encrypted, and locked."""
    world = World(box, store, "sealed", lock=True, lock_days=1)
    node = world.node
    node.encrypt()
    world.start()
    is_status(world.snapshot("s1"), 0, "encrypted: a snapshot")
    client, old = store.client(), [f"key/00000001{end}" for end in ("", ".copy")]
    until_s = json.loads(world.cli("show", "s1", "--json").out)["locked_until_s"]
    is_([n for n in old if client.lock(f"sealed/{n}")[1] < until_s], [],
        "the key ring is locked until its date")
    new = box.join("sealed-new.key")
    is_status(world.cli("key", "generate", new), 0, "another key file")
    done = world.cli("key", "rewrap", new)
    is_status(done, 0, "takes the place of the first")
    like(done.err, "2 objects of older generations in key/ could not be removed.*\n.*\n.*lock_days",
         "and says that the old one is good for what is locked")
    is_([(k, m) for k, _, m in client.versions("sealed", old[0])], [(n, False) for n in old],
        "which is not hidden either")
    os.rename(new, node.key)
    os.unlink(node.wal_key)
    is_status(world.cli("key", "wal", node.wal_key), 0, "the key file of WAL")
    is_status(world.cli("verify", "s1"), 0, "s1 verifies with the new one")
    world.change(1)
    later_s = int(time.time()) + 3 * 86400
    other = outrun(world, client, later_s)
    is_status(world.snapshot("s2"), 0, "and a second snapshot can be taken, though another node"
              " locks tidemark.repo for longer at the same moment")
    other.join()
    world.proxy.rules()
    is_(client.lock("sealed/tidemark.repo"), ("COMPLIANCE", later_s), "and that lock stays")
    is_status(world.cli("verify", "s2"), 0, "s2 verifies")
    test_twice(world, client)
    world.stop()


def test_default_retention(box, store):
    """It locks marks, too: a horizon mark that is to go stays, and expire goes on."""
    world = World(box, store, "default", proxy=False, lock=True).start()
    client, story = store.client(), argparse.Namespace(world=world)
    for tag in ("t1", "t2"):
        is_status(world.snapshot(tag), 0, f"snapshot {tag}")
    body = (b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule>"
            b"<DefaultRetention><Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule>"
            b"</ObjectLockConfiguration>")
    digest = base64.b64encode(hashlib.md5(body).digest()).decode()
    is_(client.request("PUT", "default", {"object-lock": ""}, {"content-md5": digest}, body).status,
        200, "a default retention")
    system = world.server.psql("select system_identifier from pg_control_system()")
    old = f"horizon/main/{system}/{1:08X}{0:08X}{1:08X}-{0:032x}"
    digest = base64.b64encode(hashlib.md5(b"old").digest()).decode()
    is_(client.put(f"default/{old}", b"old", headers={"content-md5": digest}).status, 200,
        "an older mark, which it locks")
    retention(story, count=1)
    poll(lambda: expire(story)[1].get("wal_objects"), 60, "expire to remove WAL", 1)
    is_(len(world.place.keys_below("horizon/")), 2, "its mark is there, and the older one")
    expire(story)
    world.stop()


def main():
    s3.need_ceph()
    box = need_root() or Sandbox("s3lock")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    store = s3.ceph(box)
    test_refused(box, store)
    story = Story(box, store)
    test_locked(story)
    test_told(story)
    test_hidden(story)
    test_identity_hidden(story)
    test_withdrawn(story)
    test_readme(story)
    test_killed(story)
    test_kept(story)
    test_forged(story)
    test_held(story)
    test_removed(story)
    story.world.stop()
    test_default_retention(box, store)
    test_sealed(box, store)


run(main)
