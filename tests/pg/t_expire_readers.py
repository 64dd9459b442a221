#!/usr/bin/env python3
"""`tidemark expire` in an encrypted repository, beside jobs that sleep for longer than the grace: a
restore, a verification and an export find all that they read; WAL that a snapshot needs which is
committed meanwhile stays, or that snapshot fails; marks that cannot be read delete nothing; pins
are shown. The numbers are those of the table in agent/expire.h.
check: build=asan timeout=400"""
import copy
import json
import os
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import snapshots as snap  # noqa: E402
from expire_lib import *  # noqa: E402,F403

WEEK_S = 7 * 24 * 3600


def path_of(node, name):
    return os.path.join(snap.repository(node), name)


def flip(node, name):
    """A byte of the sealed body."""
    path = path_of(node, name)
    with open(path, "rb") as file:
        data = bytearray(file.read())
    data[200] ^= 1
    os.chmod(path, 0o640)
    with open(path, "wb") as file:
        file.write(data)


def last_log(node):
    path = max(snap.job_directories(node), key=os.path.getmtime)
    with open(os.path.join(path, "log"), encoding="utf-8", errors="replace") as file:
        return file.read()


def withdraw(node, *tags):
    """Phase 1, a grace ago."""
    is_status(expire(node, "--confirm", *tags), 0, f"{' '.join(tags)} withdrawn")
    age(node, [mark(node, tag) for tag in tags])


def sibling(node):
    """Another node on the same server, which is all that matters here."""
    other = copy.copy(node)
    other.name, other.conf = "other", node.box.join("other.conf")
    other.state_dir = node.box.mkdir("other-state", 0o755)
    other.sections = copy.deepcopy(node.sections)
    other.sections["tidemark"].update(node="other", state_dir=other.state_dir,
                                      socket=node.box.join("other.sock"))
    other.write_conf()
    return other


def segments(node):
    return {os.path.basename(o) for o in objects(node, "wal")
            if re.fullmatch("[0-9A-F]{24}", os.path.basename(o))}


def test_pins(node):
    is_status(node.cli("pin", "b"), 0, "pin b")
    shown = [json.loads(line) for line in node.cli("list", "--json").out.splitlines()]
    is_({r["tag"]: r["pinned"] for r in shown}, {"a": False, "b": True, "c": False},
        "list --json: which are pinned")
    is_([line.split()[0] for line in node.cli("list").out.splitlines() if line.endswith(" yes")],
        ["b"], "list: which are pinned")
    like(node.cli("show", "b").out, r"(?m)^pinned: +(true|yes)$", "show")
    is_(json.loads(node.cli("show", "a", "--json").out)["pinned"], False, "show --json")


def test_marks(node):
    """What is not what its name says hides or keeps, and deletes nothing."""
    retention(node, count=1)
    pin = mark(node, "b").replace("withdrawn", "pin")
    flip(node, pin)
    done = expire(node, "--dry-run")
    is_(actions(done), {"a": "withdraw", "b": "keep", "c": "keep"}, "a damaged pin keeps")
    like(last_log(node), "a pin cannot be read: its snapshot stays", "and expire says so")
    is_status(node.cli("unpin", "b"), 0, "unpin removes it")
    retention(node)
    withdraw(node, "a")
    forged = path_of(node, mark(node, "b"))
    shutil.copy(path_of(node, mark(node, "a")), forged)
    flip(node, mark(node, "a"))
    age(node, [mark(node, "b"), mark(node, "a")], 2 * GRACE_S)
    before = objects(node, *DATA)
    done = node.cli("expire")
    is_status(done, "corrupt", "a damaged mark and another snapshot's: said aloud")
    like(done.err, "2 marks cannot be read.*\nhint: `tidemark expire --confirm ID`.*withdrawn/ID",
         "with what to do")
    like(done.out, r"(?m)^wait +b .*its mark cannot be read: hidden, but it stays$", "and which")
    is_(objects(node, *DATA), before, "nothing is removed because of them")
    whole(node, "marks that cannot be read", "c")
    os.unlink(forged)
    whole(node, "without the forged one", "b", "c")
    identity = IDENTITIES["a"]
    is_status(node.cli("expire", identity), 0, "by id it can be withdrawn: a dry run")
    is_status(node.cli("expire", "--confirm", identity), 0, "in earnest: no damage is left")
    is_status(node.cli("expire"), 0, "its mark is a new one")
    is_(objects(node, *DATA), before - {mark(node, "b")}, "within its grace")
    age(node, [mark(node, "a")])
    done = node.cli("expire")
    is_status(done, 0, "its grace is over")
    unlike(done.out, "once the grace", "nothing more is said to go later")
    is_({o for o in objects(node, "snapshot", "volume") if identity in o}, set(), "it went")
    whole(node, "a is gone", "b", "c")


