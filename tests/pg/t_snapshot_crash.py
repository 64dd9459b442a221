#!/usr/bin/env python3
"""A snapshot that is killed, stopped, cancelled, cut off from its server or out of space: nothing
is visible, nothing stays frozen, backup mode ends, and the next snapshot works."""
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import snapshots as snap  # noqa: E402

# archive_command that waits while a file is there.
HOLD = """#!/bin/sh
while [ -e {hold} ]; do sleep 0.1; done
exec {push} "$1" --config={conf}
"""


def unaffected(node, why, before):
    """What must hold after every failure."""
    is_(snap.tags(node), before, f"{why}: nothing is visible")
    poll(lambda: node.server.psql("select count(*) from pg_stat_activity where application_name = "
                                  "'tidemark'") == "0", 20, "end of the session")
    node.server.psql("insert into beat values (1)")
    path = os.path.join(node.volumes[0].mount, "probe")
    with open(path, "wb") as file:
        file.write(b"x")
        os.fsync(file.fileno())
    os.unlink(path)
    ok(True, f"{why}: session gone, server and volume take writes")


def test_kill(node, rng):
    """kill -9 of the job at random moments of a snapshot."""
    started = time.monotonic()
    is_status(node.cli("snapshot", "--tag", "intact"), 0, "the intact case")
    whole_s = time.monotonic() - started
    before = snap.tags(node)
    for index in range(20 if CAMPAIGN else 5):
        delay_s = rng.uniform(0.05, 0.8) * whole_s
        running = snap.Running(node, "snapshot", "--tag", f"killed{index}")
        pid = running.pid()
        end = time.monotonic() + delay_s
        poll(lambda: time.monotonic() > end, 60, "the moment", 0.005)
        phase = running.journal().get("phase")
        kill_pid(pid, signal.SIGKILL)
        done = running.wait()
        if done.status == 0 or snap.record_path(node, f"killed{index}"):
            # The record was written before the kill: then it is a whole snapshot.
            snap.image(node, f"killed{index}", check="16")
            ok(True, f"kill -9 after {delay_s:.2f} s came too late in '{phase}': it is whole")
            before = snap.tags(node)
            continue
        unaffected(node, f"kill -9 after {delay_s:.2f} s in '{phase}'", before)
    is_status(node.cli("snapshot", "--tag", "after-kills"), 0, "the next snapshot works")
    snap.image(node, "after-kills", check="16")
    tables = os.listdir(os.path.join(node.state_dir, "tables"))
    is_([t for t in tables if not t.endswith(".table")], [], "no working table is left")


def slow(node, limit):
    node.sections["tidemark"]["rate_limit"] = limit
    node.write_conf()
    node.agent.stop()
    node.agent.start()


def test_stop(node, sig, name):
    """The job hangs or dies while the volume is frozen: the guardian thaws."""
    before = snap.tags(node)
    heart = snap.Heartbeat(node.volumes[0].mount)
    running = snap.Running(node, "snapshot", "--tag", "stopped")
    running.wait_phase("copying")
    heart.wait_frozen()
    pid = running.pid()
    os.kill(pid, sig)
    poll(lambda: heart.blocked_s() < 0.2, 20, "the thaw", 0.01)
    ok(heart.longest_s < 6.5, f"{name} while frozen: writes hung {heart.longest_s:.1f} s")
    if sig == signal.SIGSTOP:
        os.kill(pid, signal.SIGCONT)
    done = running.wait()
    heart.stop()
    if sig == signal.SIGSTOP:
        is_status(done, "refused", "SIGSTOP: the snapshot that was thawed is refused")
        like(done.err, "the capture did not hold", "SIGSTOP: and says why")
    unaffected(node, name, before)


def test_agent_killed(node):
    running = snap.Running(node, "snapshot", "--tag", "orphan")
    running.wait_phase("copying")
    pid = running.pid()
    node.agent.kill()
    running.wait()
    poll(lambda: process_gone(pid), 60, "the job")
    ok("orphan" in snap.tags(node), "kill -9 of the agent: the job goes on and commits")
    node.agent.start()


def held(node, tag, step, hold):
    """Runs a snapshot whose WAL cannot be archived, and step() while it waits for that."""
    running = snap.Running(node, "snapshot", "--tag", tag)
    running.wait_phase("copying")
    open(hold, "w", encoding="ascii").close()
    running.wait_phase("waiting for WAL")
    step(running)
    return running


def release(hold):
    if os.path.exists(hold):
        os.unlink(hold)


def test_lost(node, hold):
    before = snap.tags(node)
    terminate = ("select pg_terminate_backend(pid) from pg_stat_activity "
                 "where application_name = 'tidemark'")
    running = held(node, "session", lambda _: node.server.psql(terminate), hold)
    release(hold)
    is_status(running.wait(), "postgres", "session lost during the snapshot")
    unaffected(node, "session lost", before)

    def restart(_running):
        release(hold)  # a shutdown waits for its archiver
        node.server.stop()
        node.server.start()
    running = held(node, "restart", restart, hold)
    is_status(running.wait(), "postgres", "server restarted during the snapshot")
    unaffected(node, "server restarted", before)

    def remove_parent(_running):
        newest = snap.record_path(node, snap.record_by_age(node)[-1]["tag"])
        os.rename(newest, node.box.join("parent.json"))
        before.remove(snap.read_record(node.box.join("parent.json"))["tag"])
        release(hold)
    running = held(node, "parent", remove_parent, hold)
    done = running.wait()
    is_status(done, "busy", "the parent's record goes away during the snapshot")
    like(done.err, "the snapshot's parent went away while it ran", "and is named")
    unaffected(node, "parent removed", before)
    is_status(node.cli("snapshot", "--tag", "next-parent"), 0, "the next one takes another parent")


