#!/usr/bin/env python3
# check: build=asan campaign=release timeout=600
"""Where a restore can end and how: name, time, LSN, transaction; pause and shutdown; the image
itself (cold, and of a server that does not archive); other mount points; commits of a server that
will not start; damaged indexes."""
import glob
import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story, journal_of  # noqa: E402
import tm  # noqa: E402

LINE = "--target-timeline=1"


def marks(server):
    return server.psql("select string_agg(what, ' ' order by n) from marks")


def test_points(box):
    """One commit before and after each kind of target."""
    story = Story(box, "points")
    server = story.server
    story.begin()
    server.psql("create table marks (n serial, what text)")
    server.psql("insert into marks (what) values ('a')")
    server.psql("select pg_create_restore_point('release-2')")
    server.psql("insert into marks (what) values ('b')")
    moment = server.psql("select clock_timestamp()")
    server.psql("insert into marks (what) values ('c')")
    lsn = server.psql("select pg_current_wal_lsn()")
    xid = server.psql("insert into marks (what) values ('d') returning pg_current_xact_id()")
    server.psql("insert into marks (what) values ('e')")
    story.restore("--verify=quick", "--target-name=release-2")
    is_(marks(server), "a", "target name")
    story.restore("--verify=quick", f"--target-time={moment}", LINE)
    is_(marks(server), "a b", "target time")
    story.restore("--verify=quick", f"--target-lsn={lsn}", LINE)
    is_(marks(server), "a b c", "target lsn")
    story.restore("--verify=quick", f"--target-xid={xid}", LINE)
    is_(marks(server), "a b c d", "target xid")
    story.restore("--verify=quick", "--target=latest", LINE)
    is_(marks(server), "a b c d e", "target latest")
    done = story.restore("--target-name=never-written", LINE, want="postgres")
    like(done.err, r"recovery ended before configured recovery target was reached",
         "a name that was never written: the server's own words")
    is_(journal_of(story.node)["step"], "recovering", "and the step is in the journal")
    done = story.node.cli("status")
    is_status(done, "postgres", "status: the recovery said no")
    like(done.out, "^main/dbpoints: failed", "which is failed, not partial")
    is_status(story.node.cli("cancel", journal_of(story.node)["id"]), 0, "given up")
    test_actions(story)
    story.end()


def test_partial(box):
    """The server crashed: its last segment is in the repository as .partial only. An LSN in it is a
    target like any other; one behind its end is refused with what there is."""
    story = Story(box, "partial")
    node, server = story.begin(), story.server
    server.psql("create table marks (n serial, what text); insert into marks (what) values ('a')")
    lsn = server.psql("select pg_current_wal_lsn()")
    server.psql("insert into marks (what) values ('b')")
    far = server.psql("select pg_current_wal_lsn() + 200 * 1024 * 1024")
    server.kill()
    story.restore()
    names = glob.glob(node.repository.removeprefix("file://") + "/wal/**/*.partial", recursive=True)
    is_(len(names), 1, "the last segment of timeline 1 is there as .partial")
    is_status(node.cli("restore", "t1", "--dry-run", f"--target-lsn={lsn}", LINE), 0,
              "an LSN in it is accepted")
    done = node.cli("restore", "t1", "--dry-run", f"--target-lsn={far}", LINE)
    is_status(done, "missing", "one far behind it is not")
    like(done.err, r"WAL for the target.*\nhint: the repository has timeline 1 up to [0-9A-F]+/"
         "[0-9A-F]+: choose a target before that, or --target=latest", "and the hint has its end")
    end = re.search(r"up to ([0-9A-F/]+)", done.err).group(1)
    done = node.cli("restore", "t1", "--dry-run", f"--target-lsn={end}", LINE)
    is_status(done, "missing", "nor is its very end, behind which no record begins")
    done = node.cli("restore", "t1", "--dry-run", f"--target-lsn={far}")
    like(done.err, r"no timeline in the repository contains the target.*\nhint: the furthest is "
         r"timeline \d, up to", "and without a timeline")
    story.restore("--verify=quick", f"--target-lsn={lsn}", LINE)
    is_(marks(server), "a", "target lsn in a .partial")
    story.end()