def test_killed(node):
    """kill -9 at every removal, sealed."""
    take(node, "victim")
    withdraw(node, "victim")
    identity = IDENTITIES["victim"]
    for runs in range(100):
        done = expire(node, TIDEMARK_TEST_STOP=f"expire-remove-{1 if runs else 0}")
        if done.status == 0:
            break
    ok(runs >= 3, f"expire was killed {runs} times")
    kept = set().union(*(reached(node, t) for t in ("b", "c")))
    is_(sorted(objects(node, "pack", "table", "volume") - kept), [], "no other object is left")
    is_({o for o in objects(node, "snapshot", "withdrawn") if identity in o}, set(), "nor a mark")
    whole(node, "killed", "b", "c")


def advance(node, tag):
    """A new newest snapshot, and all WAL before it is old and needed by nobody that is known."""
    node.wait_archived(node.server.switch_wal())
    take(node, tag)
    retention(node, count=1)
    is_status(expire(node), 0, "the others are withdrawn")
    age(node, objects(node, "withdrawn"))
    age(node, objects(node, "wal"))


def test_wal(node, other):
    """A first snapshot of another node is committed, or about to be, while its WAL goes."""
    writer = sleeping_snapshot(other, "late1", "snapshot-committing")
    advance(node, "w1")
    before = segments(node)
    is_status(expire(node), 0, "expire, while a snapshot that it cannot know sleeps")
    ok(segments(node) < before, "1: removes WAL")
    done = writer.wake()
    is_status(done, "busy", "1: the snapshot fails")
    like(done.err, "`tidemark expire` removes the WAL before .*\nhint: ", "and says why")
    whole(node, "1", "w1")

    writer = sleeping_snapshot(other, "late2", "snapshot-committing")
    advance(node, "w2")
    before, marks = segments(node), objects(node, "horizon")
    sleeper = Sleeper(node, "expire-wal-listed", "expire", "--json")
    is_status(writer.wake(), 0, "2: it is committed when the WAL is listed, and not removed yet")
    is_status(sleeper.wake(), 0, "2: expire goes on")
    is_(sorted(before - segments(node)), [], "2: removes no WAL")
    is_(objects(node, "horizon"), marks, "2: and takes its mark back")
    whole(node, "2", "late2", "w2")

    retention(other)
    forget(other, "late2")
    writer = sleeping_snapshot(other, "late3", "snapshot-committing")
    advance(node, "w3")
    before = segments(node)
    sleeper = Sleeper(node, "expire-wal-looked", "expire", "--json")
    done = writer.wake()
    is_status(done, "busy", "3: expire has looked: the snapshot fails behind its record")
    is_(visible(node), ["w3"], "3: and withdraws itself")
    is_status(sleeper.wake(), 0, "3: expire goes on")
    ok(segments(node) < before, "3: removes WAL")
    whole(node, "3", "w3")
    is_(len(objects(node, "horizon")), 1, "one mark of all these stays")


def test_taken_back(node, other):
    """Given up by one expire, which takes that back, when another has listed the mark."""
    known = objects(node)
    writer = sleeping_snapshot(other, "late4", "snapshot-committing")
    own = objects(node, "pack", "table", "volume") - known
    given_up = mark(node, {name.split("/")[2] for name in own}.pop())
    node.wait_archived(node.server.switch_wal())
    take(node, "w4")
    age(node, own)
    is_(result(expire(node))["abandoned"], 1, "4: a writer is given up")
    age(node, objects(node, "withdrawn") - {given_up})
    age(node, objects(node, "wal"))
    before = segments(node)
    sleeper = Sleeper(node, "expire-wal-listed", "expire", "--json")
    os.unlink(path_of(node, given_up))
    is_status(writer.wake(), 0, "4: it is committed, and its mark taken back, meanwhile")
    is_status(sleeper.wake(), 0, "4: expire goes on")
    is_(sorted(before - segments(node)), [], "4: removes no WAL")
    whole(node, "4", "late4", "w4")
    retention(node)
    forget(node, "late4")


