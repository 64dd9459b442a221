#!/usr/bin/env python3
"""`tidemark expire`: nothing without --confirm, two phases, kill -9 at every removal, snapshots
that were suspended for longer than the grace while their parent went, WAL. Ages are made by setting
the times of objects: the store's clock is that of its files.
check: build=asan timeout=400"""
import hashlib
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import snapshots as snap  # noqa: E402
import tidemark_reader as stranger  # noqa: E402
from expire_lib import *  # noqa: E402,F403


def test_nothing_happens(node):
    """Dry runs, and what needs --confirm."""
    retention(node, count=2)
    node.wait_archived(node.server.switch_wal())
    before = objects(node)
    done = expire(node, "--dry-run")
    is_status(done, 0, "a dry run")
    is_(actions(done), {"t1": "withdraw", "t2": "withdraw", "t3": "keep", "t4": "keep"},
        "says what would go")
    ok(result(done)["later_bytes"] > 0, "and how much that is")
    done = node.cli("expire", "t3")
    is_status(done, 0, "expire TAG")
    like(done.out, r"(?m)^withdraw +t3 .*asked for\n(.*\n)*this was a dry run.*--confirm",
         "is one")
    is_status(node.cli("expire", "t3", "--confirm", "--dry-run"), "usage", "both: usage")
    is_status(node.cli("expire", "--confirm"), "usage", "--confirm without a name: usage")
    is_status(node.cli("expire", "nothing", "--confirm"), "missing", "an unknown tag")
    is_(objects(node), before, "nothing was changed")
    is_status(node.cli("pin", "t1"), 0, "pin")
    done = node.cli("expire", "t1", "--confirm")
    is_status(done, "refused", "a pinned one cannot be expired by name")
    like(done.err, "hint: `tidemark unpin t1` first", "and how it can")
    is_(objects(node) - before, {"pin/" + snap.record(node, "t1")["id"]}, "but for the pin")


def test_two_phases(node):
    done = node.cli("expire")
    is_status(done, 0, "expire by [retention]: no dry run")
    is_(visible(node), ["t1", "t3", "t4"], "t2 is withdrawn, t1 is pinned")
    like(done.out, r"(?m)^keep +t1 .*pinned$", "and says so")
    is_status(node.cli("show", "t2"), "missing", "it is gone for show")
    is_status(node.cli("restore", "t2", "--dry-run"), "missing", "and for restore")
    before = objects(node, *DATA)
    is_status(expire(node), 0, "expire within the grace")
    is_(objects(node, *DATA), before, "removes nothing")


def test_killed(node):
    """kill -9 at the Nth removal, N = 0, 1, … until there is none."""
    age(node, [mark(node, "t2")])
    identity = snap.record(node, "t2")["id"]
    own = {o for o in objects(node) if identity in o}
    runs = 0
    while True:
        done = expire(node, TIDEMARK_TEST_STOP=f"expire-remove-{1 if runs else 0}")
        if done.status == 0:
            break
        runs += 1
        if runs == 2 or CAMPAIGN:
            whole(node, f"killed {runs} times", "t1", "t3", "t4")
    ok(runs >= 3, f"expire was killed {runs} times")
    left = own & objects(node) - {f"withdrawn/{identity}"}
    kept = set().union(*(reached(node, t) for t in ("t1", "t3", "t4")))
    is_(sorted(left - kept), [], "of t2 there is only what others reach")
    is_(sorted(objects(node, "pack", "table", "volume") - kept), [], "and no other object is left")
    whole(node, "expired", "t1", "t3", "t4")
    empty = [d for d, subs, names in os.walk(os.path.join(snap.repository(node), "pack"))
             if not subs and not names]
    is_(empty, [], "no empty directory is left")


