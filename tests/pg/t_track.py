#!/usr/bin/env python3
# check: build=release campaign=asan timeout=400
"""Option track: marks are kept from one snapshot to the next, and an incremental reads only what
has been written since its parent. Exact compare, as in t_precopy: the image of a tracked snapshot
under load is the frozen device, chunk by chunk, those included that were not read; it is restored.

Every break of the chain makes a snapshot that reads everything, says why in its record, in `show`
and on the terminal, and is the start of a new chain. Negative control: the tracker loses marks, and
the compare must find chunks that were not read but have changed."""
import glob
import json
import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_precopy import LiveStory, Load  # noqa: E402
import schemas  # noqa: E402
import snapshots as snap  # noqa: E402
import tm  # noqa: E402

CAMPAIGN = os.environ.get("TIDEMARK_CAMPAIGN") == "1"
PINS = "/sys/fs/bpf/tidemark"


def set_track(story, value):
    for volume in story.node.volumes:
        story.node.sections[f"volume {volume.name}"]["track"] = value
    story.node.write_conf()
    story.node.agent.stop()
    story.node.agent.start()


def write_some(story):
    """A little of everything, on the medium."""
    story.server.psql("update orders set amount = amount where id % 50 = 0")
    story.server.psql("checkpoint")


def take(story, tag, *args):
    """A snapshot; its record, with what the command printed."""
    done = story.node.cli("snapshot", "--tag", tag, *args)
    if not is_status(done, 0, f"snapshot {tag}"):
        tm.diag(done.err)
    record = snap.record(story.node, tag)
    record["printed"] = done.out
    return record


def is_tracked(story, record, what, share=0.5):
    tag = record["tag"]
    show = story.node.cli("show", tag).out
    for volume in record["volumes"]:
        used, read = volume.get("track_used", 0), volume.get("track_read", 0)
        ok(0 <= read < used * share,
           f"{what}: {volume['name']} is tracked, {read} of {used} chunks are read")
        like(show, f"tracked since {record['parent']}: {read} of {used} chunks had",
             f"{what}: and show says so")
        like(record["printed"], f"volume {volume['name']}: tracked since {record['parent']}: "
             f"{read} of {used} chunks had", f"{what}: as does the command")


def is_full(story, record, why, what):
    for volume in record["volumes"]:
        like(volume.get("track_full", ""), why, f"{what}: {volume['name']} is read whole, and why")
        ok(not volume.get("track_used") and volume["bytes_read"] > 32 * MIB,
           f"{what}: {volume['bytes_read'] >> 20} MiB of it")
    like(story.node.cli("show", record["tag"]).out, "not tracked, all of it was read: .*" + why,
         f"{what}: show says it")
    like(record["printed"], "not tracked, all of it was read: .*" + why, f"{what}: the command too")


def bytes_read(record):
    return sum(volume["bytes_read"] for volume in record["volumes"])


def is_exact(story, tag):
    found = story.compare(tag)
    found.remove()
    wrong, invented, total = found.wrong, found.invented, found.total
    is_(wrong[:10], [], f"{tag}: {total} chunks are those of the frozen device, read or not")
    is_(invented[:10], [], f"{tag}: what was never looked at is free in the image")


def test_tracked(story, fs, rounds, load):
    """Under load; the agent is killed in between: the kernel holds the tracker."""
    story.agent()
    story.ledger.start()
    is_full(story, take(story, f"{fs}-first"), "there is no snapshot to compare with", "the first")
    for number in range(rounds):
        tag = f"{fs}-{number}"
        story.ledger.wait(20)
        story.node.agent.kill()
        story.agent()
        record = take(story, tag)
        is_tracked(story, record, tag, share=1)  # how much is written meanwhile is the load's
        story.bounds = story.ledger.bounds(record["postgresql"]["tag_lsn"])
        if number == rounds - 1:
            story.ledger.wait(5)
            story.ledger.stop()
            load.stop()
        is_exact(story, tag)
    return tag


def states(story):
    return glob.glob(story.node.state_dir + "/tables/*.track")


def forget_tracker(story):
    for volume in os.listdir(PINS):
        os.unlink(f"{PINS}/{volume}/link")


def forget_all():
    """What an earlier story left pinned."""
    for volume in os.listdir(PINS) if os.path.isdir(PINS) else []:
        for name in os.listdir(f"{PINS}/{volume}"):
            os.unlink(f"{PINS}/{volume}/{name}")
        os.rmdir(f"{PINS}/{volume}")


