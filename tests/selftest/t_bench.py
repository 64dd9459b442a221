#!/usr/bin/env python3
"""bench/restore-vs-pgbackrest in the small: it measures, both tools bring the right rows back, and
nothing stays behind. No time is asserted. bench/nvme refuses every device that may hold something.
bench/precopy in the small, too.
check: timeout=600 alone"""
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import s3  # noqa: E402

BENCH = os.path.join(SOURCE, "bench")
CASES = [("now", "tidemark"), ("now", "pgbackrest"), ("later", "tidemark"),
         ("later", "pgbackrest")]
SMALL = {"SIZE": "0.02", "ROUNDS": "1", "SEGMENTS": "2", "EXTRA": "0"}


def traces():
    """Directories and cgroups of benchmarks; mounts and loop devices lie below the directories."""
    found = [x for x in os.listdir("/var/tmp") if x.startswith("tidemark-bench-")]
    for top in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if os.path.isdir(top):
            found += [x for x in os.listdir(top) if x.startswith("tidemark-bench-")]
    return set(found)


def test_figures(box, kind):
    out, before = box.mkdir("out"), traces()
    done = run_program(os.path.join(BENCH, "restore-vs-pgbackrest"), OUT=out, STORE=kind, **SMALL)
    if not is_(done.status, 0, f"the benchmark ends, repositories on {kind}"):
        diag(done.out + done.err)
        return
    with open(out + "/restore-vs-pgbackrest.json", encoding="utf-8") as file:
        report = json.load(file)
    store = report["stores"][kind]
    ok(all(0 < store[x] < 1000 for x in ("ratio", "first_query_ratio", "cpu_ratio")),
       "the ratios are there")
    for story, name in CASES:
        case = store["stories"][story][name]
        ok(case["right"] is True and len(case["rounds"]) == 1, f"{story}, {name}: the rows are "
           "those of the restore point")
        figures = case["copy"], case["first_query"]
        ok(all(x[key]["median"] > 0 for x in figures for key in ("s", "process_cpu_s"))
           and figures[0]["s"]["median"] < figures[1]["s"]["median"]
           and case["copy"]["target_written"]["median"] > 20 * MIB
           and (case["copy"]["repository_read"]["median"] > 0 or kind == "s3"),
           f"{story}, {name}: and figures")
    ok(len(store["references"]) == 1 and store["references"][0]["write_s"] > 0,
       "what the device does by itself is measured in the same round")
    ok(os.path.getsize(out + "/restore-vs-pgbackrest.svg") > 1000, "there is a plot")
    like(done.out, r"tidemark / pgbackrest: copy \d", "and a table for people")
    is_(traces() - before, set(), "nothing is left behind")


def test_precopy(box):
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        skip("bench/precopy: this kernel has no BTF")
        return
    out, before = box.mkdir("out"), traces()
    done = run_program(os.path.join(BENCH, "precopy"), OUT=out, SIZE_MIB="30", ROUNDS="1",
                       SPARSE="1", WINDOW_S="1", FREEZE_MAX="10s")
    if not is_(done.status, 0, "bench/precopy ends"):
        diag(done.out + done.err)
        return
    with open(out + "/precopy.json", encoding="utf-8") as file:
        cases = json.load(file)["cases"]
    is_(sorted(cases), ["freeze", "none", "precopy", "precopy, 100MiB/s"], "every case is there")
    ok(all(x["count"] == 1 and x["tps_around"]["median"] > 0 and x["ratio"]["median"] >= 0
           for x in cases.values()), "each with the load that it met")
    ok(all(x["read"]["median"] > 20 * MIB and x["stall_ms"]["p99"] > 0
           for name, x in cases.items() if name != "none"), "snapshots read, and stopped writers")
    for name in ("precopy", "precopy, 100MiB/s"):
        case = cases[name]
        ok(case["passes"]["median"] == len(case["pass_bytes"]) > 0, f"{name}: passes have bytes")
        parts = case["barriers"]
        ok(parts["stall"]["max"] >= parts["freeze"]["median"] > 0,
           f"{name}: the log says what stalls consist of")
    is_(traces() - before, set(), "nothing is left behind")


