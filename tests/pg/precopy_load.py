#!/usr/bin/env python3
"""Writes that PostgreSQL does not make, until it is killed.

    precopy_load.py churn DIRECTORY MOUNT SEED   files come and go, grow and are renamed (blocks
                         change hands), O_DIRECT writes at random places, and now and then an fstrim
                         of the filesystem. On a full volume it begins again.
    precopy_load.py segments PG_WAL DIRECTORY SEED   links and, where there are, clones of the
                         server's WAL segments come and go
    precopy_load.py flight FILE COUNT SEED       O_DIRECT writes of b"held…" at random places of a
                         file that is there, COUNT at a time
"""
import fcntl
import mmap
import os
import random
import subprocess
import sys
import threading
import time

FICLONE = 0x40049409
FILES, FILE_MAX, DIRECT_LEN, PACE_S = 60, 384 << 10, 16 << 20, 0.03


def change_file(directory, dice, buffer):
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


def write_direct(fd, dice, page, size, times=1):
    page[:16] = b"held%012x" % dice.getrandbits(48)
    for _ in range(times):
        os.pwrite(fd, page, dice.randrange(size // len(page)) * len(page))


def churn(directory, mount, seed):
    dice = random.Random(int(seed))
    buffer = os.urandom(FILE_MAX * 2)
    page = mmap.mmap(-1, 4096)
    fd = os.open(os.path.join(directory, "direct"), os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    os.posix_fallocate(fd, 0, DIRECT_LEN)
    while True:
        try:
            change_file(directory, dice, buffer)
            write_direct(fd, dice, page, DIRECT_LEN, 3)
            time.sleep(dice.random() * PACE_S)  # a disk in memory would take a GB a second
            if dice.random() < 0.001:
                subprocess.run(["fstrim", mount], check=False, stderr=subprocess.DEVNULL)
        except OSError as error:
            if error.errno != 28:  # ENOSPC
                raise
            for name in os.listdir(directory):
                if name.startswith("f"):
                    os.unlink(os.path.join(directory, name))


def clone(source, path):
    with open(source, "rb") as old, open(path, "wb") as new:
        fcntl.ioctl(new, FICLONE, old.fileno())


def segments(pg_wal, directory, seed):
    dice = random.Random(int(seed))
    while True:
        time.sleep(dice.random() / 2)
        path = os.path.join(directory, f"s{dice.randrange(2)}")
        source = os.path.join(pg_wal, dice.choice(
            [n for n in os.listdir(pg_wal) if len(n) == 24 and "FFFF" not in n[8:16]]))
        try:
            if os.path.exists(path):
                os.unlink(path)
            else:
                dice.choice((os.link, clone))(source, path)
        except OSError:  # recycled meanwhile; ext4 has no clones
            continue


def flight(path, count, seed):
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    size = os.fstat(fd).st_size

    def write(number):
        dice, page = random.Random(int(seed) + number), mmap.mmap(-1, 4096)
        while True:
            write_direct(fd, dice, page, size)
    for number in range(int(count)):
        threading.Thread(target=write, args=(number,)).start()


{"churn": churn, "flight": flight, "segments": segments}[sys.argv[1]](*sys.argv[2:])
