#!/usr/bin/env python3
# check: build=release timeout=300
"""A power cut at every operation of device_mark() and device_commit_head(), torn at 512 bytes too.
While marking, a filesystem that can still be mounted is the old one, whole. While committing, one
that can be mounted is the new one, whole. After either has returned, nothing is in doubt."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
from powercut import PowerCut  # noqa: E402

TOOL = os.path.join(BUILD, "tests/sim/tool_device")
MKFS = {"ext4": (), "ext4 1k": ("-b", "1024"), "ext4 without checksums": ("-O", "^metadata_csum"),
        "xfs": ()}


def fs_type(kind):
    return kind.split()[0]


def make_volume(box, kind):
    """An unmounted image with a file in it."""
    image = box.image("original.img", (320 if kind == "xfs" else 24) * MIB)
    device = box.loop(image)
    box.mkfs(device, fs_type(kind), *MKFS[kind])
    point = box.mount(device, "original")
    with open(os.path.join(point, "file"), "wb") as file:
        file.write(b"data" * 50000)
    box.umount(point)
    box.unloop(device)
    return image


def is_whole(box, device, kind):
    """None when it cannot be mounted, else whether it is whole: its file, a new file, fsck."""
    point = box.mkdir("check")
    if subprocess.run(["mount", "-t", fs_type(kind), device, point], stderr=subprocess.DEVNULL,
                      check=False).returncode != 0:
        return None
    try:
        with open(os.path.join(point, "file"), "rb") as file:
            good = file.read() == b"data" * 50000
        with open(os.path.join(point, "new"), "wb") as file:
            file.write(b"x" * 100000)
            os.fsync(file.fileno())
    except OSError:
        good = False
    box.umount(point)
    fsck = ("xfs_repair", "-n") if kind == "xfs" else ("e2fsck", "-fn")
    return good and subprocess.run([*fsck, device], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, check=False).returncode == 0


def state(box, image, kind):
    """(marker, is_whole) of an image after a cut."""
    device = box.loop(image)
    try:
        marker = output(TOOL, "show", device).strip()
        return marker, is_whole(box, device, kind)
    finally:
        box.unloop(device)


def walk(box, power, kind, seeds, check, name):
    """check(marker, whole) for the cut before each operation, for each seed."""
    bad, seen, tried = [], set(), 0
    for at in range(power.ops_end + 1):
        for seed in seeds if power.pending(at) else [0]:
            images = power.recover("r", at=at, seed=seed, torn=True)
            result = state(box, images["disk"], kind)
            seen.add(result)
            tried += 1
            if not check(*result):
                bad.append((at, seed, result))
    diag(f"{name}: {tried} cuts, states {sorted(map(str, seen))}")
    is_(bad, [], f"{name}: {tried} cuts")
    return seen


def run_tool(box, image, *args):
    power = PowerCut(box, {"disk": image})
    device = power.attach("disk")
    output(TOOL, args[0], device, *args[1:])
    power.stop()
    power.ops_end = len(power.log())
    return power


def test_kind(box, kind, random):
    seeds = [0, 1] + [random.randrange(2, 1 << 30) for _ in range(60 if CAMPAIGN else 12)]
    image = make_volume(box, kind)
    power = run_tool(box, image, "mark")
    seen = walk(box, power, kind, seeds, lambda _, whole: whole is not False, f"{kind}: mark")
    ok(("none", True) in seen and ("marked", None) in seen, f"{kind}: before and after are seen")
    marked = power.recover("marked", seed=0)["disk"]
    is_(state(box, marked, kind), ("marked", None), f"{kind}: marked when it has returned")
    power.remove()

    # The restore: everything but the head, then the head.
    head = box.join("head")
    with open(image, "rb") as source, open(marked, "r+b") as target, open(head, "wb") as file:
        file.write(source.read(4096))
        target.seek(4096)
        target.write(source.read())
    power = run_tool(box, marked, "commit", head)
    seen = walk(box, power, kind, seeds, lambda _, whole: whole is not False, f"{kind}: commit")
    ok(("marked", None) in seen and ("none", True) in seen, f"{kind}: before and after are seen")
    done = power.recover("done", seed=0)["disk"]
    is_(state(box, done, kind), ("none", True), f"{kind}: whole when it has returned")
    power.remove()


def main():
    need_root()
    if not os.path.exists("/dev/fuse"):
        skip_all("no /dev/fuse")
    box = Sandbox("devicecut")
    random, _ = seeded()
    for kind in MKFS if CAMPAIGN else ("ext4", "ext4 without checksums", "xfs"):
        test_kind(box, kind, random)


run(main)
