#!/usr/bin/env python3
"""The test library itself: what a sandbox makes goes away at exit, on signals, after kill -9."""
import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
from disks import has_zram  # noqa: E402
from sandbox import LATE, ZRAM, clean, disk_sequence, loop_given_name, reap_stale  # noqa: E402

CHILD = """
import sys, time
sys.path.insert(0, {lib!r})
from tm import *
from disks import has_zram, zram_volume
box = Sandbox("selftest-child")
if has_zram():
    zram_volume(box, "bios", 64 * MIB)
outer = box.volume("outer", 400 * MIB, "xfs")
inner = box.volume("pgdata", 96 * MIB, "ext4", backing=outer.mount)
server = Server(box, inner.mount + "/data")
server.init()
server.start()
print(box.path, flush=True)
time.sleep(600)
"""


SLOW_CHILD = """
import sys, time
sys.path.insert(0, {lib!r})
from tm import *
from disks import SlowDisk
box = Sandbox("selftest-slow")
print(box.path, SlowDisk(box, "slow", 64 * MIB).volume.device, flush=True)
time.sleep(600)
"""


def child():
    lib = os.path.join(SOURCE, "tests/lib")
    process = subprocess.Popen([sys.executable, "-c", CHILD.format(lib=lib)], text=True,
                               stdout=subprocess.PIPE)
    return process, process.stdout.readline().strip()


def zrams(path):
    """(device, sequence number) of those that the sandbox has made."""
    with open(os.path.join(path, ZRAM), encoding="ascii") as file:
        return [line.split() for line in file]


def gone(path, devices):
    return not (os.path.exists(path) or mounts_below(path) or loops_below(path)
                or processes_below(path) or any(disk_sequence(d) == n for d, n in devices))


def test_signals():
    for number in (signal.SIGINT, signal.SIGTERM):
        process, path = child()
        devices = zrams(path) if has_zram() else []
        ok(len(mounts_below(path)) == 2 + len(devices) and len(loops_below(path)) == 2
           and processes_below(path), "a child has its volumes and a server")
        process.send_signal(number)
        is_(process.wait(60), 128 + number, f"it ends on signal {int(number)}")
        ok(gone(path, devices), "nothing is left of it")


def test_killed(box):
    process, path = child()
    devices = zrams(path) if has_zram() else []
    process.kill()
    process.wait()
    ok(not gone(path, devices), "after kill -9 its volumes and its server are still there")
    is_(reap_stale(), [], "the reaper finds it")
    ok(gone(path, devices), "nothing is left of it")
    ok(os.path.exists(box.path), "the sandbox of a run that is alive is not touched")


def is_nameless(device, path):
    """Once what the kernel has cached of the file is too old."""
    try:
        return not loop_given_name(device).startswith(path)
    except OSError:
        return True


def test_killed_fuse():
    """A loop device on a FUSE file whose server is dead and whose mount is gone tells nobody where
    its file was. The server dies first: if it were to unmount what it serves, it would wait for
    itself for ever."""
    lib = os.path.join(SOURCE, "tests/lib")
    process = subprocess.Popen([sys.executable, "-c", SLOW_CHILD.format(lib=lib)], text=True,
                               stdout=subprocess.PIPE)
    path, device = process.stdout.readline().split()
    attached = f"/sys/block/{os.path.basename(device)}/loop"
    with open(os.path.join(path, LATE), encoding="ascii") as file:
        server = int(file.read().split()[0])
    process.kill()
    process.wait()
    kill_pid(server)
    for mount in mounts_below(path):
        output("umount", "-l", mount)
    with open(attached + "/backing_file", encoding="utf-8") as file:
        is_(file.read(), "/disk\n", "after kill -9 of a slow disk its loop device is still there")
    poll(lambda: is_nameless(device, path), 60, "no name of its file")
    is_(reap_stale(), [], "the reaper finds it")
    ok(not os.path.exists(attached) and not os.path.exists(path), "nothing is left of it")


def test_frozen(box):
    volume = box.volume("frozen", 64 * MIB)
    output("fsfreeze", "-f", volume.mount)
    is_(clean_part(box), [], "a frozen volume is thawed and unmounted")


def clean_part(box):
    """clean() of a copy of the sandbox's name would remove the owner file; so mounts only."""
    for point in mounts_below(box.path):
        thaw(point)
        box.umount(point)
    return mounts_below(box.path)


def test_server(box):
    volume = box.volume("pgdata", 160 * MIB)
    server = Server(box, os.path.join(volume.mount, "data"), superuser="boss")
    server.init(archive_mode="on", archive_command="true")
    server.start()
    is_(server.psql("show data_checksums"), "on", "a server with checksums runs")
    is_(server.psql("select current_user"), "boss", "under the given superuser")
    is_(server.timeline(), 1, "on timeline 1")
    server.pgbench_init(1)
    load = server.pgbench()
    ledger = Ledger(server).create().start()
    ledger.wait(20)
    load.wait_transactions(50)
    before = ledger.acknowledged
    tag = server.psql("select pg_create_restore_point('x')")
    after = ledger.sent
    ledger.wait(20)
    load.stop()
    last = ledger.stop()
    least, most = ledger.bounds(tag)
    ok(before - 1 <= least <= most <= after + 1 and most - least <= 1,
       f"the ledger knows what a tag covers: {before} - {least}..{most} - {after}")
    count, highest = ledger.present()
    ok(count == highest and highest >= last, "every acknowledged commit is there")
    sums = server.pgbench_sums()
    ok(sums[0] == sums[1] == sums[2] == sums[3] and sums[4] > 50, "pgbench's sums agree")
    is_(server.amcheck()[0], 0, "pg_amcheck finds nothing")
    server.stop()
    ok(not server.running(), "the server stops")


def main():
    need_root()
    box = Sandbox("selftest")
    test_server(box)
    test_frozen(box)
    test_signals()
    test_killed(box)
    test_killed_fuse()


run(main)
