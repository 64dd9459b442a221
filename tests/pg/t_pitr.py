#!/usr/bin/env python3
# check: build=release campaign=asan timeout=400
"""Any point in time, along any timeline. One server with a failover and an earlier restore:

    1  a, tag t1, b ──┬── z, (crash) ── the old primary goes on: c1      an abandoned branch
    2                 │       └── c2, tag t2, d2                         the failover
    3                 └── e3: restored to a time before the fork, along 2

Cases of recovery that PostgreSQL's manual and our experiments know, and what tests them (targets:
t_restore_targets.py, refuse: t_restore_refuse.py, guard: t_restore_guard.py; no name: this file):

    time, lsn, xid, name, latest                     targets test_points; along 2: test_targets
    immediate                                        the tag stands right behind the backup's end
    a time with a zone; before the end; in the future; behind the last commit
                                                     test_times, test_wrong_targets
    a time, lsn between start and end of the backup  test_times; a name there: test_wrong_targets
    a name that was never written                    targets test_points
    names that are on two timelines, or twice on one test_two_branches
    exclusive xid, lsn                               test_exclusive
    target timeline given; several: refused, listed  test_two_branches, t_restore.py
    across a failover; before and behind the fork    test_timelines, test_targets
    in the fork's segment, with and without the parent's .partial
                                                     test_timelines
    the abandoned branch                             test_two_branches
    along a timeline that begins behind the target   test_before_fork
    a restore before the snapshot: not in its past   test_before_fork
    between two forks                                test_between_forks
    a history file that is lost                      test_lost
    a gap in the WAL, before and behind the fork     test_lost
    the last segment as .partial only                targets test_partial
    pause, shutdown; pause at a time                 targets test_actions, test_targets
    settings that are too low: refused, paused       refuse, guard test_paused_early
    pg_control: withheld, written last, as captured  guard test_never_withheld, t_restore_powercut
    leftovers: signal files, labels, recovery_target_*, another restore's settings
                                                     test_before_fork, t_restore, unit t_restore.c
    unlogged tables, prepared transactions           test_before_fork, targets test_locked
    tablespaces, pg_wal elsewhere                    t_restore.py, targets test_moved
    no label (target snapshot); a cold image         targets test_image
    wal_level = minimal between snapshot and target  test_minimal
    the WAL of the image's start is recycled         t_restore_recycled.py
    the session of the backup ends                   t_snapshot_crash.py
    a clone that archives on the old timeline        t_wal_exit.py, targets test_image
    standbys of what was restored                    tests/cluster/t_rules.py, t_left_out.py
    a snapshot of a standby; its image alone; promoted, without full pages meanwhile
                                                     tests/cluster/t_snapshot_standby.py
    of one that cascades; whose upstream was promoted before, or meanwhile
                                                     tests/cluster/t_cascade.py
    a restore beside the primary that runs           both of them
    WAL that is not complete at the snapshot's end   no record: t_snapshot_crash.py, t_snapshot.py
    volumes of different instants                    one group, one instant: unit t_capture.c
"""
import glob
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story, journal_of, record_of  # noqa: E402
from server import lsn  # noqa: E402
import snapshots as snap  # noqa: E402

LONG = os.environ.get("TIDEMARK_CAMPAIGN") == "1"
LATER = "warning +whether a transaction was committed after this time is known only when"
SOME = r"several timelines contain the target: "


def marks(server):
    return server.psql("select string_agg(what, ' ' order by n) from marks")


def mark(server, what):
    return server.psql(f"insert into marks (what) values ('{what}') returning pg_current_xact_id()")


def now(server):
    return server.psql("select clock_timestamp()")


def wal_file(node, name):
    found = glob.glob(f"{snap.repository(node)}/wal/*/*/*/{name}")
    return found[0] if found else None


class Away:
    """A file of the archive that is not there."""

    def __init__(self, node, name):
        self.path, self.kept = wal_file(node, name), node.box.join("away")

    def __enter__(self):
        shutil.move(self.path, self.kept)

    def __exit__(self, *_):
        shutil.move(self.kept, self.path)


