#!/usr/bin/env python3
"""Writes that PostgreSQL does not make, in a directory of a volume, until it is killed: files that
come and go, grow and are renamed (blocks change hands), O_DIRECT writes at random places, and now
and then an fstrim of the filesystem. On a full volume it begins again."""
import mmap
import os
import random
import subprocess
import sys

FILES, FILE_MAX, DIRECT_LEN = 60, 384 << 10, 16 << 20


def churn(directory, dice, buffer):
    path = os.path.join(directory, f"f{dice.randrange(FILES)}")
    if dice.random() < 0.2 and os.path.exists(path):
        os.unlink(path)
        return
    with open(path + ".new", "wb", buffering=0) as file:
        length = dice.randrange(1, FILE_MAX)
        at = dice.randrange(0, len(buffer) - length)
        file.write(buffer[at:at + length])
        if dice.random() < 0.2:
            os.fsync(file.fileno())
    os.rename(path + ".new", path)


def write_direct(fd, dice, page):
    page[:16] = b"%016x" % dice.getrandbits(60)
    for _ in range(8):
        os.pwrite(fd, page, dice.randrange(DIRECT_LEN // len(page)) * len(page))


def main(directory, mount, seed):
    dice = random.Random(int(seed))
    buffer = os.urandom(FILE_MAX * 2)
    page = mmap.mmap(-1, 4096)
    fd = os.open(os.path.join(directory, "direct"), os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    os.posix_fallocate(fd, 0, DIRECT_LEN)
    while True:
        try:
            churn(directory, dice, buffer)
            write_direct(fd, dice, page)
            if dice.random() < 0.001:
                subprocess.run(["fstrim", mount], check=False, stderr=subprocess.DEVNULL)
        except OSError as error:
            if error.errno != 28:  # ENOSPC
                raise
            for name in os.listdir(directory):
                if name.startswith("f"):
                    os.unlink(os.path.join(directory, name))


main(*sys.argv[1:])