def test_wal_readers(node):
    """Of a pinned snapshot WAL behind its tag goes, unless somebody begins to read it."""
    take(node, "held")
    is_status(node.cli("pin", "held"), 0, "pin")
    node.wait_archived(node.server.switch_wal())
    node.server.psql("insert into noise values ('behind the tag')")
    target = node.server.psql("select pg_current_wal_lsn()")
    advance(node, "w5")
    before, marks = segments(node), objects(node, "horizon")
    sleeper = Sleeper(node, "expire-wal-listed", "expire", "--json")
    reader = Sleeper(node, "reading-begun", "verify", "held")
    is_status(sleeper.wake(), 0, "reading 4: its mark is there when the WAL is listed")
    is_(sorted(before - segments(node)), [], "reading 4: expire removes no WAL")
    is_(objects(node, "horizon"), marks, "reading 4: and takes its mark back")
    is_status(reader.wake(), 0, "reading 4: the verification is content")

    sleeper = Sleeper(node, "expire-wal-looked", "expire", "--json")
    done = node.cli("restore", "held", "--yes", f"--target-lsn={target}")
    is_status(done, "busy", "reading 5: expire has looked: the restore fails")
    like(done.err, "`tidemark expire` removes the WAL before .*\nhint: .*'horizon/", "and says why")
    is_(node.server.psql("select 1"), "1", "reading 5: and the server has not been touched")
    is_status(node.cli("restore", "held", "--dry-run"), 0, "reading 5: its tag is possible")
    is_status(sleeper.wake(), 0, "reading 5: expire goes on")
    ok(segments(node) < before, "reading 5: removes WAL")
    whole(node, "reading 4 and 5", "held", "w5")
    is_status(node.cli("unpin", "held"), 0, "unpin")
    retention(node)
    forget(node, "held")


def test_not_seen(node):
    """The look behind the record fails."""
    sleeper = sleeping_snapshot(node, "stored", "snapshot-committed")
    names = ["tidemark.repo", "tidemark.repo.copy"]
    for name in names:
        os.rename(path_of(node, name), path_of(node, name) + ".aside")
    done = sleeper.wake()
    for name in names:
        os.rename(path_of(node, name) + ".aside", path_of(node, name))
    is_status(done, "store", "the store is away when it looks behind its record")
    like(done.err, "the snapshot is stored; whether it still counts is not known: "
                   ".*\nhint: when `tidemark list` shows it, it is whole", "it says so")
    unlike(done.err, "may still arrive", "and not that the record may be missing")
    whole(node, "and it is", "w5", "stored")
    forget(node, "stored")


def test_begun_late(node):
    take(node, "gone")
    file = node.box.join("gone.img")
    sleeper = Sleeper(node, "reading-begin", "export", "gone", file)
    forget(node, "gone")
    done = sleeper.wake()
    is_status(done, "missing", "reading 1: it slept before its mark: the snapshot is gone")
    like(done.err, "was withdrawn", "and it is said")
    is_(objects(node, "reading"), set(), "no mark is left")


def reads_on(node, tag, sleeper, why):
    """Both phases, while somebody reads."""
    ok([o for o in objects(node, "reading") if IDENTITIES[tag] in o], f"{why}: a mark")
    before = objects(node, "pack", "table", "volume", "snapshot")
    withdraw(node, tag)
    age(node, objects(node, "wal"))
    wal = segments(node)
    done = expire(node)
    is_status(done, 0, f"{why}: expire, a grace later")
    found = [(s["action"], s["why"]) for s in result(done)["snapshots"] if s.get("tag") == tag]
    is_(found, [("wait", "withdrawn, but a job reads it")], f"{why}: it waits, and says why")
    is_(sorted(before - objects(node)), [], f"{why}: nothing is removed")
    is_(sorted(wal - segments(node)), [], f"{why}: no WAL either")
    return sleeper.wake() if sleeper else None


def test_reading(node):
    take(node, "read")
    forget(node, "w5")
    age(node, objects(node, "wal"))
    is_status(expire(node), 0, "WAL before it goes")
    take(node, "next")
    file = node.box.join("read.img")
    sleeper = Sleeper(node, "reading-begun", "export", "read", file)
    is_status(reads_on(node, "read", sleeper, "reading 2: export"), 0, "the export is whole")
    is_(objects(node, "reading"), set(), "and its mark is gone")
    is_status(expire(node), 0, "then")
    ok(not {o for o in objects(node, "volume") if IDENTITIES["read"] in o}, "the snapshot goes")
    os.unlink(file)

    take(node, "killed")
    take(node, "newest")
    sleeper = Sleeper(node, "reading-begun", "verify", "killed")
    os.kill(sleeper.pid, 9)
    sleeper.process.wait()
    reads_on(node, "killed", None, "reading 3: verify is killed")
    age(node, objects(node, "reading"), WEEK_S + 60)
    is_status(expire(node), 0, "a week later")
    ok(not {o for o in objects(node, "snapshot", "volume", "reading") if IDENTITIES["killed"] in o},
       "the snapshot goes, and the mark")
    whole(node, "read and killed", "next", "newest")