class Branches(Story):
    """What the head of this file draws, made step by step."""

    def __init__(self, box):
        super().__init__(box, "pitr", settings={"max_prepared_transactions": 5})
        self.node.sections["tidemark"]["rate_limit"] = "60MiB"
        self.node.write_conf()

    def begin(self):
        node, server = self.node.start(), self.server
        server.psql("create table marks (n serial, what text);\n"
                    "create unlogged table cache (a int primary key);\n"
                    "insert into cache select generate_series(1, 1000)")
        mark(server, "a")
        server.psql("begin; insert into marks (what) values ('p'); prepare transaction 'open'")
        self.early = now(server)
        leftovers = [os.path.join(node.data, name) for name in
                     ("standby.signal", "recovery.signal", "backup_label.old", "promote")]
        for path in leftovers:  # a server looks for them at its start only
            output("touch", path)
        job = snap.Running(node, "snapshot", "--tag", "t1")
        job.wait_phase("copying")
        self.within = server.psql("select pg_create_restore_point('within')")
        is_status(job.wait(), 0, "snapshot t1")
        for path in leftovers:
            os.unlink(path)
        server.psql("rollback prepared 'open'")
        return node

    def promote(self):
        signal_file = os.path.join(self.node.data, "standby.signal")
        output("touch", signal_file)
        output("chown", "postgres:", signal_file)
        self.server.start()
        self.server.psql("select pg_promote()")
        self.server.wait_ready()
        is_(self.server.timeline(), 2, "the failover made timeline 2")

    def fail_over(self):
        """The old primary is kept as a copy."""
        server = self.server
        mark(server, "b")
        self.time_1, self.lsn_1 = now(server), server.psql("select pg_current_wal_lsn()")
        mark(server, "z")
        server.stop("immediate")
        self.old = Server(self.box, self.box.join("old"))
        shutil.copytree(self.node.data, self.old.data, symlinks=True)
        output("chown", "-R", "postgres:", self.old.data)
        self.old.configure(port=self.old.port)
        self.promote()
        self.xid_2 = mark(server, "c2")
        server.psql("select pg_create_restore_point('twice')")
        self.time_2, self.lsn_2 = now(server), server.psql("select pg_current_wal_lsn()")
        is_status(self.node.cli("snapshot", "--tag", "t2"), 0, "snapshot t2, of timeline 2")
        mark(server, "d2")
        self.node.wait_archived(server.switch_wal())

    def plan(self, *args, tag="t1"):
        return self.node.cli("restore", tag, "--dry-run", "--json", *args)

    def goes(self, timeline, what, *args, tag="t1"):
        done = self.plan(*args, tag=tag)
        if is_status(done, 0, f"{what}: planned"):
            is_(json.loads(done.out)["plan"]["target"]["timeline"], timeline,
                f"{what}: on timeline {timeline}")

    def refused(self, what, status, pattern, *args, tag="t1"):
        done = self.plan(*args, tag=tag)
        is_status(done, status, f"{what}: refused")
        like(done.err, pattern, f"{what}: says why")


def test_times(story):
    record = record_of(story.node, "t1")["postgresql"]
    ok(lsn(record["start_lsn"]) < lsn(story.within) < lsn(record["stop_lsn"]),
       "a restore point was made during the backup")
    before = r"lies before the end of the snapshot.*\nhint: .*older snapshot"
    story.refused("a time before the snapshot", "refused", before, f"--target-time={story.early}")
    story.refused("an LSN between its start and its end", "refused", before,
                  f"--target-lsn={story.within}")
    story.refused("a time in the future", "refused", r"in the future.*\nhint: .*--target=latest",
                  "--target-time=2199-01-01 00:00:00+00")
    there = story.server.psql(f"select to_char('{story.time_1}'::timestamptz at time zone"
                              " 'Asia/Kolkata', 'YYYY-MM-DD HH24:MI:SS.US')") + "+05:30"
    done = story.plan(f"--target-time={there}")
    utc = story.server.psql(f"select to_char('{story.time_1}'::timestamptz at time zone 'UTC',"
                            " 'YYYY-MM-DD HH24:MI:SS.US')") + "+00"
    is_(json.loads(done.out)["plan"]["target"]["value"], utc, "a time with a zone is that instant")


def test_timelines(story):
    """Which timeline a plan takes after a failover."""
    story.goes(2, "latest", "--target=latest")
    story.goes(2, "a name", "--target-name=twice")
    story.goes(2, "a time behind the fork", f"--target-time={story.time_2}")
    story.goes(1, "an LSN before the fork", f"--target-lsn={story.lsn_1}")
    story.goes(2, "an LSN behind it, in its segment", f"--target-lsn={story.lsn_2}")
    story.goes(1, "the tag", tag="t1")
    story.goes(2, "the tag of the second snapshot", tag="t2")
    story.refused("timeline 1 of the second snapshot", "refused",
                  r"timeline 1 does not descend from the snapshot \(timeline 2\)",
                  "--target=latest", "--target-timeline=1", tag="t2")
    partial = os.path.basename(wal_file(story.node, "00000001*.partial"))
    with Away(story.node, partial):
        story.goes(2, "an LSN before the fork that only the child's first segment has",
                   f"--target-lsn={story.lsn_1}")


