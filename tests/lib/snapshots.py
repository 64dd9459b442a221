"""What the tests of snapshots and of `verify` look at: records, images and chunk maps of a
repository, through the reader that shares no code with the agent; freezes; running jobs."""
import glob
import json
import os
import subprocess
import sys
import threading
import time

import tidemark_reader
import tm

HEADER_LEN = 192  # io/FORMAT.md: every object begins with it
READER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tidemark_reader.py")


def repository(node):
    """The directory of a file:// repository."""
    return node.repository.removeprefix("file://")


def record_paths(node):
    return sorted(glob.glob(repository(node) + "/snapshot/*/*/*.json"))


def record_path(node, tag):
    for path in record_paths(node):
        if read_record(path)["tag"] == tag:
            return path
    return None


def read_record(path):
    with open(path, "rb") as file:
        return json.loads(file.read()[HEADER_LEN:])


def record(node, tag):
    path = record_path(node, tag)
    if not path:
        raise RuntimeError(f"no record has tag {tag}")
    return read_record(path)


def tags(node):
    return sorted(read_record(path)["tag"] for path in record_paths(node))


def image(node, tag, volume="pgdata", check="none"):
    """The volume of a snapshot as (file, map): a sparse file, and a line a chunk ("zero", "free" or
    its digest)."""
    path = node.box.join(f"{tag}-{volume}.img")
    lines = path + ".map"
    done = subprocess.run([sys.executable, READER, repository(node), tag, volume, path,
                           f"--check={check}", f"--map={lines}"], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"tidemark_reader.py: {done.stdout}")
    with open(lines, encoding="ascii") as file:
        return path, [line.split()[0] for line in file]


def chunk_map(node, tag, volume="pgdata"):
    """The second half of image() alone, without reading a chunk."""
    source = tidemark_reader.Repository(repository(node))
    found = tidemark_reader.Volume(source, tidemark_reader.find_record(source, tag), volume)
    names = {tidemark_reader.ZERO: "zero", tidemark_reader.FREE: "free"}
    return [names.get(entry[3] >> 24) or entry[0].hex()
            for index in range(len(found.places)) for entry in found.region(index)[1]]


def differences(path, other, chunk_map, chunk_size):
    """Chunks that are not free and differ between two images."""
    found = []
    with open(path, "rb") as left, open(other, "rb") as right:
        for index, entry in enumerate(chunk_map):
            if entry == "free":
                continue
            left.seek(index * chunk_size)
            right.seek(index * chunk_size)
            if left.read(chunk_size) != right.read(chunk_size):
                found.append(index)
    return found


def changed_chunks(before, after):
    """Chunks that an incremental has to store: data that is not the parent's at that place."""
    return [i for i, entry in enumerate(after)
            if entry not in ("zero", "free") and (i >= len(before) or before[i] != entry)]


def copy_device(device, path):
    subprocess.run(["dd", f"if={device}", f"of={path}", "bs=1M", "iflag=direct", "conv=sparse",
                    "status=none"], check=True)


class Heartbeat:
    """A thread that writes and syncs a small file on a mounted volume all the time: it hangs while
    the volume is frozen, so it sees freezes from the outside."""

    def __init__(self, mount):
        self.path = os.path.join(mount, "tidemark-heartbeat")
        self.started = self.finished = 0  # writes; one is under way when they differ
        self.since = time.monotonic()
        self.longest_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self):
        with open(self.path, "wb", buffering=0) as file:
            while not self._stop.is_set():
                self.since = time.monotonic()
                self.started += 1
                os.pwrite(file.fileno(), b"%d" % self.started, 0)
                os.fdatasync(file.fileno())
                self.finished = self.started
                self.longest_s = max(self.longest_s, time.monotonic() - self.since)
                self._stop.wait(0.02)

    def blocked_s(self):
        """How long the write under way has taken so far."""
        return time.monotonic() - self.since if self.started != self.finished else 0.0

    def wait_frozen(self, timeout_s=60, blocked_s=0.3):
        """Until a write hangs; returns its number: the same number later means that it was frozen
        all the time in between."""
        tm.poll(lambda: self.blocked_s() > blocked_s, timeout_s, "a frozen volume", 0.01)
        return self.started

    def still(self, number):
        return self.started == number and self.finished != number

    def stop(self):
        self._stop.set()
        self._thread.join(60)
        os.unlink(self.path)


class Running:
    """`tidemark ARGS` in the background, and the job that it started."""

    def __init__(self, node, *args):
        self.node, self.earlier = node, set(job_directories(node))
        self.log = node.box.join("log", f"cli-{os.urandom(3).hex()}.log")
        environ = {k: v for k, v in os.environ.items() if not k.startswith("TIDEMARK_")}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [os.path.join(node.programs, "tidemark"), *args], stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT,
                env={**environ, "TIDEMARK_CONFIG": node.conf})

    def wait(self, timeout_s=120):
        """Result(status, out, err): both texts are everything it printed."""
        self.process.wait(timeout_s)
        with open(self.log, encoding="utf-8", errors="replace") as log:
            text = log.read()
        return tm.Result(self.process.returncode, text, text)

    def job(self):
        """The job's directory; None until it is there."""
        new = set(job_directories(self.node)) - self.earlier
        return min(new) if new else None

    def journal(self):
        try:
            with open(f"{self.job()}/journal.json", encoding="utf-8") as file:
                return json.load(file)
        except OSError:
            return {}

    def wait_phase(self, phase, timeout_s=60):
        """Until the job is in this phase; an error when it ended before."""
        def reached():
            now = self.journal()
            if now.get("state") in ("failed", "cancelled", "complete"):
                raise RuntimeError(f"no phase '{phase}': the job ended as {now}")
            return now.get("phase") == phase
        tm.poll(reached, timeout_s, f"phase '{phase}' of {self.job()}", 0.005)

    def pid(self, timeout_s=30):
        """Process id of the job."""
        def find():
            job = self.job()
            for path in glob.glob("/proc/[0-9]*/cmdline") if job else []:
                try:
                    with open(path, "rb") as file:
                        words = file.read().split(b"\0")
                except OSError:
                    continue
                if words[0].endswith(b"tidemark-agent") and words[1:2] == [b"job"] \
                        and job.encode() in words:
                    return int(path.split("/")[2])
            return None
        return tm.poll(find, timeout_s, "a running job", 0.01)


def job_directories(node):
    return glob.glob(node.state_dir + "/jobs/*")


def record_by_age(node):
    """All records, oldest instant first."""
    return sorted((read_record(path) for path in record_paths(node)),
                  key=lambda r: (r["captured_s"], r["committed_s"]))