def change_state(story, key, value):
    for path in states(story):
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
        state[key] = value
        with open(path, "w", encoding="utf-8") as file:
            json.dump(state, file)


def write_uncounted(story):
    """Statistics that are off for a while prove nothing of that time."""
    for volume in story.node.volumes:
        switch = f"/sys/block/{os.path.basename(volume.device)}/queue/iostats"
        for value in "01":
            with open(switch, "w", encoding="ascii") as file:
                file.write(value)
            with open(volume.mount + "/uncounted", "wb") as file:
                file.write(bytes(100000))
                os.fsync(file.fileno())


def kill_snapshot(story):
    """In pass 0: marks have been taken, and are lost."""
    story.set(rate_limit="48MiB")
    running = snap.Running(story.node, "snapshot", "--tag", "killed", "--full")
    pid = running.pid()
    count = len(story.node.volumes)
    poll(lambda: len(glob.glob(story.node.state_dir + "/tables/*.track.open")) == count, 120,
         "marks to be taken", 0.002)
    kill_pid(pid)
    is_status(running.wait(), "internal", "a snapshot is killed")
    story.node.sections["tidemark"]["rate_limit"] = "0"
    story.node.write_conf()
    story.node.agent.stop()
    story.node.agent.start()


def remount(story, reattach=False):
    story.server.stop()
    for volume in story.node.volumes:
        story.box.umount(volume.mount)
        if reattach:
            story.box.unloop(volume.device)
            subprocess.run(["losetup", "--direct-io=on", volume.device, volume.image], check=True)
        story.box.mount(volume.device, volume.mount)
    story.server.start()


def without_track(story):
    set_track(story, "no")
    is_((os.listdir(PINS), states(story)), ([], []), "without the option the agent ends it")
    record = take(story, "untracked")
    is_([key for volume in record["volumes"] for key in volume if key.startswith("track")], [],
        "and the record says nothing of it")
    set_track(story, "yes")


def not_configured(story):
    """A volume that had a tracker is not in the configuration any more, when the agent starts;
    another agent's may be there."""
    path, other = story.node.state_dir + "/volumes.json", "f" * 32
    with open(path, encoding="utf-8") as file:
        ids = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump({f"former-{name}": number for name, number in ids.items()}, file)
    os.mkdir(f"{PINS}/{other}")
    is_(len(os.listdir(PINS)), 1 + len(ids), "there are trackers")
    story.node.agent.stop()
    story.node.agent.start()
    is_((os.listdir(PINS), states(story)), ([other], []),
        "the agent ends the trackers of volumes that are not configured, and only its own")
    os.rmdir(f"{PINS}/{other}")


BREAKS = [
    ("without-tracker", forget_tracker, "the tracker is gone"),
    ("restarted", lambda story: change_state(story, "boot", "b" * 36), "the host was restarted"),
    ("other-parent", lambda story: change_state(story, "snapshot", "c" * 32),
     "the newest snapshot is not the last one that was tracked"),
    ("other-tracker", lambda story: change_state(story, "tracker", "1-1"),
     "the tracker is another one"),
    ("uncounted", write_uncounted, r"the kernel counted \d+ sectors written, eBPF saw \d+"),
    ("after-killed", kill_snapshot, "the snapshot before this one did not end well"),
    ("remounted", remount, "the file system was mounted anew"),
    ("reattached", lambda story: remount(story, True), "it is another device"),
    ("after-untracked", without_track, "it was not tracked until now"),
    ("not-configured", not_configured, "it was not tracked until now"),
]


def test_breaks(story):
    """One after the other, each of the chain that the one before has begun: a reason is given only
    when all that are looked for earlier do not hold."""
    story.node.agent.stop()
    story.node.agent.start()
    for tag, break_it, why in BREAKS:
        break_it(story)
        write_some(story)
        is_full(story, take(story, tag), why, tag)