def test_lost(story):
    node = story.node
    lost = r"timeline 2 has WAL .*00000002\.history is not there.*\nhint: .*push pg_wal/00000002\.h"
    with Away(node, "00000002.history"):
        for target in ("--target=latest", f"--target-time={story.time_1}",
                       f"--target-lsn={story.lsn_1}", "--target-name=twice"):
            story.refused(f"a lost history, {target[:14]}", "missing", lost, target)
        story.refused("timeline 2 without its history", "missing", r"timeline 2 cannot be followed"
                      r".*00000002\.history", "--target=latest", "--target-timeline=2")
        story.goes(1, "timeline 1 without the history of 2", f"--target-lsn={story.lsn_1}",
                   "--target-timeline=1")
        story.goes(1, "the tag without the history of 2")
    names = sorted(os.path.basename(path) for path in
                   glob.glob(f"{snap.repository(node)}/wal/*/*/*/00000002" + "?" * 16))
    ok(len(names) >= 3, f"timeline 2 has segments: {names}")
    with Away(node, names[1]):
        story.refused("a gap behind the fork", "missing", rf"WAL for the target.*{names[1]}"
                      r".*\nhint: .*a point before it is reached with --target-lsn",
                      "--target=latest")
        story.goes(2, "an LSN before the gap", f"--target-lsn={story.lsn_2}")
    number = lsn(record_of(node, "t1")["postgresql"]["start_lsn"]) // (16 * MIB)
    first = f"{1:08X}{number >> 8:08X}{number & 255:08X}"
    with Away(node, first):
        story.refused("a gap before the fork", "missing",
                      first + r".*\nhint: (?!.*--target-lsn)", "--target=latest")


def test_before_fork(story):
    """A time before the fork lies on timeline 1, but the way is that of 2: PostgreSQL then writes a
    history in which 2 ends before it begins."""
    node, server = story.node, story.server
    server.psql("alter system set recovery_target_name = 'of-old'")
    server.configure(recovery_target_inclusive="off", recovery_target_action="shutdown")
    story.restore("--verify=quick", f"--target-time={story.time_1}")
    is_((marks(server), server.timeline()), ("a b", 3), "a time before the fork")
    is_(journal_of(node)["fork"]["parent"], 1, "it left timeline 1")
    is_(server.psql("select count(*) from cache"), "0", "an unlogged table is empty")
    server.psql("insert into cache select generate_series(1, 10)")
    is_(server.psql("select gid from pg_prepared_xacts"), "", "a later rollback counts")
    is_(server.psql("show recovery_target_name"), "", "an old target is gone")
    mark(server, "e3")
    is_status(node.cli("snapshot", "--tag", "t3"), 0, "snapshot t3, of timeline 3")
    node.wait_archived(server.switch_wal())
    story.goes(3, "the tag of the third", tag="t3")
    story.refused("a restore that went back before the snapshot", "refused",
                  r"timeline 3 does not descend.*\nhint: .*before the snapshot's end",
                  "--target=latest", "--target-timeline=3", tag="t2")
    story.refused("two ways to the latest", "refused",
                  SOME + r"timeline 2 .*timeline 3 .*made.*the server's own now.*"
                  r"\nhint: .*--target-timeline=N", "--target=latest")
    done = story.restore("--verify=quick", f"--target-time={now(server)}", "--target-timeline=3")
    unlike(done.out, LATER, "a time behind the last commit, where it runs: no warning")
    is_((marks(server), server.timeline()), ("a b e3", 4),
        "along timeline 3, to a time behind its last commit")


def test_two_branches(story):
    """The old primary wakes up and goes on: what it commits is on no other timeline."""
    old, server = story.old, story.server
    old.start()
    mark(old, "c1")
    old.psql("select pg_create_restore_point('twice'), pg_create_restore_point('only-1')")
    for _ in range(2):
        name = old.switch_wal()
        mark(old, "x1")
        old.psql("select pg_create_restore_point('only-1')")  # the first of a name counts
    poll(lambda: wal_file(story.node, name), 60, f"{name} in the archive")
    old.stop("immediate")
    story.refused("a name on two timelines", "refused", SOME + r"timeline 1 .*timeline 2 ",
                  "--target-name=twice")
    story.restore("--verify=quick", "--target-name=only-1", "--target-timeline=1")
    is_(marks(server), "a b z c1", "the abandoned branch")


def test_targets(story):
    """Along timeline 2, whatever there is beside it."""
    server = story.server
    two = "--target-timeline=2"
    story.restore("--verify=none", "--target-name=twice", two)
    is_(marks(server), "a b z c2", "the name of this timeline")
    done = story.restore(f"--target-time={story.time_2}", two, "--action=pause")
    like(done.out, r"paused at [0-9A-F]+/", "pause at a time")
    is_((marks(server), server.psql("select pg_get_wal_replay_pause_state()")),
        ("a b z c2", "paused"), "and what there is can be read")
    story.restore("--verify=none", f"--target-lsn={story.lsn_2}", two)
    is_(marks(server), "a b z c2", "an LSN in the fork's segment")
    story.restore("--verify=none", "--target=latest", two)
    is_(marks(server), "a b z c2 d2", "all of it")