def test_actions(story):
    server = story.server
    done = story.restore("--action=pause")
    like(done.out, "warning: its recovery settings stay .*`# tidemark restore begin`",
         "action pause: what will be left to do is said")
    is_(server.psql("select pg_is_in_recovery(), pg_get_wal_replay_pause_state()"), "t|paused",
        "action pause: the server waits at the tag")
    is_(server.psql("select count(*) from orders"), "5000", "action pause: and can be read")
    reading = story.node.repository.removeprefix("file://") + "/reading/*"
    is_(len(glob.glob(reading)), 1, "action pause: its WAL is kept for it")
    done = story.restore("--action=shutdown")
    ok(not server.running(), "action shutdown: the server is down")
    is_(len(glob.glob(reading)), 2, "action shutdown: as well")
    like(done.out, "warning: each start ends in a shutdown at the target", "and how to go on")
    done = story.node.cli("status")
    is_status(done, "postgres", "action shutdown: status")
    like(done.err, r"hint: restore [0-9a-f]{32} .*recovery_target_action", "not just to start it")
    server.start(check=False)
    poll(lambda: not server.running(), 60, "the next start to shut down, too")
    path = story.node.data + "/postgresql.auto.conf"
    output("sed", "-i", "/^recovery_target_action/s/shutdown/promote/", path)  # README's
    server.start()
    poll(lambda: server.psql("select pg_is_in_recovery()") == "f", 60, "the promotion")
    is_(server.psql("select count(*) from orders"), "5000", "action shutdown: then promoted")
    output("sed", "-i", "/^# tidemark restore begin/,/^# tidemark restore end/d", path)
    server.stop()
    done = story.node.cli("status")
    like(done.err, "hint: start it", "a stop afterwards is no other")
    server.start()
    story.restore("--verify=quick")
    is_(len(glob.glob(reading)), 2, "a restore that promotes keeps none")
    server.wait_ready()
    is_(server.psql("select count(*) from orders"), "5000", "promoted in the end")


def test_image(box):
    """--no-archive and offline: the image's own WAL is all there is."""
    story = Story(box, "image")
    node, server = story.node, story.server
    node.settings = {}
    node.start()
    server.psql("create table marks (n serial, what text); insert into marks (what) values ('a')")
    is_status(node.cli("snapshot", "--tag", "hot", "--no-archive"), 0, "snapshot --no-archive")
    server.psql("insert into marks (what) values ('b')")
    done = story.restore("--target=tag", tag="hot", want="refused")
    like(done.err, r"has no WAL in the repository.*\n.*--target=snapshot", "tag refused, with hint")
    story.restore("--target=snapshot", tag="hot")
    is_(marks(server), "a", "target snapshot of a running server")
    is_(server.timeline(), 2, "on a timeline of its own")
    server.psql("insert into marks (what) values ('c')")
    server.stop()
    node.sections["volume pgdataimage"]["provider"] = "offline"
    node.write_conf()
    node.agent.stop()
    node.agent.start()
    output("mount", "-o", "remount,ro", node.volumes[0].mount)
    is_status(node.cli("snapshot", "--tag", "cold"), 0, "snapshot of a stopped server")
    output("mount", "-o", "remount,rw", node.volumes[0].mount)
    server.start()
    server.psql("insert into marks (what) values ('d')")
    story.restore(tag="cold")
    is_(marks(server), "a c", "target snapshot of a stopped server")
    story.end()


def test_moved(box):
    """Other mount points: pg_wal and tablespace links follow."""
    story = Story(box, "moved", wal=True, tablespace=True)
    node, server = story.begin(), story.server
    server.stop()
    node.agent.stop()
    for volume in node.volumes:
        box.umount(volume.mount)
        os.rmdir(volume.mount)
        volume.mount = box.join("new-" + volume.name)
        node.sections[f"volume {volume.name}"]["mount"] = volume.mount
    node.data = server.data = os.path.join(node.volumes[0].mount, "data")
    node.sections["postgresql"]["data_directory"] = node.data
    node.write_conf()
    node.agent.start()
    story.restore()
    story.check_tag("other mount points")
    ok(os.readlink(node.data + "/pg_wal").startswith(story.wal_volume.mount), "pg_wal is moved")
    spaces = node.data + "/pg_tblspc"
    links = [os.readlink(f"{spaces}/{name}") for name in os.listdir(spaces)]
    ok(len(links) == 1 and links[0].startswith(story.tablespace.mount), "the tablespace is moved")
    story.end()


def test_broken_server(box):
    """A server that will not start any more still gives up its last commits."""
    story = Story(box, "broken", wal=True)
    node, server = story.begin(), story.server
    acknowledged = story.ledger.acknowledged
    server.stop("immediate")
    shutil.rmtree(node.data + "/global")
    isnt(server.start(check=False).returncode, 0, "the old server does not start")
    done = story.restore("--target=latest", "--verify=quick")
    is_(done.status, 0, "restored to the latest")
    is_(story.ledger.present(server), (acknowledged, acknowledged),
        "every acknowledged commit of the broken server is there")
    story.end()


