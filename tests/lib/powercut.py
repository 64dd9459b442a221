"""Power cuts for tests: disk images behind the simulator tests/sim/tool_powercut.c (its head says
how it works and why a cut is repeatable).

    power = PowerCut(box, {"pgdata": 512 * MIB, "state": 64 * MIB})   # or name: path of an image
    device = power.attach("pgdata")              # a loop device on it; mkfs, mount, use it
    power.mark("marked")                         # a line in the log, to find the place again
    power.cut_at(power.ops() + 100)              # or power.cut(), power.cut_at_flush(n)
    power.wait_cut(60)                           # from here on all I/O of the images is EIO
    ...                                          # kill what was running, unmount what was mounted
    power.stop()                                 # detaches the loop devices, ends the simulator
    images = power.recover("after", seed=7)      # {"pgdata": path, …}: what the disks hold now
    again = PowerCut(box, images)                # to go on under the next simulator, or
    device = box.loop(images["pgdata"])          # without one

A cut is a function of (log, operation, seed). One run can therefore be cut at each of its
operations afterwards: record it, stop(), then recover("x", at=op, seed=n) in a loop over
boundaries(). Seed 0 loses everything that was not flushed, 1 loses nothing, others lose a subset,
also torn writes. Print at and seed, and keep the sandbox (TIDEMARK_KEEP=1) to see the same images
again.
"""
import os
import re
import shutil
import struct
import subprocess

from sandbox import output, poll, process_gone
from tm import BUILD

TOOL = os.path.join(BUILD, "tests/sim/tool_powercut")
_RECORD = struct.Struct("<IIQQQ")  # struct op of tool_powercut.c
_WRITE, _MARK = 1, 4
_count = 0


class Op:
    """One line of the log: type is write, zero, flush or mark; text is a mark's."""

    def __init__(self, line):
        index, time, self.type, rest = (line.rstrip("\n").split(" ", 3) + [""])[:4]
        self.index, self.time_s, self.text, self.name = int(index), float(time), rest, None
        if self.type != "mark":
            self.name, offset, size = rest.rsplit(" ", 2)
            self.offset, self.size = int(offset), int(size)


class PowerCut:
    """The simulator with its images. It ends with the sandbox, or with stop()."""

    def __init__(self, box, images):
        """images: name → size in bytes (a blank disk) or path (copied, not changed)."""
        global _count
        _count += 1
        self.box, self.loops = box, []
        self.work = box.mkdir(f"powercut{_count}")
        self.mount = box.mkdir(f"powercut{_count}.fuse")
        base, live = (box.mkdir(os.path.join(self.work, part)) for part in ("base", "live"))
        for name, source in images.items():
            for directory in (base, live):
                path = os.path.join(directory, name)
                if isinstance(source, int):
                    with open(path, "wb") as file:
                        file.truncate(source)
                else:
                    output("cp", "--sparse=always", "--reflink=auto", source, path)
        self.process = subprocess.Popen([TOOL, "serve", self.work, self.mount],
                                        stdin=subprocess.DEVNULL)
        box.keep_until_unmounted(self.process.pid)
        poll(self._is_mounted, 20, "the power cut simulator", every_s=0.01)

    def _is_mounted(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"powercut: exit {self.process.returncode}")
        return os.path.ismount(self.mount)

    def path(self, name):
        """The image as a file of the simulator."""
        return os.path.join(self.mount, name)

    def attach(self, name, direct_io=True):
        """A loop device on the image; stop() detaches it."""
        device = output("losetup", "-f", "--show", f"--direct-io={'on' if direct_io else 'off'}",
                        self.path(name)).strip()
        self.loops.append(device)
        return device

    # --- control ----------------------------------------------------------------------------------
    def _control(self, text):
        with open(self.path(".control"), "wb", buffering=0) as file:
            file.write(text.encode())

    def status(self):
        """{"ops": n, "flushes": n, "cut": operation or -1}"""
        with open(self.path(".control"), "rb", buffering=0) as file:
            fields = file.read(256).decode().split()
        return {key: int(value) for key, value in (field.split("=") for field in fields)}

    def ops(self):
        return self.status()["ops"]

    def mark(self, text):
        self._control("mark " + text)

    def cut(self):
        self._control("cut")

    def cut_at(self, op):
        """The power goes before operation number op (counted from the start, marks too)."""
        self._control(f"cut-at {op}")

    def cut_at_flush(self, number):
        """The number-th flush since the start (from 1) is the first operation that fails."""
        self._control(f"cut-at-flush {number}")

    def is_cut(self):
        return self.status()["cut"] >= 0

    def wait_cut(self, timeout_s=60):
        poll(self.is_cut, timeout_s, "the power cut", every_s=0.02)

    # --- afterwards -------------------------------------------------------------------------------
    def stop(self):
        """Ends the simulator; whatever is mounted from its loop devices must be unmounted before.
        The log and the images stay for recover()."""
        for device in self.loops:
            subprocess.run(["losetup", "-d", device], stderr=subprocess.DEVNULL, check=False)
        self.loops = []
        if os.path.ismount(self.mount):
            poll(lambda: subprocess.run(["umount", self.mount], stderr=subprocess.DEVNULL,
                                        check=False).returncode == 0, 20, "unmount " + self.mount)
        poll(lambda: self.process.poll() is not None or process_gone(self.process.pid), 20,
             "the end of the power cut simulator")

    def log(self):
        return [Op(line) for line in output(TOOL, "log", self.work).splitlines()]

    def find(self, name, pattern):
        """[(operation, match)] of the writes to image `name` whose data the bytes pattern matches:
        where a small file was written, to find a moment again without a mark."""
        number = sorted(os.listdir(os.path.join(self.work, "base"))).index(name)
        found, index = [], 0
        with open(os.path.join(self.work, "log"), "rb") as file:
            while len(head := file.read(_RECORD.size)) == _RECORD.size:
                kind, image, _, size, _ = _RECORD.unpack(head)
                data = file.read(size) if kind in (_WRITE, _MARK) else b""
                match = re.search(pattern, data) if kind == _WRITE and image == number else None
                if match:
                    found.append((index, match))
                index += 1
        return found

    def boundaries(self):
        """Operations before which a cut makes a difference in kind: each flush and each mark, and
        the operation after it, and the end of the log."""
        ops, found = self.log(), set()
        for op in ops:
            if op.type in ("flush", "mark"):
                found |= {op.index, op.index + 1}
        return sorted(found | {len(ops)})

    def pending(self, at):
        """Whether a cut before operation `at` finds writes that no flush covers: if not, all seeds
        give the same images."""
        waiting = set()
        for op in self.log()[:at]:
            if op.type in ("write", "zero"):
                waiting.add(op.name)
            elif op.type == "flush":
                waiting.discard(op.name)
        return bool(waiting)

    def recover(self, name, at=None, seed=0, torn=False):
        """Images after a cut before operation `at` (default: where the log ends), as files in the
        new directory <sandbox>/<name>. torn: every seed but 0 and 1 tears writes at 512 bytes.
        Returns {image name: path}."""
        directory = self.box.join(name)
        shutil.rmtree(directory, ignore_errors=True)
        output(TOOL, "cut", self.work, directory, f"--seed={seed}",
               *([] if at is None else [f"--at={at}"]), *(["--torn"] if torn else []))
        return {image: os.path.join(directory, image) for image in os.listdir(directory)}

    def remove(self):
        """Frees the space of images and log, after stop()."""
        shutil.rmtree(self.work, ignore_errors=True)