def test_minimal(story):
    """The server ran with wal_level = minimal for a while, all within one segment."""
    node, server = story.node, story.server
    timeline = server.timeline()
    status = os.path.join(server.data, "pg_wal/archive_status")
    server.stop()
    while any(name.endswith(".ready") for name in os.listdir(status)):
        server.start()  # what waits now would go unarchived while archive_mode is off
        node.wait_archived(server.switch_wal())
        server.stop()
    for level, mode, senders in (("minimal", "off", 0), ("replica", "on", 4)):
        if server.running():
            server.stop()
        server.configure(wal_level=level, archive_mode=mode, max_wal_senders=senders)
        server.start()
        mark(server, level)
    node.wait_archived(server.switch_wal())
    done = story.restore("--target=latest", f"--target-timeline={timeline}", want="postgres")
    like(done.err, r"(?s)wal_level=minimal, cannot continue recovering.*hint: .*choose a target "
         "before that, or a snapshot that was taken since", "wal_level = minimal in between")
    is_status(node.cli("cancel", journal_of(node)["id"]), 0, "given up")


def test_exclusive(story):
    server = story.server
    two = "--target-timeline=2"
    done = story.node.cli("restore", "t1", "--dry-run", f"--target-xid={story.xid_2}",
                          "--target-exclusive", two)
    like(done.out, rf"recover +to just before xid {story.xid_2} on timeline 2", "the plan says so")
    story.restore("--verify=none", f"--target-xid={story.xid_2}", "--target-exclusive", two)
    is_(marks(server), "a b z", "just before a transaction")
    if LONG:
        story.restore("--verify=none", f"--target-xid={story.xid_2}", two)
        is_(marks(server), "a b z c2", "and with it")
        story.restore("--verify=none", f"--target-lsn={story.lsn_2}", "--target-exclusive", two)
        ok(lsn(journal_of(story.node)["fork_lsn"]) <= lsn(story.lsn_2), "just before a location")
    for target in ("--target=latest", "--target-name=twice", "--target=tag"):
        story.refused(f"exclusive, {target}", "usage", "cannot be exclusive", target,
                      "--target-exclusive")
    story.refused("exclusive without a target", "usage", "needs --target-time",
                  "--target-exclusive")
    for action in ("pause", "shutdown"):
        story.refused(f"--action={action} at the WAL's end, where PostgreSQL promotes", "refused",
                      r"no point to pause or to shut down at.*\nhint: choose the tag",
                      "--target=latest", f"--action={action}")


def test_wrong_targets(story):
    """Only replay can find out, when the old data is gone: the message says what to do, and it is
    enough to do that."""
    node = story.node
    cases = ((("--target-name=within",), r"before consistent recovery point.*\nhint: .*older snap"),
             ((f"--target-time={now(story.server)}", "--target-timeline=2"),
              r"recovery ended before configured recovery target was reached.*"
              r"\nhint: no commit later than the target.*--target=latest.*The last commit in the"
              r" WAL is of 20\d\d-"))
    for args, pattern in cases:
        if "timeline" not in " ".join(args):
            args += ("--target-timeline=1",)
        done = story.restore(*args, want="postgres")
        like(done.err, "(?s)" + pattern, f"{args[0][:14]}: the server's own words, and what to do")
        like(done.out, LATER if "time=" in args[0] else "warning +whether the WAL holds",
             f"{args[0][:14]}: the plan warned")
        ok(not story.server.running(), f"{args[0][:14]}: no server runs")
        is_status(node.cli("cancel", journal_of(node)["id"]), 0, "given up")


def test_between_forks(story):
    """A third timeline that left the second: what lies between is on the second alone."""
    server = story.server
    story.restore("--verify=none", "--target=latest", "--target-timeline=2")
    last = server.timeline()
    story.refused("between two forks, with other branches", "refused", SOME + "timeline 1 ",
                  f"--target-lsn={story.lsn_2}")
    story.goes(2, "between two forks, from the second snapshot",
               f"--target-lsn={record_of(story.node, 't2')['postgresql']['tag_lsn']}", tag="t2")
    story.refused("latest, from the second snapshot: two went on from its end", "refused",
                  SOME + rf"timeline {last - 1} .*timeline {last} ", "--target=latest", tag="t2")


def main():
    box = need_root() or Sandbox("pitr")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    story = Branches(box)
    story.begin()
    story.fail_over()
    for test in (test_times, test_timelines, test_lost, test_before_fork, test_two_branches,
                 test_wrong_targets, test_exclusive, test_minimal) + (
                     (test_targets, test_between_forks) if LONG else ()):
        test(story)
    if not LONG:
        diag("only in a campaign: test_targets, test_between_forks")
    story.end()


run(main)