def test_damage(box):
    """An index that does not match its table: found by full, rebuilt by reindex=auto."""
    story = Story(box, "damage")
    node, server = story.node.start(), story.server
    server.psql("create function twist(int) returns int immutable language sql as 'select $1';\n"
                "create table twisted (a int);\n"
                "insert into twisted select generate_series(1, 100);\n"
                "create index twisted_index on twisted (twist(a));\n"
                "create or replace function twist(int) returns int immutable language sql"
                " as 'select -$1'")
    is_status(node.cli("snapshot", "--tag", "t1"), 0, "snapshot with a damaged index")
    done = story.restore("--verify=full", want="corrupt")
    like(done.err, r"index public.twisted_index in database 'postgres' is damaged", "full finds it")
    is_(journal_of(node)["verification"]["ok"], False, "the journal says so")
    is_(server.psql("select count(*) from pg_extension where extname = 'amcheck'"), "0",
        "amcheck is not left behind")
    job = journal_of(node)["id"]
    is_status(node.cli("cancel", job), 0, "given up")
    done = node.cli("status")
    is_status(done, "partial", "status afterwards: partial")
    like(done.err, rf"restore {job} was given up at step verifying.*\nhint: restore any snapshot: "
         "`tidemark list`", "and what to do: not to resume it")
    done = node.cli("restore", "--resume", job)
    is_status(done, "refused", "which is not possible")
    story.restore("--verify=full", "--reindex=auto")
    is_status(node.cli("status"), 0, "status after another restore: ok")
    is_(journal_of(node)["verification"]["indexes"][0]["rebuilt"], True, "reindex=auto rebuilds it")
    status, text = server.amcheck()
    is_(status, 0, "amcheck finds nothing afterwards " + text[:200])
    story.end()


def test_locked(box):
    """A prepared transaction of the snapshot locks a table: the verification says so and ends."""
    story = Story(box, "locked", settings={"max_prepared_transactions": "5"})
    node, server = story.node.start(), story.server
    server.psql("create table held (a int primary key); insert into held values (1)")
    server.psql("begin; lock table held in access exclusive mode; prepare transaction 'holder'")
    is_status(node.cli("snapshot", "--tag", "t1"), 0, "snapshot with a prepared transaction")
    done = story.restore(want="busy")
    like(done.err, r"amcheck: \w+ public\.held\w* in database 'postgres' is locked: not checked\n"
         "hint: end what holds the lock", "the lock is named, and not called damage")
    server.psql("rollback prepared 'holder'")
    is_status(node.cli("restore", "--resume", "--yes"), 0, "without it the verification passes")
    is_(journal_of(node)["verification"]["ok"], True, "and says so")
    story.end()


def test_corrupt(box):
    """A damaged chunk ends the restore before the volume can be mounted; once the object is good
    again it goes on."""
    story = Story(box, "corrupt")
    node, server = story.begin(), story.server
    volume = node.volumes[0]
    repository = node.repository.removeprefix("file://")
    pack = max(glob.glob(f"{repository}/pack/*/*/*"), key=os.path.getsize)
    shutil.copy2(pack, box.join("pack"))
    os.chmod(pack, 0o600)
    with open(pack, "r+b") as file:
        # Many: one bit of an LZ4 block may decode to the same bytes, which is no damage.
        file.seek(os.path.getsize(pack) // 2)
        piece = file.read(256)
        file.seek(-len(piece), os.SEEK_CUR)
        file.write(bytes(byte ^ 0xff for byte in piece))
    done = story.restore(want="corrupt")
    like(done.err, re.escape(os.path.relpath(pack, repository)), "the object is named")
    like(done.err, r"region \d+.*chunk \d+|chunk \d+", "and the chunk")
    like(done.err, r"--resume", "the hint says how to go on")
    isnt(subprocess.run(["mount", volume.device, volume.mount], check=False,
                        stderr=subprocess.DEVNULL).returncode, 0, "the volume cannot be mounted")
    done = node.cli("snapshot", "--tag", "t2")
    is_status(done, "partial", "no snapshot of an unfinished restore")
    shutil.copy2(box.join("pack"), pack)
    is_status(node.cli("restore", "--resume", "--yes"), 0, "resumed with the good object")
    server.wait_ready()
    story.check_tag("after a corrupt object")
    story.end()


def main():
    box = need_root() or Sandbox("restore-targets")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    for test in (test_points, test_partial, test_image, test_moved, test_broken_server, test_damage,
                 test_locked, test_corrupt):
        wanted = os.environ.get("TIDEMARK_ONLY")
        if not wanted or test.__name__ in wanted.split(","):
            test(box)


run(main)