def no_marks(node, why):
    poll(lambda: not objects(node, "reading"), 30, f"{why}: no mark")
    ok(True, f"{why}: its mark is gone")


def test_over(node):
    """Nobody goes on with a job that was ended when no process of its own ran."""
    take(node, "over")
    agent = node.agent
    agent.start()
    try:
        code, job = agent.api("POST", "/restores", {"snapshot": "over"})
        is_(code, 202, "a plan")
        poll(lambda: agent.api("GET", f"/jobs/{job['id']}")[1]["state"] == "prepared", 60, "it")
        ok([o for o in objects(node, "reading") if IDENTITIES["over"] in o], "a plan has a mark")
        is_(agent.api("DELETE", f"/jobs/{job['id']}")[0], 200, "the answer is no")
        no_marks(node, "a plan that is declined")
        for point, why in (("pulling", "a restore that is given up"),
                           ("reading-begun", "an export that was killed")):
            agent.stop()
            agent.start(TIDEMARK_TEST_STOP=point)
            verb = ("restore", "over", "--yes") if point == "pulling" else \
                ("export", "over", node.box.join("over.img"))
            isnt(node.cli(*verb).status, 0, f"{point}: killed")
            ok([o for o in objects(node, "reading") if IDENTITIES["over"] in o], f"{why}: a mark")
            agent.stop()
            agent.start()
            if point == "pulling":
                last = agent.api("GET", "/jobs")[1]["jobs"][-1]["id"]
                is_(agent.api("DELETE", f"/jobs/{last}")[0], 200, "given up")
            no_marks(node, why)
    finally:
        agent.stop()


def test_renewed(node):
    """The mark is another one when expire, which has listed it, asks for its age."""
    take(node, "renewed")
    take(node, "later")
    reader = Sleeper(node, "reading-begun", "verify", "renewed")
    withdraw(node, "renewed")
    before = objects(node, "pack", "table", "volume", "snapshot")
    sleeper = Sleeper(node, "expire-readings", "expire", "--json")
    (old,) = objects(node, "reading")
    os.rename(path_of(node, old), path_of(node, old[:-8] + "00000000"))
    is_status(sleeper.wake(), 0, "a mark that was listed is not there: expire goes on")
    is_(sorted(before - objects(node)), [], "and removes nothing")
    is_status(reader.wake(), 0, "the verification is content")
    is_(objects(node, "reading"), set(), "and removes every mark of its own")
    is_status(expire(node), 0, "then")
    ok(not {o for o in objects(node, "volume") if IDENTITIES["renewed"] in o}, "the snapshot goes")


def test_restore(node):
    """Suspended with old data gone and new data not there: it must find everything."""
    retention(node)
    take(node, "back")
    rows = node.server.psql("select count(*) from noise")
    take(node, "after")
    sleeper = Sleeper(node, "pulling", "restore", "back", "--yes")
    done = reads_on(node, "back", sleeper, "reading 2: restore")
    is_status(done, 0, "the restore is complete")
    is_(node.server.psql("select count(*) from noise"), rows, "its rows are there")
    is_(objects(node, "reading"), set(), "and its mark is gone")
    is_status(expire(node), 0, "then")
    ok(not {o for o in objects(node, "volume") if IDENTITIES["back"] in o}, "the snapshot goes")


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    box = Sandbox("t_expire_readers")
    node = Node(box, [box.volume("pgdata", 400 * MIB)], options={"tidemark": {"resume": "wait"}})
    node.encrypt()
    node.start(agent=False)
    node.server.psql("create table noise (t text)")
    for tag in ("a", "b", "c"):
        take(node, tag)
    test_pins(node)
    test_marks(node)
    test_killed(node)
    other = sibling(node)
    test_wal(node, other)
    test_taken_back(node, other)
    test_wal_readers(node)
    test_not_seen(node)
    test_begun_late(node)
    test_reading(node)
    test_renewed(node)
    test_restore(node)
    test_over(node)


run(main)
