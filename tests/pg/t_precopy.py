#!/usr/bin/env python3
# check: build=release campaign=asan timeout=600
"""Provider precopy: a volume is copied while pgbench, DDL, file churn, O_DIRECT writes and fstrim
go on. Exact compare: at the captured instant, still frozen, the agent copies the whole device for
us; every chunk of the image must be the device's, or be one that was never copied and never marked.
Then the restored server starts, with every acknowledged commit and without a fault for amcheck.

Negative controls show that the compare and the checks of the agent can fail: marks that are lost,
writes that go unseen, a guardian that is killed, an agent that is stopped while frozen, a device
that keeps no statistics."""
import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story  # noqa: E402
import snapshots as snap  # noqa: E402
import tm  # noqa: E402

CHUNK = 32 * KIB
CAMPAIGN = os.environ.get("TIDEMARK_CAMPAIGN") == "1"
LOAD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "precopy_load.py")
DDL = """create table ddl_:client_id as select i, md5(i::text) from generate_series(1, 3000) i;
create index on ddl_:client_id (md5);
drop table ddl_:client_id;
"""


class Load:
    """Everything at once; the files on the data volume, so that WAL has room on its own."""

    def __init__(self, story, dice):
        server = story.server
        self.parts = [server.pgbench(),
                      server.pgbench("-c", "1", "-f", story.box.write("ddl.sql", DDL))]
        mount = story.node.volumes[0].mount
        os.makedirs(mount + "/churn", exist_ok=True)
        self.writer = subprocess.Popen([sys.executable, LOAD, mount + "/churn", mount,
                                        str(dice.getrandbits(30))], stdin=subprocess.DEVNULL)
        self.parts[0].wait_transactions(50)

    def stop(self):
        ok(all(part.process.poll() is None for part in self.parts) and self.writer.poll() is None,
           "the load ran all the time")
        for part in self.parts:
            part.stop()
        kill_pid(self.writer.pid)
        self.writer.wait()