def test_cancelled(story, *args):
    """A snapshot that fails gives its marks back: the next one reads what that one would have."""
    what = " ".join(["cancelled", *args])
    write_some(story)
    story.node.sections["tidemark"]["rate_limit"] = "1MiB"
    story.node.write_conf()
    story.agent()
    running = snap.Running(story.node, "snapshot", "--tag", "cancelled", *args)
    poll(lambda: os.path.exists(f"{story.kept}/{story.node.volumes[-1].name}.extents"), 120,
         "marks to be taken", 0.01)
    is_status(story.node.cli("cancel", os.path.basename(running.job())), 0,
              f"{what}: cancel in pass 0")
    is_status(running.wait(), "cancelled", f"{what}: the snapshot is")
    story.node.sections["tidemark"]["rate_limit"] = "0"
    story.node.write_conf()
    story.agent()
    tag = what.replace(" ", "-")
    is_tracked(story, take(story, f"after-{tag}"), f"after a {what} one")
    is_exact(story, f"after-{tag}")


def test_unsure_mount(story, fs):
    """Where nobody can say whether the volume stayed mounted, no tracker is left behind."""
    place = f"/sys/fs/{fs}"
    output("mount", "-t", "tmpfs", "tmpfs", place)  # in this test's own namespace
    record = take(story, "unsure")
    story.box.umount(place)
    is_full(story, record, "sysfs does not say whether it stayed mounted", "unsure of the mount")
    is_(os.listdir(PINS), [], "unsure of the mount: no tracker is left")
    is_full(story, take(story, "after-unsure"), "the marks were not kept after the parent: sysfs "
            "does not say whether it stayed mounted", "the one after it")


def test_full(story):
    mount = story.node.volumes[0].mount
    output("chattr", "+i", mount)  # the start-up probe makes its file where the server does
    record = take(story, "asked-for", "--full")
    output("chattr", "-i", mount)
    is_full(story, record, "--full was asked for", "--full")
    write_some(story)
    after = take(story, "after-full")
    is_tracked(story, after, "the one after it")
    ok(bytes_read(after) < bytes_read(record) // 2,  # a segment of WAL or two are a fifth
       f"and reads {bytes_read(after) >> 10} KiB, not {bytes_read(record) >> 10}")


def take_lossy(story, tag):
    """The start-up probe may be what is lost: then once more."""
    for _ in range(9):
        story.agent(TIDEMARK_TEST_MARKS_DROP="10")
        done = story.node.cli("snapshot", "--tag", tag)
        if not (done.status and "a write of our own was not marked" in done.err):
            break
    is_status(done, 0, f"snapshot {tag}, with a tracker that loses marks")
    return {**snap.record(story.node, tag), "printed": done.out}


def test_lost_marks(story):
    """The compare can fail: of a tracker that loses marks the image has stale chunks."""
    forget_tracker(story)
    take_lossy(story, "lossy")
    story.server.psql("update pgbench_accounts set abalance = abalance where aid % 500 = 0")
    story.server.psql("checkpoint")
    is_tracked(story, take_lossy(story, "lost-marks"), "with lost marks", share=0.8)
    like("".join(tm.tail(log, 400) for log in glob.glob(story.node.state_dir + "/jobs/*/log")),
         "a TIDEMARK_TEST_ variable damages this snapshot on purpose", "and the log says so")
    found = story.compare("lost-marks")
    found.remove()
    wrong, total = found.wrong, found.total
    ok(wrong, f"the compare finds {len(wrong)} of {total} chunks wrong when marks are lost")
    forget_tracker(story)


def main():
    box = need_root() or Sandbox("track")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        skip_all("this kernel has no BTF")
    output("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")  # in this test's own namespace
    dice, _seed = seeded()
    for fs in ("ext4", "xfs") if CAMPAIGN else ("ext4",):
        forget_all()
        story = LiveStory(box, fs, fs, wal=fs == "xfs").begin()
        set_track(story, "yes")
        tag = test_tracked(story, fs, 10 if CAMPAIGN else 1, Load(story, dice))
        test_breaks(story)
        test_cancelled(story)
        test_cancelled(story, "--full")
        test_unsure_mount(story, fs)
        test_full(story)
        test_lost_marks(story)
        story.agent()
        story.server.psql("drop table orders")
        schemas.conform(story.node.cli, "tracked", "list", want=2)
        schemas.conform(story.node.cli, "tracked", "jobs", want=2)
        story.restore(tag=tag)
        story.check_tag(f"{fs}, restored")
        is_full(story, take(story, "restored"), "the tracker is gone|mounted anew", "restored")
        story.end()


if __name__ == "__main__":
    run(main)
