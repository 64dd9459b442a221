"""What is restored onto: a loop device of ours, or a device that the user names and that holds
nothing."""
import os
import re
import stat
import subprocess

import measure
import tm
from tm import MIB

SAMPLES, SAMPLE_LEN = 64, 64 << 10


class Refused(Exception):
    """The device is not touched. text and what to do about it."""

    def __init__(self, text, hint):
        super().__init__(text)
        self.hint = hint


class LoopTarget:
    def __init__(self, size):
        self.size, self.device = size, None

    def describe(self):
        return "onto a loop device"

    def figures(self):
        """Of the device by itself: those of the rounds are enough."""
        return {}

    def check(self):
        """Nobody else's data can be on it."""

    def open(self, box):
        """The image is written through before anything is timed: a file's first blocks cost."""
        self.device = box.loop(box.image("target.img", self.size, fallocate=True))
        measure.fill(self.device, self.size)
        return self.device


def _sys(number, *parts):
    return os.path.join(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}", *parts)


def check_use(path, number):
    """Mounted, swap, partitioned, or held by dm, md, LVM, another program."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            fields = line.split()
            if fields[2] == f"{os.major(number)}:{os.minor(number)}":
                raise Refused(f"'{path}' is mounted on '{fields[4]}'", "unmount it first")
    if [x for x in os.listdir(_sys(number)) if os.path.exists(_sys(number, x, "partition"))]:
        raise Refused(f"'{path}' has partitions", "name one of them, or another device")
    holders = _sys(number, "holders")
    if os.path.isdir(holders) and os.listdir(holders):
        raise Refused(f"'{path}' is held by {', '.join(os.listdir(holders))}",
                      "dissolve what is built on it")
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL))
    except OSError as error:
        raise Refused(f"'{path}' is in use: {error.strerror}",
                      "swapoff, dmsetup or lsof may say by whom") from None


def check_signatures(path):
    """libblkid's opinion, through wipefs: file systems, partition tables, RAID, LVM, swap."""
    text = tm.output("wipefs", "--no-act", "--parsable", path)
    found = [line.split(",")[3] for line in text.splitlines() if not line.startswith("#")]
    if found:
        raise Refused(f"'{path}' holds {', '.join(found)}",
                      f"if nothing on it is wanted: wipefs --all {path}")


def check_bytes(path, size, written):
    """Not everything has a signature: a raw device of a database has none. All that will be
    written is read, and samples of what lies behind it, for nobody's data ends exactly there."""
    behind = [written + (size - SAMPLE_LEN - written) * i // (SAMPLES - 1) // 4096 * 4096
              for i in range(SAMPLES)] if size > written + SAMPLE_LEN else []
    with open(path, "rb", buffering=0) as file:
        for offset, want in [(at, MIB) for at in range(0, written, MIB)] + [
                (at, SAMPLE_LEN) for at in behind]:
            file.seek(offset)
            if file.read(want).strip(b"\0"):
                raise Refused(f"'{path}' holds data near offset {offset}",
                              f"if nothing on it is wanted: blkdiscard --zeroout {path}")


class DeviceTarget:
    """path is checked when the benchmark begins and again before the first write."""

    def __init__(self, path, size):
        self.device, self.size = path, size

    def check(self):
        path = self.device
        try:
            found = os.stat(path)
        except OSError as error:
            raise Refused(f"'{path}': {error.strerror}", "name a block device") from None
        if not stat.S_ISBLK(found.st_mode):
            raise Refused(f"'{path}' is not a block device", "name a block device")
        check_use(path, found.st_rdev)
        with open(_sys(found.st_rdev, "size"), encoding="ascii") as file:
            have = int(file.read()) * 512
        if have < self.size:
            raise Refused(f"'{path}' has {have / MIB:.0f} MiB, {self.size / MIB:.0f} MiB are "
                          "needed", "give it a larger device, or SIZE= a smaller number")
        check_signatures(path)
        check_bytes(path, have, self.size)

    def open(self, box):
        self.check()
        box.before_clean.append(lambda: self.clear(box))
        measure.fill(self.device, self.size)
        return self.device

    def clear(self, box):
        """It is given back as it came: without data."""
        for pid in tm.processes_below(box.path):
            tm.kill_pid(pid)
        for point in mounted_from(self.device):
            subprocess.run(["umount", point], check=False)
        subprocess.run(["blkdiscard", "--zeroout", "--length", str(self.size), self.device],
                       check=False, stderr=subprocess.DEVNULL)

    def describe(self):
        """Model and kernel name, for the report."""
        number = os.stat(self.device).st_rdev
        for name in ("device/model", "../device/model", "loop/backing_file"):
            try:
                with open(_sys(number, name), encoding="utf-8") as file:
                    text = re.sub(r"\s+", " ", file.read()).strip()
                return "onto a loop device" if name.startswith("loop") else f"onto {text}"
            except OSError:
                continue
        return "onto a device of unknown model"

    def figures(self):
        """GB/s by fio: {"write, 8 at a time": …}."""
        size = min(self.size, 4 << 30)
        return {f"{kind}, {depth} at a time": round(
            size / 1e9 / measure.fio(self.device, kind, size, depth), 3)
            for kind in ("write", "read") for depth in (1, 8, 32)}


def mounted_from(device):
    number = os.stat(device).st_rdev
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return [line.split()[4] for line in file
                if line.split()[2] == f"{os.major(number)}:{os.minor(number)}"][::-1]
