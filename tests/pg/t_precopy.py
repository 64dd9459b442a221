#!/usr/bin/env python3
# check: build=release campaign=asan timeout=900
"""Provider precopy: a volume is copied while pgbench, DDL, file churn, O_DIRECT writes and fstrim
go on, on loop devices and on zram. Exact compare: at the captured instant, still frozen, the agent
copies the whole device for us; every chunk of the image must be the device's, or be one that was
never copied and never marked. Then the restored server starts, with every acknowledged commit and
without a fault for amcheck.

Negative controls show that the compare and the checks of the agent can fail: marks that are lost, a
pass without a barrier, a map that is believed against a mark; writes that go unseen, a guardian
that is killed, an agent that is stopped while frozen, a device that keeps no statistics. And what a
host can lack is named.

A campaign takes TIDEMARK_ROUNDS (12; 3 of them with sanitizers) snapshots of each filesystem on
each kind of disk, as an agent does by default, starts a server on each image, and prints how long
writers stood still."""
import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from disks import has_zram  # noqa: E402
from precopy_lib import LiveStory, Load, Moved, Writer  # noqa: E402
import snapshots as snap  # noqa: E402
import tm  # noqa: E402

ROUNDS = int(os.environ.get("TIDEMARK_ROUNDS") or ("asan" in tm.BUILD and 3) or 12)
LOSSY_MAX = 10
NO_BPF = os.path.join(os.path.dirname(os.path.abspath(__file__)), "precopy_no_bpf.py")
RCU_EXPEDITED = "/sys/kernel/rcu_expedited"
BTF = "/sys/kernel/btf/vmlinux"


def snapshot(story, tag):
    done = story.node.cli("snapshot", "--tag", tag)
    if not is_status(done, 0, f"{tag}: a live snapshot under load"):
        tm.diag(done.err)
    return snap.record(story.node, tag)


def is_exact(story, tag):
    found = story.compare(tag)
    is_(found.wrong[:10], [], f"{tag}: {found.total} chunks are those of the frozen device")
    is_(found.invented[:10], [], f"{tag}: what was never looked at is free in the image")
    return found