def test_wal(node):
    """Kept from the start of t3; of t1, which is pinned, start … tag."""
    def segments():
        return {os.path.basename(o) for o in objects(node, "wal") if len(os.path.basename(o)) == 24}
    node.wait_archived(node.server.switch_wal())
    before = segments()
    is_(result(expire(node))["wal_objects"], 0, "young WAL stays")
    age(node, objects(node, "wal"))
    is_status(expire(node), 0, "expire")
    records = [snap.record(node, t) for t in ("t1", "t3")]
    size = records[0]["postgresql"]["segment_size"]

    def number(record, key):
        high, low = record["postgresql"][key].split("/")
        return (int(high, 16) << 32 | int(low, 16)) // size
    first, last, start = (number(records[0], "start_lsn"), number(records[0], "tag_lsn"),
                          number(records[1], "start_lsn"))
    want = {s for s in before
            if int(s[16:], 16) >= start or first <= int(s[16:], 16) <= last}
    is_(sorted(segments()), sorted(want), "what is left")
    ok(want < before, f"{len(before - want)} of {len(before)} segments went")
    whole(node, "old WAL removed", "t1", "t3", "t4")


def test_gap(node):
    """What `check` says of the WAL that is kept."""
    def row():
        done = node.cli("check", "--json")
        rows = [json.loads(line) for line in done.out.splitlines()]
        return [r for r in rows if r["check"] == "wal"][0]
    found = row()
    is_((found["result"], found["detail"]),
        ("ok", "no gap from snapshot 't3' on (timelines: 1)"), "check: the WAL is whole")
    newest = max(o for o in objects(node, "wal") if len(os.path.basename(o)) == 24)
    middle = f"{newest[:-2]}{int(newest[-2:], 16) - 1:02X}"
    path, aside = os.path.join(snap.repository(node), middle), node.box.join("aside.wal")
    os.rename(path, aside)
    found = row()
    is_((found["result"], found.get("code")), ("failed", "missing"), "check: a segment is missing")
    like(found["detail"], f"from snapshot 't3' on has a gap.*{os.path.basename(middle)}",
         "and is named")
    os.rename(aside, path)


def test_slept_before_manifest(node):
    """Its parent's objects are gone when it wakes up."""
    before = objects(node, "pack")
    sleeper = sleeping_snapshot(node, "slept", "snapshot-sealing")
    forget(node, "t4")
    ok(before - objects(node, "pack"), "objects of its parent are gone")
    done = sleeper.wake()
    is_status(done, "busy", "asleep before its manifest, its parent expired: it fails")
    like(done.err, "parent went away while it ran", "and says why")
    whole(node, "it failed", "t1", "t3")


def test_slept(node, point, why):
    """From its manifest on, all that it reaches stays, whatever becomes of its parent."""
    take(node, "parent")
    sleeper = sleeping_snapshot(node, "slept", point)
    forget(node, "parent")
    after = ["t1", "t3"] + (["slept"] if point == "snapshot-committed" else [])
    whole(node, f"asleep {why}", *after)
    is_status(sleeper.wake(), 0, f"asleep {why}, its parent expired: it is committed")
    whole(node, f"woken {why}", "t1", "t3", "slept")
    forget(node, "slept")
    whole(node, "both gone", "t1", "t3")


def test_abandoned(node, point, why):
    """Asleep for so long that it is taken for dead: what it wrote goes, and it must never be
    visible."""
    known = objects(node)
    sleeper = sleeping_snapshot(node, "lost", point)
    own = objects(node, "pack", "table", "volume") - known
    identity = {name.split("/")[2] for name in own}.pop()
    before = objects(node, *DATA)
    is_status(expire(node), 0, f"asleep {why}")
    is_(objects(node, *DATA), before, f"asleep {why}: nothing of it goes while it is young")
    age(node, own)
    done = expire(node)
    is_(result(done)["abandoned"], 1, f"asleep {why} for long: it is taken for dead")
    is_(objects(node, *DATA) - before, {mark(node, identity)}, "and withdrawn")
    age(node, [mark(node, identity)])
    is_status(expire(node), 0, "a grace later")
    is_(objects(node) & own, set(), "what it wrote is gone")
    done = sleeper.wake()
    is_status(done, "busy", f"asleep {why}: it fails when it wakes up")
    like(done.err, "`tidemark expire` gave it up", "and says why")
    whole(node, f"taken for dead {why}", "t1", "t3")
    is_status(expire(node), 0, "and what it has written since")
    is_({o for o in objects(node) if identity in o}, {mark(node, identity)}, "goes, its mark stays")