class LiveStory(Story):
    """A node whose volumes are captured live, by the default provider; the agent keeps the frozen
    devices in self.kept."""

    def __init__(self, box, fs, name, **options):
        super().__init__(box, name, fs, provider=None, size=512 * MIB,
                         settings={"max_wal_size": "96MB"}, **options)
        self.kept = box.mkdir("kept-" + name)
        # Small memory makes the last pass small: several passes, on any machine.
        self.node.sections["tidemark"]["memory_max"] = "64MiB"
        self.node.write_conf()

    def begin(self, tag=None):
        self.node.start(agent=False)
        self.server.pgbench_init(4)
        self.server.psql("create table orders (id int primary key, amount int);\n"
                         "insert into orders select i, i % 97 from generate_series(1, 5000) i")
        self.ledger = Ledger(self.server).create()
        return self

    def agent(self, **environ):
        self.node.agent.stop()
        for name in os.listdir(self.kept):
            os.unlink(os.path.join(self.kept, name))
        self.node.agent.start(TIDEMARK_TEST_PRECOPY_KEEP=self.kept, **environ)

    def slow(self):
        """Passes take seconds from now on, whatever the disk can do."""
        self.node.sections["tidemark"]["rate_limit"] = "48MiB"
        self.node.write_conf()

    def touched(self, volume, count):
        """Per chunk, whether the agent claims to have read it: it was used and not WAL, or marked
        later."""
        spans = {"used": [], "wal": [], "changed": []}
        with open(f"{self.kept}/{volume}.extents", encoding="ascii") as file:
            for line in file:
                kind, offset, length = line.split()
                spans[kind].append((int(offset), int(offset) + int(length)))
        found = bytearray(count)
        for start, end in minus(spans["used"], spans["wal"]) + spans["changed"]:
            for chunk in range(start // CHUNK, (end - 1) // CHUNK + 1):
                found[chunk] = 1
        return found

    def compare(self, tag):
        """Chunks of the image that are not the frozen device's; and those that nobody looked at
        but that hold something."""
        wrong, invented, total = [], [], 0
        for volume in self.node.volumes:
            image, chunks = snap.image(self.node, tag, volume.name)
            looked = self.touched(volume.name, len(chunks))
            kept = f"{self.kept}/{volume.name}.img"
            seen = [c if looked[i] else "free" for i, c in enumerate(chunks)]
            wrong += [(volume.name, i) for i in snap.differences(image, kept, seen, CHUNK)]
            wrong += [(volume.name, i) for i, c in enumerate(chunks) if looked[i] and c == "free"]
            invented += [i for i, c in enumerate(chunks) if not looked[i] and c != "free"]
            total += sum(looked)
            os.unlink(image)
        return wrong, invented, total


def minus(spans, cuts):
    """Both sorted, neither overlapping."""
    rest = []
    for start, end in spans:
        for low, high in cuts:
            if high <= start or low >= end:
                continue
            if low > start:
                rest.append((start, low))
            start = max(start, min(high, end))
        if start < end:
            rest.append((start, end))
    return rest


def snapshot(story, tag):
    done = story.node.cli("snapshot", "--tag", tag)
    if not is_status(done, 0, f"{tag}: a live snapshot under load"):
        tm.diag(done.err)
    return snap.record(story.node, tag)


def test_exact(story, fs, rounds):
    for number in range(rounds):
        tag = f"{fs}-{number}"
        story.agent()
        story.ledger.wait(5)
        record = snapshot(story, tag)
        story.bounds = story.ledger.bounds(record["postgresql"]["tag_lsn"])
        wrong, invented, total = story.compare(tag)
        is_(wrong[:10], [], f"{tag}: {total} chunks are those of the frozen device")
        is_(invented[:10], [], f"{tag}: what was never looked at is free in the image")
        passes = record["precopy"]["passes"]
        diag(f"{tag}: passes {[p >> 10 for p in passes]} KiB")
        ok(1 <= len(passes) <= 12 and passes[-1] <= 16 * MIB,
           f"{tag}: the last of {len(passes)} passes fits into the budget")
        ok(0 < record["freeze_ns"] <= record["precopy"]["freeze_sum_ns"],
           f"{tag}: the record says how long writes stood still")
        is_({v["provider"] for v in record["volumes"]}, {"precopy"}, f"{tag}: and how it was taken")
    story.ledger.wait(5)
    return tag


def refused(story, status, text, what):
    """The snapshot fails like that, and leaves nothing that is visible or frozen."""
    before = snap.tags(story.node)
    done = story.node.cli("snapshot", "--tag", "refused")
    is_status(done, status, f"{what}: exit {status}")
    like(done.err, text, f"{what}: and says it")
    is_(snap.tags(story.node), before, f"{what}: no snapshot is there")


def test_lost_marks(story):
    """The compare can fail: marks that are dropped, which no counter shows."""
    story.agent(TIDEMARK_TEST_MARKS_DROP="1000" if CAMPAIGN else "30")
    snapshot(story, "lost-marks")
    wrong, _invented, total = story.compare("lost-marks")
    ok(wrong, f"the compare finds {len(wrong)} of {total} chunks wrong when marks are lost")


def test_unseen(story):
    """Writes that go past the tracker: the kernel's counters show it."""
    story.agent(TIDEMARK_TEST_MARKS_HIDE="500")
    refused(story, "refused", "writes went unseen|a write of our own was not", "unseen writes")


def test_no_statistics(story):
    device = os.path.basename(story.node.volumes[0].device)
    story.agent()
    switch = f"/sys/block/{device}/queue/iostats"
    with open(switch, "w", encoding="ascii") as file:
        file.write("0")
    refused(story, "refused", "was not counted by the kernel on", "no statistics")
    with open(switch, "w", encoding="ascii") as file:
        file.write("1")


def guardian_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        for child in file.read().split():
            with open(f"/proc/{child}/comm", encoding="ascii") as comm:
                if comm.read().startswith("tidemark-guard"):
                    return int(child)
    return None


def test_guardian(story):
    """Without its guardian the agent freezes nothing: it is killed in pass 0."""
    story.agent()
    running = snap.Running(story.node, "snapshot", "--tag", "no-guardian")
    pid = running.pid()
    poll(lambda: os.path.exists(f"{story.kept}/{story.node.volumes[0].name}.extents"), 120,
         "pass 0", 0.01)
    kill_pid(guardian_of(pid))
    done = running.wait()
    is_status(done, "device", "the guardian is killed: exit 11")
    like(done.err, "guardian of the freeze has gone", "and it is said")
    story.ledger.wait(5)


def test_stopped(story):
    """The agent is stopped while everything is frozen: the guardian thaws, and what the agent does
    later does not count."""
    story.node.sections["tidemark"]["freeze_deadline"] = "1s"
    story.node.write_conf()
    story.agent()
    running = snap.Running(story.node, "snapshot", "--tag", "stopped")
    pid = running.pid()
    kept = f"{story.kept}/{story.node.volumes[0].name}.img"
    poll(lambda: os.path.exists(kept), 120, "the copy of the frozen device", 0.001)
    os.kill(pid, signal.SIGSTOP)
    story.ledger.wait(5)
    ok(os.stat(kept).st_size < 512 * MIB, "the agent is stopped while frozen: commits go on")
    os.kill(pid, signal.SIGCONT)
    done = running.wait()
    is_status(done, "refused", "and its snapshot is refused")
    like(done.err, "the guardian thawed after 1000 ms", "with the reason")
    story.node.sections["tidemark"]["freeze_deadline"] = "60s"
    story.node.write_conf()


def test_busy(story):
    """More is written between two barriers than a freeze may read, or freezing takes too long."""
    story.node.sections["tidemark"]["freeze_max"] = "20ms"
    story.node.write_conf()
    story.agent()
    writers = [subprocess.Popen(
        ["sh", "-c", "while dd if=/dev/zero of="
         f"{story.node.volumes[0].mount}/churn/busy{number} bs=1M count=40 oflag=direct"
         " conv=notrunc status=none; do :; done"], stdin=subprocess.DEVNULL) for number in range(2)]
    refused(story, "busy", r"after 12 passes more than \d+ KiB.*freeze_max", "too many writes")
    for writer in writers:
        kill_pid(writer.pid)
        writer.wait()


def main():
    box = need_root() or Sandbox("precopy")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        skip_all("this kernel has no BTF")
    dice, _seed = seeded()
    rounds = 20 if CAMPAIGN else 1
    for fs in ("ext4", "xfs"):
        story = LiveStory(box, fs, fs, wal=fs == "xfs").begin()
        load = Load(story, dice)
        story.ledger.start()
        tag = test_exact(story, fs, rounds)
        if fs == "ext4" or CAMPAIGN:
            test_lost_marks(story)
            test_unseen(story)
            test_no_statistics(story)
            test_stopped(story)
            story.slow()
            test_guardian(story)
            test_busy(story)
        story.ledger.stop()
        load.stop()
        story.server.psql("drop table orders")
        story.restore(tag=tag)
        story.check_tag(f"{fs}, restored")
        is_([n for v in story.node.volumes for n in os.listdir(v.mount) if n.startswith(".")], [],
            f"{fs}: the start-up probe leaves no file")
        story.end()


if __name__ == "__main__":
    run(main)
