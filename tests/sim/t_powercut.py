#!/usr/bin/env python3
# check: build=release timeout=240
"""The power cut simulator tells programs that flush from programs that do not: what was fsynced
survives every cut, what was not is lost for some seed, and a filesystem on it is always repaired by
its own journal. All that through a loop device, with direct I/O and without."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
from powercut import PowerCut  # noqa: E402

SECTORS = 64


def read_file(path):
    with open(path, "rb") as file:
        return file.read()


def test_plain(box):
    """The model itself, on a raw image without a filesystem."""
    power = PowerCut(box, {"a": 1 * MIB, "b": 1 * MIB})
    a, b = (os.open(power.path(name), os.O_RDWR) for name in ("a", "b"))
    os.pwrite(a, b"1" * 8192, 0)
    os.pwrite(b, b"1" * 8192, 0)
    os.fsync(a)
    power.mark("after the flush")
    os.pwrite(a, b"2" * 8192, 0)
    os.pwrite(a, b"3" * 8192, 8192)
    is_(os.pread(a, 4, 0), b"2222", "reads see the newest write")
    end = power.ops()
    is_(end, 6, "writes, flush and mark are counted")
    power.cut()
    ok(power.is_cut(), "cut")
    for action, name in ((lambda: os.pwrite(a, b"x" * 512, 0), "writes"),
                         (lambda: os.pread(a, 512, 0), "reads"), (lambda: os.fsync(a), "flushes")):
        try:
            action()
            ok(False, f"{name} fail after the cut")
        except OSError as error:
            is_(error.errno, 5, f"{name} fail after the cut")
    os.close(a)
    os.close(b)
    power.stop()
    is_([op.type for op in power.log()], ["write", "write", "flush", "mark", "write", "write"],
        "the log")
    is_([op.text for op in power.log() if op.type == "mark"], ["after the flush"], "its mark")
    is_(power.boundaries(), [2, 3, 4, 6], "its boundaries")

    images = power.recover("r", seed=0)
    is_(read_file(images["a"])[:16384], b"1" * 8192 + bytes(8192), "seed 0: flushed and no more")
    is_(read_file(images["b"])[:8192], bytes(8192), "seed 0: a flush is of one image only")
    images = power.recover("r", seed=1)
    is_(read_file(images["a"])[:16384], b"2" * 8192 + b"3" * 8192, "seed 1: everything")
    images = power.recover("r", at=2, seed=0)
    is_(read_file(images["a"])[:8192], bytes(8192), "a cut before the flush loses the write")
    images = power.recover("r", at=3, seed=0)
    is_(read_file(images["a"])[:8192], b"1" * 8192, "a cut after it does not")
    states, torn, repeated = set(), 0, True
    for seed in range(2, 42):
        data = read_file(power.recover("r", seed=seed)["a"])[:16384]
        repeated = repeated and data == read_file(power.recover("again", seed=seed)["a"])[:16384]
        states.add(data)
        torn += 0 < data[:8192].count(b"2") < 8192
        if set(data[:8192]) - set(b"12") or set(data[8192:]) - set(b"\0003"):
            ok(False, f"seed {seed}: a flushed byte is lost")
    ok(len(states) > 10, f"40 seeds give {len(states)} states")
    ok(torn > 3, f"{torn} of them torn")
    ok(repeated, "the same seed gives the same image")
    power.remove()


def test_planned(box):
    for plan, name in (("cut_at", "operation"), ("cut_at_flush", "flush")):
        power = PowerCut(box, {"a": 1 * MIB})
        fd = os.open(power.path("a"), os.O_RDWR)
        getattr(power, plan)(5 if plan == "cut_at" else 3)
        done = 0
        try:
            for done in range(100):
                os.pwrite(fd, b"x" * 512, 512 * done)
                os.fsync(fd)
        except OSError:
            pass
        os.close(fd)
        power.wait_cut(5)
        is_((power.status()["cut"], done), (5, 2), f"the power goes at a planned {name}")
        power.stop()
        is_(read_file(power.recover("r")["a"])[:1536], b"x" * 1024 + bytes(512),
            "and two flushed writes are there")
        power.remove()


def test_loop(box, direct_io):
    """Flushes pass through the loop device; so do discards."""
    name = f"loop, direct I/O {'on' if direct_io else 'off'}"
    power = PowerCut(box, {"a": 8 * MIB})
    device = power.attach("a", direct_io)
    is_(output("losetup", "-n", "-O", "DIO", device).strip(), str(int(direct_io)), f"{name}: set")
    fd = os.open(device, os.O_RDWR)
    os.pwrite(fd, b"1" * 65536, 0)
    before = power.status()["flushes"]
    os.fsync(fd)
    ok(power.status()["flushes"] > before, f"{name}: fsync of the device is a flush of the image")
    os.pwrite(fd, b"2" * 65536, 65536)
    os.close(fd)  # written back by the last close, never flushed
    poll(lambda: any(op.type == "write" and op.offset == 65536 for op in power.log()), 10, "write")
    output("blkdiscard", "-o", "1048576", "-l", "1048576", device)
    ok(any(op.type == "zero" and op.offset == 1048576 for op in power.log()),
       f"{name}: a discard is logged")
    power.cut()
    result = subprocess.run(["dd", "if=" + device, "of=/dev/null", "bs=4096", "count=1",
                             "iflag=direct"], stderr=subprocess.DEVNULL, check=False)
    isnt(result.returncode, 0, f"{name}: the device fails after the cut")
    power.stop()
    data = read_file(power.recover("r", seed=0)["a"])
    is_(data[:131072], b"1" * 65536 + bytes(65536), f"{name}: flushed or lost")
    power.remove()


def sync_directory(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def write_files(point, power, careful):
    """Numbered files; the careful program fsyncs file and directory before it says so."""
    for number in range(30):
        path = os.path.join(point, f"f{number}")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.write(fd, str(number).encode() * 5000)
        if careful:
            os.fsync(fd)
            sync_directory(point)
        os.close(fd)
        power.mark(f"wrote {number}")


def said(power, at):
    """What the program had acknowledged before operation `at`."""
    return [int(op.text.split()[1]) for op in power.log() if op.type == "mark" and op.index < at]


def damaged(box, image, fs, acknowledged):
    """Acknowledged files that are not whole after mounting the image; fails when the filesystem
    cannot be mounted or is not clean afterwards."""
    point = box.mkdir("check")
    options = ["-o", "loop,nouuid" if fs == "xfs" else "loop"]
    output("mount", *options, image, point)
    lost = []
    for number in acknowledged:
        try:
            good = read_file(os.path.join(point, f"f{number}")) == str(number).encode() * 5000
        except OSError:
            good = False
        if not good:
            lost.append(number)
    box.umount(point)
    output(*(("xfs_repair", "-n", "-f") if fs == "xfs" else ("e2fsck", "-fn")), image)
    return lost


def record(box, fs, careful):
    power = PowerCut(box, {"disk": 320 * MIB if fs == "xfs" else 32 * MIB})
    device = power.attach("disk")
    box.mkfs(device, fs)
    point = box.mount(device, "disk")
    sync_directory(point)
    output("sync", "-f", point)
    start = power.ops()
    write_files(point, power, careful)
    end = power.ops()
    power.cut()
    box.umount(point)
    power.stop()
    return power, start, end


def test_filesystem(box, fs, random):
    """The careful program loses nothing at any cut; a negative control, the careless one, does."""
    for careful in (True, False):
        name = f"{fs}, {'with' if careful else 'without'} fsync"
        power, start, end = record(box, fs, careful)
        cuts = [op for op in power.boundaries() if start <= op <= end]
        if not CAMPAIGN:
            cuts = sorted(set(random.sample(cuts, min(12, len(cuts))) + [end]))
        lost, tried = [], 0
        for at in cuts:
            for seed in (0, 1, random.randrange(2, 1 << 30), random.randrange(2, 1 << 30)):
                images = power.recover("r", at=at, seed=seed)
                missing = damaged(box, images["disk"], fs, said(power, at))
                tried += 1
                if missing:
                    lost.append((at, seed, missing))
        diag(f"{name}: {tried} cuts, {len(lost)} lose something")
        if careful:
            is_(lost, [], f"{name}: {tried} cuts lose no acknowledged file")
        else:
            ok(lost, f"{name}: some cut loses a file (negative control)")
        power.remove()


def main():
    need_root()
    if not os.path.exists("/dev/fuse"):
        skip_all("no /dev/fuse")
    box = Sandbox("powercut")
    test_plain(box)
    test_planned(box)
    test_loop(box, True)
    test_loop(box, False)
    random, _ = seeded()
    test_filesystem(box, "ext4", random)
    test_filesystem(box, "xfs", random)


run(main)