def test_pinned_meanwhile(node):
    """Pinned when expire has listed the pins, and has not withdrawn it yet."""
    take(node, "late")
    retention(node, count=1)
    sleeper = Sleeper(node, "expire-withdrawing", "expire", "--json")
    is_status(node.cli("pin", "t3"), 0, "pin says that it is pinned")
    done = sleeper.wake()
    is_status(done, 0, "expire goes on")
    whole(node, "pinned while expire ran", "t1", "t3", "late")
    is_([line for line in done.out.splitlines() if '"result"' in line and
         json.loads(line)["result"]["snapshots"][1]["action"] == "keep"] != [], True,
        "and expire says that it stays")
    is_status(node.cli("unpin", "t3"), 0, "unpin")
    sleeper = Sleeper(node, "expire-withdrawing", "expire", "--json", "t3", "--confirm",
                      TIDEMARK_TEST_STOP="expire-withdrawn")
    is_status(node.cli("pin", "t3"), 0, "once more")
    ok(sleeper.wake().status != 0, "and expire is killed when it has withdrawn it")
    is_(visible(node), ["t1", "late"], "so it seems gone")
    marks = [mark(node, "t3"), mark(node, "t3").replace("withdrawn", "pin")]
    age(node, marks)
    is_status(expire(node), 0, "the next expire, however late,")
    whole(node, "finds the pin", "t1", "t3", "late")
    is_status(node.cli("unpin", "t3"), 0, "unpin")
    retention(node)
    forget(node, "late")


def test_woken_before_mark(node):
    """Taken for dead by an expire that has listed the records; it wakes up before it is marked."""
    known = objects(node)
    writer = sleeping_snapshot(node, "woken", "snapshot-committing")
    age(node, objects(node, "pack", "table", "volume") - known)
    sleeper = Sleeper(node, "expire-abandoning", "expire", "--json")
    is_status(writer.wake(), 0, "the writer commits, finds no mark and says so")
    done = sleeper.wake()
    is_status(done, 0, "expire goes on")
    like(done.out, r'"abandoned": ?0\b', "and has found nothing that was abandoned")
    whole(node, "committed while expire ran", "t1", "t3", "woken")
    age(node, objects(node, "withdrawn"))
    is_status(expire(node), 0, "a grace later")
    whole(node, "a grace later", "t1", "t3", "woken")
    forget(node, "woken")


def test_two_graces(node, point):
    """Given up by two hosts; the one with the shorter grace has removed what it wrote when the
    other one looks for a record."""
    known = objects(node)
    writer = sleeping_snapshot(node, "lost", "snapshot-committing")
    own = objects(node, "pack", "table", "volume") - known
    identity = {name.split("/")[2] for name in own}.pop()
    age(node, own)
    sleeper = Sleeper(node, point, "expire", "--json")
    host = {"TIDEMARK_RETENTION_GRACE": "10min",
            "TIDEMARK_TIDEMARK_STATE_DIR": node.box.mkdir("other-state", 0o755)}
    is_status(expire(node, **host), 0, f"two graces, {point}: 10 minutes")
    age(node, [mark(node, identity)], 660)
    is_status(expire(node, **host), 0, "and later")
    is_(objects(node) & own, set(), "what it wrote is gone")
    is_status(writer.wake(), "busy", "the writer fails")
    is_status(sleeper.wake(), 0, "the host with a grace of a day goes on")
    is_(visible(node), ["t1", "t3"], f"two graces, {point}: it does not become visible")


