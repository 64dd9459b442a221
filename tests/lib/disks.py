"""Volumes on other disks than a loop device over a file: zram, which takes bios and has no queue of
requests, and a loop device with writes in flight at the worst of times (tests/sim/tool_slow.c)."""
import os
import shutil
import subprocess

from sandbox import ZRAM_CONTROL, Volume, poll
from tm import BUILD


def has_zram():
    return os.path.exists(ZRAM_CONTROL + "/hot_add")


def _mounted(box, volume):
    box.mkfs(volume.device, volume.fs)
    volume.mount = box.mount(volume.device, volume.name)
    shutil.chown(volume.mount, "postgres", "postgres")
    return volume


def zram_volume(box, name, size, fs="ext4"):
    """Like Sandbox.volume(). Its image is an empty file of the same size, which nobody reads."""
    with open(ZRAM_CONTROL + "/hot_add", encoding="ascii") as file:
        number = int(file.read())
    device, system = f"/dev/zram{number}", f"/sys/block/zram{number}"
    box.keep_zram(device)
    with open(system + "/disksize", "w", encoding="ascii") as file:
        file.write(str(size))
    if not os.path.exists(device):  # no udev
        with open(system + "/dev", encoding="ascii") as file:
            major, minor = map(int, file.read().split(":"))
        os.mknod(device, 0o60600, os.makedev(major, minor))
    return _mounted(box, Volume(name, box.image(name + ".img", size), device, fs, None))


class SlowDisk:
    """A volume where a write that begins with b"held" waits until somebody has read what it
    replaces, from delay(ms) on that long at the most."""

    def __init__(self, box, name, size, fs="ext4"):
        image = box.image(name + ".img", size)
        self.directory = box.mkdir(name + ".fuse")
        process = subprocess.Popen([os.path.join(BUILD, "tests/sim/tool_slow"), image,
                                    self.directory], stdin=subprocess.DEVNULL)
        box.keep_until_unmounted(process.pid)
        poll(lambda: os.path.ismount(self.directory), 20, "the slow disk", every_s=0.01)
        self.volume = _mounted(box, Volume(name, image, box.loop(self.directory + "/disk"), fs,
                                           None))

    def delay(self, most_ms):
        with open(self.directory + "/delay", "w", encoding="ascii") as file:
            file.write(str(most_ms))


__all__ = ["SlowDisk", "has_zram", "zram_volume"]
