#!/usr/bin/env python3
# check: build=release timeout=400
"""A power cut at any moment of a restore. One restore runs on a simulated disk (tests/lib/
powercut.py) that holds the volume and the state_dir, with one clock; afterwards it is cut before
operations of that run, with seeds that decide what of the unflushed writes survived. The repository
is taken back to the same moment. Each time a person first tries to mount and start what is there,
then the agent starts, and the restore has to end with the rows of the tag."""
import glob
import os
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from powercut import PowerCut  # noqa: E402
from t_restore import Story, job_log, journal_of  # noqa: E402
from t_restore_kill import GONE, OLD, RECOVERS, REFUSED, start_by_hand  # noqa: E402
import tm  # noqa: E402

# What the journal's step allows a person to find. In the step that is being done, both ends.
ALLOWED = {
    "none": (OLD,), "planned": (OLD,), "fenced": (OLD,), "marked": (OLD, GONE),
    "pulling": (GONE,), "written": (GONE, REFUSED), "configured": (REFUSED, RECOVERS),
    "recovering": (RECOVERS,), "verifying": (RECOVERS,), "complete": (RECOVERS,),
}


class CutStory(Story):
    """A story whose volume and state_dir lie on the simulator."""

    def __init__(self, box, fs):
        self.box, self.fs, self.timeline = box, fs, 1
        self.wal_volume = self.tablespace = None
        self.power = PowerCut(box, {"pgdata": 320 * MIB, "state": 64 * MIB})
        self.link = box.join("disk-pgdata")
        devices = {name: self.power.attach(name) for name in ("pgdata", "state")}
        box.mkfs(devices["pgdata"], fs)
        box.mkfs(devices["state"], "ext4")
        self.state = box.mkdir("dbcut-state", 0o755)
        volume = Volume("pgdata", self.power.path("pgdata"), devices["pgdata"], fs,
                        box.mkdir("pgdata"))
        self.plug(devices)
        output("mount", volume.device, volume.mount)
        shutil.chown(volume.mount, "postgres", "postgres")
        self.node = Node(box, [volume], name="dbcut", options={
            "tidemark": {"freeze_deadline": "60s", "state_dir": self.state},
            "volume pgdata": {"device": self.link}})
        self.server = self.node.server
        self.repository = self.node.repository.removeprefix("file://")

    def plug(self, devices):
        """The disks are there: the link that the configuration names, and state_dir."""
        if os.path.islink(self.link):
            os.unlink(self.link)
        os.symlink(devices["pgdata"], self.link)
        output("mount", devices["state"], self.state)

    def unplug(self):
        self.node.agent.stop()
        self.server.stop("immediate", check=False)
        for point in (self.node.volumes[0].mount, self.state):
            if tm.mounts_below(point):
                self.box.umount(point)

    def record(self):
        """The restore that is cut later. Remembers where it begins and ends in the log."""
        self.first = self.power.ops()
        self.restore()
        self.last = self.power.ops()
        self.check_tag("the run that is recorded")
        # CLOCK_MONOTONIC of the log and the clock of the repository's files
        self.clock = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
        self.unplug()
        self.power.stop()
        self.ops = self.power.log()
        self.saved = self.box.join("repository-saved")
        output("cp", "-a", self.repository, self.saved)

    def rewind_repository(self, moment):
        """Only what was written before the cut."""
        shutil.rmtree(self.repository)
        output("cp", "-a", self.saved, self.repository)
        for top, _, names in os.walk(self.repository):
            for name in names:
                path = os.path.join(top, name)
                if os.stat(path).st_mtime > moment:
                    os.unlink(path)

    def moments(self, count):
        """Operations spread over the recorded restore, every other one moved to a flush, each with
        a seed. Half of them between the first wipe of the volume and the last of its large writes:
        there the volume is neither old nor new."""
        rng, _ = seeded()
        low, high = (int(x) for x in os.environ.get("TIDEMARK_CUTS",
                                                    f"{self.first}-{self.last}").split("-"))
        large = [op.index for op in self.ops[self.first:self.last]
                 if op.name == "pgdata" and op.type == "write" and op.size >= 256 * KIB]
        spans = [(low, high), (max(low, large[0] - 12), min(high, large[-1] + 12))]
        flushes = [at for at in self.power.boundaries() if low <= at <= high]
        found = []
        for index in range(count):
            begin, end = spans[index % 2]
            step = (end - begin) // (count // 2 + 1)
            at = min(end, begin + index // 2 * step + rng.randrange(step + 1))
            if index % 4 >= 2:
                at = min(flushes, key=lambda flush, near=at: abs(flush - near))
            found.append((at, rng.choice((0, rng.randrange(2, 1 << 30)))))
        return sorted(found)


def step_of(node):
    journals = [j for j in glob.glob(node.state_dir + "/jobs/*/journal.json")]
    try:
        return journal_of(node).get("step", "none") if journals else "none"
    except ValueError:  # no restore job in the journals yet
        return "none"


def finish(story, name):
    """The agent starts again; whatever it leaves to be done is one command."""
    node = story.node
    node.agent.start()

    def settled():
        jobs = node.agent.api("GET", "/jobs")[1]
        jobs = jobs.get("jobs", jobs) if isinstance(jobs, dict) else jobs
        return not any(job.get("running") for job in jobs)
    poll(settled, 120, f"{name}: the agent to settle")
    try:
        state = journal_of(node)["state"]
    except ValueError:
        state = "none"
    if state == "executed":
        done = node.cli("restore", "--resume", "--yes")
    elif state == "complete":
        return
    else:
        done = node.cli("restore", "t1", "--yes")
    if not is_status(done, 0, f"{name}: the restore ends well"):
        tm.diag(job_log(node))
        tm.diag(tm.tail(story.server.log, 20))


def test_cut(story, at, seed):
    name = f"cut at {at} of {story.first} to {story.last}, seed {seed}"
    images = story.power.recover("after", at=at, seed=seed)
    moment = story.ops[min(at, len(story.ops) - 1)].time_s + story.clock
    story.rewind_repository(moment)
    devices = {image: story.box.loop(path) for image, path in images.items()}
    story.node.volumes[0].device = devices["pgdata"]
    story.plug(devices)
    step = step_of(story.node)
    found = start_by_hand(story)
    if not ok(found in ALLOWED[step], f"{name}, step {step}: started by hand: {found}"):
        tm.diag(tm.tail(story.server.log, 20))
    finish(story, name)
    story.server.wait_ready()
    story.timeline = story.server.timeline() - 1
    story.check_tag(name)
    story.unplug()
    for device in devices.values():
        subprocess.run(["losetup", "-d", device], check=False)


def main():
    box = need_root() or Sandbox("restore-powercut")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tests/sim/tool_powercut")
    for fs in ("ext4", "xfs") if tm.CAMPAIGN else ("ext4",):
        story = CutStory(box, fs)
        story.begin()
        story.record()
        wanted = os.environ.get("TIDEMARK_CUT")  # "OPERATION:SEED" again
        moments = ([tuple(map(int, wanted.split(":")))] if wanted
                   else story.moments(60 if tm.CAMPAIGN else 8))
        for at, seed in moments:
            test_cut(story, at, seed)
        story.power.remove()
        shutil.rmtree(story.saved)
        shutil.rmtree(story.repository)


if __name__ == "__main__":
    run(main)