def test_late_pin(node):
    """A pin that came an hour after the mark has failed: no host takes the mark back for it."""
    take(node, "pinned")
    is_status(expire(node, "--confirm", "pinned"), 0, "withdrawn")
    top, name = snap.repository(node), mark(node, "pinned")
    pin = name.replace("withdrawn", "pin")
    shutil.copy(os.path.join(top, name), os.path.join(top, pin))
    age(node, [name], 3600)
    is_status(expire(node), 0, "pinned an hour later")
    is_(visible(node), ["t1", "t3"], "it stays withdrawn")
    age(node, [name, pin])
    is_status(expire(node), 0, "a grace later")
    is_({o for o in objects(node) if IDENTITIES["pinned"] in o}, set(), "it goes, with its pin")


def test_manifest_gone(node):
    """A manifest that is listed and not there, and nobody withdrew its snapshot."""
    before = objects(node, *DATA)
    take(node, "dead")
    is_status(expire(node, "--confirm", "dead"), 0, "something to remove")
    age(node, [mark(node, "dead")])
    before = objects(node, *DATA)
    sleeper = Sleeper(node, "expire-manifest", "expire", "--json")
    path, aside = os.path.join(snap.repository(node), "volume"), node.box.join("aside.volume")
    os.rename(path, aside)
    done = sleeper.wake()
    if os.path.isdir(path):
        os.rmdir(path)
    os.rename(aside, path)
    is_status(done, "corrupt", "manifests that count vanish: expire fails")
    like(done.out, "nothing is removed, because it is not known", "and says why")
    is_(objects(node, *DATA), before, "and removes nothing")
    is_status(expire(node), 0, "with them it goes on")
    whole(node, "manifests back", "t1", "t3")


def test_manifest_lost(node):
    """The newest snapshot has a record, and its manifest is not even listed."""
    for tag in ("first", "second"):
        take(node, tag)
    is_status(expire(node, "--confirm", "first"), 0, "its parent is withdrawn")
    age(node, [mark(node, "first")])
    retention(node, count=1)
    top, aside = snap.repository(node), node.box.join("aside.manifest")
    (name,) = [o for o in reached(node, "second") if o.startswith("volume/")]
    os.rename(os.path.join(top, name), aside)
    before = objects(node)
    done = node.cli("expire")
    is_status(done, "corrupt", "a visible snapshot without its manifest: said aloud")
    like(done.err, f"what snapshot {IDENTITIES['second']} needs: its manifest '{name}' is not "
                   f"there\nhint: .*`tidemark expire --confirm {IDENTITIES['second']}`", "which")
    is_(objects(node), before, "nothing is removed, and nothing withdrawn as older than that one")
    with open(os.path.join(top, name), "wb") as file:
        file.write(b"no manifest")
    done = node.cli("expire", "--local", TIDEMARK_TIDEMARK_CLUSTER="second",
                    TIDEMARK_TIDEMARK_STATE_DIR=node.box.mkdir("other-state", 0o755))
    is_status(done, "corrupt", "another cluster that shares the repository meets a damaged one")
    like(done.err, "hint: it is of cluster 'main': `tidemark expire --confirm "
                   f"{IDENTITIES['second']}` on a host of that cluster", "and hears whose it is")
    os.rename(aside, os.path.join(top, name))
    is_(sorted(reached(node, "second") - objects(node)), [], "with it the snapshot is whole")
    os.rename(os.path.join(top, name), aside)
    is_status(node.cli("expire", "--confirm", "second"), "corrupt", "given up by its name")
    is_(visible(node), ["t1", "t3"], "it is withdrawn")
    age(node, [mark(node, "second")])
    is_status(node.cli("expire"), 0, "and when its grace is over all is well")
    is_({o for o in objects(node, *DATA) for tag in ("first", "second") if IDENTITIES[tag] in o},
        set(), "both are gone")
    retention(node)