def test_cancel(node, hold):
    before = snap.tags(node)
    running = held(node, "cancelled", lambda r: os.kill(r.pid(), signal.SIGTERM), hold)
    is_status(running.wait(), "cancelled", "cancel while it waits for WAL")
    release(hold)
    unaffected(node, "cancelled", before)
    running = snap.Running(node, "snapshot", "--tag", "cancelled")
    running.wait_phase("copying")
    os.kill(running.pid(), signal.SIGTERM)
    is_status(running.wait(), "cancelled", "cancel while it copies")
    unaffected(node, "cancelled while it copies", before)
    node.server.psql("checkpoint; create table busy as select generate_series(1, 400000) as n")
    running = snap.Running(node, "snapshot", "--tag", "cancelled", "--checkpoint=spread")
    running.wait_phase("checkpoint")
    os.kill(running.pid(), signal.SIGTERM)
    is_status(running.wait(20), "cancelled", "cancel during a spread checkpoint")
    unaffected(node, "cancelled in the checkpoint", before)


def test_timeout(node, hold):
    before = snap.tags(node)
    node.sections["wal"]["archive_timeout"] = "3s"
    slow(node, None)
    running = held(node, "timeout", lambda _: None, hold)
    done = running.wait()
    release(hold)
    is_status(done, "postgres", "WAL that does not arrive in time")
    like(done.err, "did not arrive in the repository within 3 s: .*[0-9A-F]{24}.*last_failed_wal",
         "names the segment and last_failed_wal")
    unaffected(node, "WAL time-out", before)
    del node.sections["wal"]["archive_timeout"]
    slow(node, None)


def test_full(box):
    """A repository on a tmpfs that is too small."""
    volume = box.volume("small", 400 * MIB)
    store = box.mkdir("store")
    output("mount", "-t", "tmpfs", "-o", "size=24m", "tidemark-test", store)
    url = make_repository(box, "store/repo")
    node = Node(box, [volume], name="full", repository=url)
    node.start()
    node.server.psql("create table beat (n int)")
    node.server.psql("create table noise as select md5(random()::text) || md5(random()::text) as t "
                     "from generate_series(1, 300000)")
    done = node.cli("snapshot", "--tag", "too-big")
    is_status(done, "store", "a repository too full for WAL: the server cannot archive")
    like(done.err, r"the server cannot archive: the repository .* is full .*\nhint: free space",
         "and why is said, as archive_command said it")
    unaffected(node, "repository full", [])
    output("mount", "-o", "remount,size=400m", store)
    is_status(node.cli("snapshot", "--tag", "fits"), 0, "with room again the next snapshot works")
    snap.image(node, "fits", "small", check="16")
    used = int(output("df", "--output=used", "-k", store).split()[-1])
    output("mount", "-o", f"remount,size={used + 18000}k", store)
    node.server.psql("update noise set t = md5(t) || md5(t || 'x')")
    node.server.psql("alter system set archive_command = 'true'")
    node.server.psql("select pg_reload_conf()")
    done = node.cli("snapshot", "--tag", "too-big", "--no-archive", "--full")
    is_status(done, "store", "full during the copy")
    like(done.err, "No space left on device", "names the reason")
    unaffected(node, "full during the copy", ["fits"])
    node.server.stop()
    node.agent.stop()


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    rng, _seed = seeded()
    box = Sandbox("t_snapshot_crash")
    node = Node(box, [box.volume("pgdata", 512 * MIB)])
    hold = box.join("hold")
    archive = box.write("archive.sh", HOLD.format(hold=hold, conf=node.conf,
                                                  push=f"{node.programs}/tidemark-wal push"), 0o755)
    node.settings["archive_command"] = f"{archive} %p"
    node.sections["wal"] = {"push_ahead": "0"}  # no WAL gets past the command that holds it
    node.start()
    node.server.pgbench_init(3)
    node.server.psql("create table beat (n int)")
    load = node.server.pgbench()
    load.wait_transactions(20)
    test_kill(node, rng)
    test_agent_killed(node)
    slow(node, "60MiB")
    test_stop(node, signal.SIGSTOP, "SIGSTOP")
    test_stop(node, signal.SIGKILL, "SIGKILL")
    slow(node, None)
    load.stop()
    test_lost(node, hold)
    test_cancel(node, hold)
    test_timeout(node, hold)
    is_status(node.cli("snapshot", "--tag", "last"), 0, "the last snapshot works")
    node.server.stop()
    node.agent.stop()
    test_full(box)


run(main)