def test_incremental(box):
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        skip("this kernel has no BTF")
        return
    out = box.mkdir("incremental")
    done = run_program(os.path.join(BENCH, "incremental"), OUT=out, SIZE_MIB="48", ROUNDS="1",
                       PERCENT="1 5")
    if not is_(done.status, 0, "bench/incremental ends"):
        diag(done.out + done.err)
        return
    with open(out + "/incremental.json", encoding="utf-8") as file:
        medians = json.load(file)["medians"]
    for percent, modes in medians.items():
        tracked, untracked = (modes[x] for x in ("tracked", "untracked"))
        ok(0 < tracked["bytes_read"]["median"] < untracked["bytes_read"]["median"] / 2,
           f"{percent} % changed: the tracked one reads less")
        ok(tracked["bytes_stored"]["median"] < 2 * untracked["bytes_stored"]["median"],
           f"{percent} %: and stores about the same")
    like(done.out, r"5% untracked +\d", "and a table for people")


def test_interrupted(box):
    """Ctrl-C between two restores; on a device that the user named, which is given back blank."""
    device, before = box.loop(box.image("interrupted.img", GIB)), traces()
    process = subprocess.Popen([os.path.join(BENCH, "nvme"), device], text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True,
                               env={**os.environ, **SMALL, "OUT": box.join("out")})
    for line in process.stdout:
        if re.search("round 1, now, tidemark", line):
            os.killpg(process.pid, signal.SIGINT)
            break
    text = process.stdout.read()
    if not is_(process.wait(120), 128 + signal.SIGINT, "Ctrl-C ends it"):
        diag(text)
    with open(device, "rb") as file:
        ok(not any(chunk.strip(b"\0") for chunk in iter(lambda: file.read(MIB), b"")),
           "the device is blank again")
    is_(traces() - before, set(), "and nothing is left behind")


def refused(device, pattern, name, status="refused"):
    """bench/nvme says no, and the device's first MiB is what it was."""
    def head():
        with open(device, "rb") as file:
            return file.read(MIB)
    before = head()
    done = run_program(os.path.join(BENCH, "nvme"), device, **SMALL)
    is_status(done, status, f"bench/nvme refuses {name}")
    like(done.err, pattern + r"[^\n]*\nhint: ", "and says why and what to do")
    is_(head(), before, "without touching it")


def test_refusals(box):
    image = box.image("device.img", GIB)
    device = box.loop(image)
    refused(image, "is not a block device", "a regular file")
    refused(box.loop(box.image("small.img", 16 * MIB)), "are needed", "one that is too small")
    box.mkfs(device, "ext4")
    refused(device, "holds ext4", "one with a filesystem")
    point = box.mount(device, "mounted")
    refused(device, "is mounted on", "a mounted one")
    box.umount(point)
    output("wipefs", "--all", device)
    refused(device, "holds data near offset", "one with data that nobody knows")
    output("blkdiscard", "--zeroout", device)
    for offset in (77 * MIB + 12345, GIB - 1):
        with open(device, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"x", offset)
        refused(device, "holds data near offset", f"one with a single byte, at {offset}")
        output("blkdiscard", "--zeroout", device)
    held = os.open(device, os.O_RDWR | os.O_EXCL)
    refused(device, "is in use", "one that another program holds")
    os.close(held)
    # A DOS partition table with one partition: type 83 hex, from sector 2048, 4096 sectors.
    table = bytes(446) + struct.pack("<4BBBBBII", 0, 0, 0, 0, 0x83, 0, 0, 0, 2048, 4096)
    with open(device, "r+b") as file:
        file.write(table.ljust(510, b"\0") + b"\x55\xaa")
    refused(device, "holds dos|has partitions", "one with a partition table")


def main():
    need_root()
    box = Sandbox("selftest-bench")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    test_refusals(box)
    test_precopy(box)
    test_incremental(box)
    missing = [x for x in ("pgbackrest", "fio", "gnuplot") if not shutil.which(x)]
    if missing:
        skip(f"{', '.join(missing)} not installed (tools/install-deps --bench)")
        return
    test_figures(box, "directory")
    if not CAMPAIGN or s3.missing("ceph"):
        skip(s3.missing("ceph") or "repositories on S3: in a campaign only")
    else:
        test_figures(box, "s3")
    test_interrupted(box)


run(main)