def test_damaged_stray(node):
    """A manifest without a record that cannot be read blocks removing, and not for ever."""
    known = objects(node)
    sleeper = sleeping_snapshot(node, "lost", "snapshot-committing")
    own = objects(node, "pack", "table", "volume") - known
    identity = {name.split("/")[2] for name in own}.pop()
    for name in own & objects(node, "volume"):
        with open(os.path.join(snap.repository(node), name), "r+b") as file:
            file.seek(300)
            file.write(b"\xff\xff\xff")
    age(node, own)
    before = objects(node, *DATA)
    done = node.cli("expire")
    is_status(done, "corrupt", "a damaged manifest without a record: said aloud")
    is_(objects(node, *DATA) - before, {mark(node, identity)}, "and given up, for it is old")
    age(node, [mark(node, identity)])
    is_status(node.cli("expire"), 0, "a grace later expire works again")
    is_({o for o in objects(node) if identity in o}, {mark(node, identity)}, "and it is gone")
    is_status(sleeper.wake(), "busy", "its writer fails")
    is_status(node.cli("expire"), 0, "and its record goes")
    whole(node, "a damaged manifest without a record", "t1", "t3")


def test_copied(node):
    """A record that claims a lock, in a store that locks nothing: a copy of a bucket."""
    take(node, "copied")
    path = snap.record_path(node, "copied")
    with open(path, "rb") as file:
        raw = file.read()
    text = json.loads(raw[192:])
    text["locked_until_s"] = text["captured_s"] + 20 * 86400
    body = json.dumps(text).encode()
    head = raw[:24] + len(body).to_bytes(8, "little") + raw[32:88] + hashlib.sha256(body).digest()
    head += raw[120:176]
    os.chmod(path, 0o640)
    with open(path, "wb") as file:
        file.write(head + stranger.PLAIN.digest(head) + body)
    is_status(node.cli("show", "copied"), 0, "a record with a lock")
    forget(node, "copied")
    is_({o for o in objects(node) if IDENTITIES["copied"] in o}, set(), "keeps nothing here")


def test_damaged(node):
    """What cannot be read may need anything: nothing goes by rule, its id gives it up."""
    take(node, "bad")
    path = snap.record_path(node, "bad")
    identity = snap.read_record(path)["id"]
    with open(path, "r+b") as file:
        file.seek(300)
        file.write(b"\xff")
    before = objects(node, *DATA)
    done = node.cli("expire")
    is_status(done, "corrupt", "a damaged record: said aloud")
    done = node.cli("list")
    is_status(done, "corrupt", "list says so as well")
    like(done.err, "hint: .*`tidemark expire --dry-run` shows the ids", "and how to find it")
    like(node.cli("expire", "--dry-run").out, identity[:8], "which is so")
    is_(objects(node, *DATA), before, "and nothing of it goes")
    is_status(node.cli("expire", "--confirm", identity), 0, "its id names it: no damage is left")
    is_status(node.cli("expire"), 0, "nor within its grace")
    age(node, [f"withdrawn/{identity}"])
    is_status(node.cli("expire"), 0, "withdrawn it is no damage any more")
    is_({o for o in objects(node) if identity in o and "withdrawn" not in o}, set(), "and goes")
    whole(node, "after the damage", "t1", "t3")


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    box = Sandbox("t_expire")
    node = Node(box, [box.volume("pgdata", 400 * MIB)])
    node.start(agent=False)
    node.server.psql("create table noise (t text)")
    for tag in ("t1", "t2", "t3", "t4"):
        take(node, tag)
    test_nothing_happens(node)
    test_two_phases(node)
    test_killed(node)
    test_wal(node)
    test_gap(node)
    retention(node)
    test_slept_before_manifest(node)
    test_slept(node, "snapshot-committing", "between its look and its record")
    test_slept(node, "snapshot-committed", "behind its record")
    test_abandoned(node, "snapshot-sealing", "before its manifest")
    test_abandoned(node, "snapshot-committing", "between its look and its record")
    test_pinned_meanwhile(node)
    test_woken_before_mark(node)
    test_two_graces(node, "expire-abandoning")
    test_two_graces(node, "expire-abandoned")
    test_late_pin(node)
    test_manifest_gone(node)
    test_manifest_lost(node)
    test_damaged_stray(node)
    test_copied(node)
    test_damaged(node)


run(main)