def size_text(size):
    """As people read it: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def test_exact(story, tag):
    story.agent()
    story.ledger.wait(5)
    record = snapshot(story, tag)
    story.bounds = story.ledger.bounds(record["postgresql"]["tag_lsn"])
    found = is_exact(story, tag)
    story.same_files(tag, found.images)
    found.remove()
    passes = record["precopy"]["passes"]
    diag(f"{tag}: passes {[p >> 10 for p in passes]} KiB, stalls "
         f"{[round(ms) for ms in story.stalls_ms()]} ms")
    ok(1 <= len(passes) <= 12 and passes[-1] <= 16 * MIB,
       f"{tag}: the last of {len(passes)} passes fits into the budget")
    first = sum(volume["bytes_read"] for volume in record["volumes"]) - sum(passes)
    like(story.node.cli("show", tag).out, "passes:" + "".join(
        rf"\s+- {size_text(size)}\n" for size in [first, *passes]), f"{tag}: show has every pass")
    ok(first > 32 * MIB, f"{tag}: the first of them read {first >> 20} MiB")
    ok(0 < record["freeze_ns"] <= record["precopy"]["freeze_sum_ns"],
       f"{tag}: the record says how long writes stood still")
    is_({v["provider"] for v in record["volumes"]}, {"precopy"}, f"{tag}: and how it was taken")
    story.ledger.wait(5)


def test_wal_moved(story, name, broken=False):
    """Segments that are left out stop being some between the first barrier and the instant. What
    does not fit into the freeze costs a pass more: on XFS here."""
    moved = Moved(story, 24 * MIB if story.fs == "xfs" else MIB)
    story.set(rate_limit="48MiB")
    story.agent(**{"TIDEMARK_TEST_PRECOPY_BREAK": "wal"} if broken else {})
    running = snap.Running(story.node, "snapshot", "--tag", name)
    pid, kept = running.pid(), f"{story.kept}/{moved.volume.name}"
    poll(lambda: has_line(kept + ".extents", "wal "), 120, "WAL to be left out", 0.001)
    os.kill(pid, signal.SIGSTOP)
    moved.move()
    ok(not os.path.exists(kept + ".img"), f"{name}: segments are moved before the instant")
    os.kill(pid, signal.SIGCONT)
    is_status(running.wait(), 0, f"{name}: the snapshot ends well")
    found = story.compare(name)
    wrong = moved.wrong(found.images[moved.volume.name])
    found.remove()
    moved.remove()
    story.set(rate_limit=None)
    left_out = ["kept", "recycled"]
    if broken:
        is_(wrong, sorted(moved.content.keys() - {"removed"}),
            f"{name}: the control finds them when nobody looks again")
        return
    is_(wrong, left_out, f"{name}: what is no segment's own is in the image, and only that")
    is_(found.wrong[:10], [], f"{name}: {found.total} chunks are those of the frozen device")
    with open(running.job() + "/log", encoding="utf-8") as log:
        like(log.read(), r"looked at in [\d.]+ ms: [1-9]\d* KiB of it are read after all",
             f"{name}: the log says how much")


def slow_map(story, tag):
    """Was all of the data volume read?"""
    running = snap.Running(story.node, "snapshot", "--tag", tag)
    is_status(running.wait(), 0, f"{tag}: the snapshot ends well")
    is_exact(story, tag).remove()
    name = story.node.volumes[0].name
    with open(running.job() + "/log", encoding="utf-8") as log:
        said = f"volume={name} its free space is not known for sure: all of it is read (its map " \
            "takes longer than a quarter of freeze_max" in log.read()
    read = {v["name"]: v["bytes_read"] for v in snap.record(story.node, tag)["volumes"]}[name]
    is_(read >= 512 * MIB, said, f"{tag}: {read >> 20} MiB are read, and it is said when it is all")
    return said


def test_slow_map(story, tag):
    """A map that takes too long for a freeze is made while files change. What there is to compare
    it with on an XFS is what lies on the disk: as soon as that is behind, all is read."""
    story.agent(TIDEMARK_TEST_PRECOPY_BREAK="slow-map")
    ok(any(slow_map(story, f"{tag}-{number}") for number in range(5)),
       f"{tag}: a map that is not believed makes it read everything")


# --- controls: the compare can fail ---------------------------------------------------------------
def until_wrong(story, name, count):
    """What the compare finds in the first of so many snapshots that is wrong, or in the last. What
    is lost of one may be followed by a mark or a write in its place, and is not missed then."""
    for number in range(count):
        story.forget()
        snapshot(story, f"{name}-{number}")
        found = story.compare(f"{name}-{number}")
        found.remove()
        if found.wrong:
            break
    diag(f"{name}: {number + 1} snapshots")
    return found


def test_lost_marks(story):
    """Marks that are dropped, which no counter shows. A campaign, where one of a thousand is lost,
    may take LOSSY_MAX."""
    every = 1000 if CAMPAIGN else 30
    story.set(rate_limit="48MiB")  # pass 0 takes seconds, whatever the disk can do
    story.agent(TIDEMARK_TEST_MARKS_DROP=str(every))
    found = until_wrong(story, "lost-marks", LOSSY_MAX if CAMPAIGN else 1)
    ok(found.wrong, f"the compare finds {len(found.wrong)} of {found.total} chunks wrong when every"
       f" {every}th mark is lost")
    story.set(rate_limit=None)


def test_map_believed(story):
    """Marked chunks that were free at the start are left out."""
    story.agent(TIDEMARK_TEST_PRECOPY_BREAK="map")
    snapshot(story, "map")
    found = story.compare("map")
    ok(found.wrong, f"the compare finds {len(found.wrong)} of {found.total} chunks wrong when the"
       " map is believed against a mark")
    found.remove()


def test_no_barrier(story, dice):
    """Marks taken while writes are in flight, on a disk where they wait to be read first; then the
    same with the barrier."""
    path = story.slow_disk.volume.mount + "/flight"
    with open(path, "wb") as file:
        file.write(os.urandom(16 * MIB))
        os.fsync(file.fileno())
    story.set(memory_max="1GiB")  # one pass: what it missed is not read again
    story.slow_disk.delay(3000)
    writer = Writer("flight", path, 8, dice.getrandbits(30))
    story.agent(TIDEMARK_TEST_PRECOPY_BREAK="barrier")
    found = until_wrong(story, "no-barrier", 5)
    is_({volume for volume, _ in found.wrong}, {story.slow_disk.volume.name},
        f"the compare finds {len(found.wrong)} of {found.total} chunks wrong when a pass has no"
        " barrier")
    story.agent()
    snapshot(story, "slow-disk")
    is_exact(story, "slow-disk").remove()
    ok(writer.running(), "writes were in flight all the time")
    story.slow_disk.delay(0)
    writer.stop()
    os.unlink(path)
    story.set(memory_max="64MiB")


# --- controls: the agent notices ------------------------------------------------------------------
def refused(story, status, text, what):
    """The snapshot fails like that, and leaves nothing that is visible or frozen."""
    before = snap.tags(story.node)
    done = story.node.cli("snapshot", "--tag", "refused")
    is_status(done, status, f"{what}: exit {status}")
    like(done.err, text, f"{what}: and says it")
    is_(snap.tags(story.node), before, f"{what}: no snapshot is there")
    return done


def test_unseen(story):
    """Writes that go past the tracker: the kernel's counters show it. The start-up probe's may be
    one of them: then once more."""
    story.agent(TIDEMARK_TEST_MARKS_HIDE="500")
    for _ in range(9):
        done = refused(story, "refused", "went unseen|a write of our own was not", "unseen writes")
        if "of our own" not in done.err:
            break
    like(done.err, r"writes went unseen: the kernel counted \d+ sectors written, eBPF saw \d+",
         "unseen writes: by the counters")


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


def has_line(path, start):
    if not os.path.exists(path):
        return False
    with open(path, encoding="ascii") as file:
        return any(line.startswith(start) for line in file)


def evidence(story, name, what):
    path = os.path.join(story.kept, story.node.volumes[0].name + name)
    poll(lambda: os.path.exists(path), 120, what, 0.001)
    return path


def test_guardian(story):
    """Without its guardian the agent freezes nothing: it is killed in pass 0. Killed later, under
    the last freeze, it costs the snapshot: nobody would have thawed."""
    for name, what, rate in ((".extents", "in pass 0", "48MiB"),
                             (".img", "under a freeze", None)):
        story.set(rate_limit=rate)  # pass 0 takes seconds, whatever the disk can do
        story.agent()
        running = snap.Running(story.node, "snapshot", "--tag", "no-guardian")
        pid = running.pid()
        evidence(story, name, what)
        kill_pid(guardian_of(pid))
        done = running.wait()
        is_status(done, "device", f"the guardian is killed {what}: exit 11")
        like(done.err, "guardian of the freeze has gone", "and it is said")
        story.ledger.wait(5)


def test_stopped(story):
    """The agent is stopped while everything is frozen: the guardian thaws, and what the agent does
    later does not count."""
    story.set(freeze_deadline="1s")
    story.agent()
    running = snap.Running(story.node, "snapshot", "--tag", "stopped")
    pid = running.pid()
    kept = evidence(story, ".img", "the copy of the frozen device")
    os.kill(pid, signal.SIGSTOP)
    story.ledger.wait(5)
    ok(os.stat(kept).st_size < 512 * MIB, "the agent is stopped while frozen: commits go on")
    os.kill(pid, signal.SIGCONT)
    done = running.wait()
    is_status(done, "refused", "and its snapshot is refused")
    like(done.err, "the guardian thawed after 1000 ms", "with the reason")
    story.set(freeze_deadline="60s")


def test_busy(story):
    """More is written between two barriers than a freeze may read, or freezing takes too long."""
    story.set(freeze_max="20ms")
    story.agent()
    path = story.node.volumes[0].mount + "/busy"
    with open(path, "wb") as file:
        file.truncate(40 * MIB)
    writer = Writer("flight", path, 24, 1)
    refused(story, "busy", r"after 12 passes more than \d+ KiB.*freeze_max", "too many writes")
    writer.stop()
    os.unlink(path)
    story.set(freeze_max="10s")


def test_expedited(story):
    """Grace periods are short while the volumes are being frozen, unless the option says no."""
    stand_in = os.path.join(story.box.path, "rcu_expedited")
    with open(stand_in, "w", encoding="ascii") as file:
        file.write("0\n")
    output("mount", "--bind", stand_in, RCU_EXPEDITED)  # in this test's own namespace
    for setting in ("no", None):
        story.set(rcu_expedited=setting)
        story.agent()
        before = os.stat(stand_in).st_mtime_ns
        done = story.node.cli("snapshot", "--tag", f"expedited-{setting or 'yes'}")
        is_status(done, 0, f"rcu_expedited = {setting or 'yes'}")
        is_(os.stat(stand_in).st_mtime_ns != before, setting is None,
            "the switch is left alone" if setting else "the switch is used")
        with open(stand_in, encoding="ascii") as file:
            is_(file.read(), "0\n", "and off afterwards")
    story.box.umount(RCU_EXPEDITED)


def test_rate_again(story):
    """A device that was busy for a moment while its rate was measured."""
    story.agent(TIDEMARK_TEST_PRECOPY_BREAK="rate")
    running = snap.Running(story.node, "snapshot", "--tag", "rate")
    is_status(running.wait(), 0, "a rate that was measured too low is measured again")
    with open(running.job() + "/log", encoding="utf-8") as log:
        like(log.read(), r"(?s) 32 KiB for what is read.*barrier=3 .* [1-9]\d{2,} KiB for what is",
             "after three passes")


# --- what a host can lack -------------------------------------------------------------------------
def test_missing(story):
    """Each missing part is named, with the providers that do without."""
    def lacks(what, text):
        done = refused(story, "refused", text, what)
        like(done.err, "hint: .*providers freeze, command and offline do without",
             f"{what}: the hint names the other providers")

    program = story.node.agent.program
    lockdown = "/sys/kernel/security"
    output("mount", "-t", "tmpfs", "tmpfs", lockdown)  # in a namespace of this test
    for wrapper, what, mode, text in (
            (["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin"], "no CAP_BPF", "integrity",
             "watching writes needs CAP_BPF and CAP_PERFMON"),
            ([sys.executable, NO_BPF], "no bpf()", "none",
             "watching writes needs CAP_BPF and CAP_PERFMON"),
            ([sys.executable, NO_BPF], "a locked-down kernel", "integrity",
             r"the kernel is locked down \(integrity\) and takes no eBPF: .*not permitted")):
        with open(lockdown + "/lockdown", "w", encoding="ascii") as file:
            file.write(" ".join(f"[{m}]" if m == mode else m for m in
                                ("none", "integrity", "confidentiality")) + "\n")
        story.node.agent.program = story.box.write(
            "wrapped-agent", f'#!/bin/sh\nexec {" ".join(wrapper)} {program} "$@"\n', 0o755)
        story.agent()
        lacks(what, text)
        story.node.agent.stop()
    story.box.umount(lockdown)
    story.node.agent.program = program
    with open(BTF, "rb") as file:
        types = file.read()
    other = story.box.join("btf")
    with open(other, "wb") as file:
        file.write(types.replace(b"btf_trace_block_bio_queue\0", b"btf_trace_block_bio_weird\0"))
    for source, options, what, text in (
            ("tmpfs", ("-t", "tmpfs"), "no BTF", "this kernel has no BTF"),
            (other, ("--bind",), "no tracepoint", "has no tracepoint block_bio_queue")):
        place = os.path.dirname(BTF) if source == "tmpfs" else BTF
        output("mount", *options, source, place)  # in a namespace of this test
        story.agent()
        lacks(what, text)
        story.node.agent.stop()
        story.box.umount(place)


# --- the campaign ---------------------------------------------------------------------------------
def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def show_distribution(what, values, unit):
    diag(f"{what}: {len(values)}; median {percentile(values, .5):.0f}, p90 "
         f"{percentile(values, .9):.0f}, p99 {percentile(values, .99):.0f}, max {max(values):.0f} "
         + unit)


class Figures:
    def __init__(self):
        self.stalls, self.longest, self.sums, self.passes, self.last, self.busy = \
            [], [], [], [], [], 0

    def add(self, record, stalls):
        self.stalls += stalls
        self.longest.append(record["freeze_ns"] / 1e6)
        self.sums.append(record["precopy"]["freeze_sum_ns"] / 1e6)
        self.passes.append(len(record["precopy"]["passes"]))
        self.last.append(record["precopy"]["passes"][-1] / 1024)

    def show(self, name):
        diag(f"figures of {name}: {len(self.longest)} snapshots; busy: {self.busy}")
        show_distribution("  stalls, of every freeze", self.stalls, "ms")
        show_distribution("  record: freeze_ns, the longest of a snapshot", self.longest, "ms")
        show_distribution("  record: freeze_sum_ns", self.sums, "ms")
        show_distribution("  record: passes", self.passes, "")
        show_distribution("  record: the last pass", self.last, "KiB")


def campaign_round(story, tag, figures):
    """One snapshot with the default options. `busy` is an answer; what is asked is that an image
    is right."""
    story.forget()
    done = story.node.cli("snapshot", "--tag", tag)
    if done.status == EXIT["busy"]:
        figures.busy += 1
        diag(f"{tag}: {done.err}")
        return False
    if not is_status(done, 0, f"{tag}: a live snapshot under load"):
        return False
    record = snap.record(story.node, tag)
    figures.add(record, story.stalls_ms())
    story.bounds = story.ledger.bounds(record["postgresql"]["tag_lsn"])
    found = is_exact(story, tag)
    story.same_files(tag, found.images)
    story.start_image(tag, record, found.images)
    found.remove()
    return True


def campaign(story, name, figures):
    tag = None
    story.set(memory_max=None, freeze_max=None)
    story.agent()
    for number in range(ROUNDS):
        if campaign_round(story, f"{name}-{number}", figures):
            tag = f"{name}-{number}"
    ok(tag, f"{name}: snapshots succeed")
    return tag


# --- all ------------------------------------------------------------------------------------------
def controls(story, dice):
    test_wal_moved(story, "moved-unseen", broken=True)
    test_lost_marks(story)
    test_map_believed(story)
    if story.slow_disk:
        test_no_barrier(story, dice)
    test_unseen(story)
    if story.disk == "loop":  # zram always counts
        test_no_statistics(story)
    test_expedited(story)
    test_rate_again(story)
    test_stopped(story)
    test_guardian(story)
    test_missing(story)
    test_busy(story)


def run_story(story, name, dice, figures, with_controls):
    load = Load(story.begin(), dice)
    story.ledger.start()
    tag = f"{name}-exact"
    test_exact(story, tag)
    bounds = story.bounds
    test_wal_moved(story, f"{name}-moved")
    if story.fs == "xfs":
        test_slow_map(story, f"{name}-slow-map")
    if with_controls:
        controls(story, dice)
    if CAMPAIGN:
        tag = campaign(story, name, figures) or tag
        bounds = story.bounds
    story.ledger.stop()
    load.stop()
    story.server.psql("drop table orders")
    story.bounds = bounds
    story.restore(tag=tag)
    story.check_tag(f"{name}, restored")
    is_([n for v in story.node.volumes for n in os.listdir(v.mount) if n.startswith(".")], [],
        f"{name}: the start-up probe leaves no file")
    story.end()
    story.remove_repository()


def main():
    box = need_root() or Sandbox("precopy")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    if not os.path.exists(BTF):
        skip_all("this kernel has no BTF")
    dice, _seed = seeded()
    zram = "zram" if has_zram() else None
    # In check: ext4 on loop devices with everything that can go wrong, XFS on zram.
    plan = [("ext4", "loop", True), ("xfs", zram, CAMPAIGN)]
    if CAMPAIGN:
        plan += [("ext4", zram, True), ("xfs", "loop", True)]
    everything = Figures()
    for fs, disk, with_controls in plan:
        if disk is None:
            skip("no zram: bio-based devices are not tested")
            disk = "loopagain"
        figures, name = Figures(), fs + disk
        run_story(LiveStory(box, fs, name, disk=disk, slow=with_controls and disk == "loop",
                            wal=fs == "xfs"), name, dice, figures, with_controls)
        if CAMPAIGN:
            figures.show(name)
            for field, values in vars(figures).items():
                setattr(everything, field, getattr(everything, field) + values)
    if CAMPAIGN:
        everything.show("all")


if __name__ == "__main__":
    run(main)
