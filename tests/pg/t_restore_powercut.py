#!/usr/bin/env python3
# check: build=asan campaign=release timeout=600
"""A power cut in every step of a restore. One restore runs on a simulated disk (tests/lib/
powercut.py) that holds the volume and the state_dir, with one clock; afterwards it is cut before
operations of that run, with seeds that decide what of the unflushed writes survived. Where each
step begins is found in the log, so every step is cut, at its end and in its middle (`make
campaign`: in many places of it, on ext4 and XFS). The repository is taken back to the same moment.
Each time a person first tries to mount and start what is there; then the agent, or `restore
--resume`, has to end the restore with the rows of the tag."""
import glob
import os
import shutil
import sys
import time
import traceback

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
    "pulling": (GONE,), "written": (GONE, REFUSED), "configured": (REFUSED,),
    "recovering": (REFUSED, RECOVERS), "verifying": (RECOVERS,), "complete": (RECOVERS,),
}
PERMITS = "/run/tidemark-restore"
BEGUN = list(ALLOWED)[list(ALLOWED).index("marked"):]  # the old data may be gone
# Here nobody but the restore writes to the volume, and not before the journal names the step.
ALONE = ("marked", "pulling", "written", "configured")


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

    def steps(self):
        """{step: (begin, end)}: from the write of the journal that names it to that of the next.
        The journal is durable some flushes after begin, so a cut between may find the step before;
        a cut at end finds the step whatever the seed."""
        begins = {"none": self.first}
        for index, match in self.power.find("state", rb'"step": ?"([a-z]+)"'):
            if index >= self.first:
                begins.setdefault(match[1].decode(), index)
        ends = list(begins.values())[1:] + [self.last]
        return {step: (begin, end) for (step, begin), end in zip(begins.items(), ends)}

    def inside(self, step, begin, end):
        """Where a step can be cut in the middle: before each of its operations on the volume but
        the first, so that the step has begun; on both images where the volume is not its own.
        In recovery from where the new timeline's history is written: until the checkpoint after it
        a server that comes back does so in crash recovery, on the old timeline."""
        if step == "recovering":
            promoted = [at for at, _ in self.power.find("pgdata", rb"at restore point")
                        if at >= begin]
            begin = promoted[0] if promoted else begin
        volume = [op.index for op in self.ops[begin:end] if op.name == "pgdata"][1:]
        return volume if step in ALONE and volume else list(range(begin + 1, end))

    def moments(self, rng):
        """(step, operation, seed) of the cuts: the end of every step, and its middle."""
        found = []
        for step, (begin, end) in self.steps().items():
            middle = self.inside(step, begin, end)
            if not tm.CAMPAIGN:
                count = 1 if step in ALONE or step == "recovering" else 0
            else:
                count = 12 if step in ALONE or step == "recovering" else 4
            chosen = sorted(rng.sample(middle, min(count, len(middle))))
            found += [(step, at, rng.choice((0, rng.randrange(2, 1 << 30)))) for at in chosen]
            found.append((step, end, rng.choice((0, rng.randrange(2, 1 << 30)))))
        return found


def step_of(node):
    journals = [j for j in glob.glob(node.state_dir + "/jobs/*/journal.json")]
    try:
        return journal_of(node).get("step", "none") if journals else "none"
    except ValueError:  # no restore job in the journals yet
        return "none"


def finish(story, name, step, resume):
    """The agent starts again; whatever it leaves to be done is one command."""
    node = story.node
    node.sections["tidemark"]["resume"] = resume
    node.write_conf()
    node.agent.start()

    def settled():
        jobs = node.agent.api("GET", "/jobs")[1]
        jobs = jobs.get("jobs", jobs) if isinstance(jobs, dict) else jobs
        return not any(job.get("running") for job in jobs)
    begun = step in BEGUN
    if begun and resume == "auto":
        poll(lambda: journal_of(node)["state"] in ("executed", "complete", "failed"), 180,
             f"{name}: the agent to go on by itself")
        isnt(journal_of(node)["state"], "failed", f"{name}: the agent goes on by itself")
    poll(settled, 120, f"{name}: the agent to settle")
    if step != "none" and journal_of(node)["state"] == "complete":
        return
    done = node.cli("restore", *(["--resume"] if begun else ["t1"]), "--yes")
    if not is_status(done, 0, f"{name}: the restore ends well"):
        tm.diag(job_log(node))
        tm.diag(tm.tail(story.server.log, 20))


def boot(story):
    """/run is empty after a boot."""
    for journal in glob.glob(story.node.state_dir + "/jobs/*/journal.json"):
        job = os.path.basename(os.path.dirname(journal))
        for permit in glob.glob(f"{PERMITS}/*{job}"):
            os.unlink(permit)


def needs_permit(story):
    """Do the settings that the cut left include what was on /run?"""
    try:
        with open(story.node.data + "/postgresql.auto.conf", encoding="utf-8") as file:
            return PERMITS in file.read()
    except OSError:
        return False


def test_cut(story, begun, at, seed, resume):
    """Returns the step that the cut left in the journal."""
    begin, end = story.steps()[begun]
    name = f"{story.fs}, {begun} + {at - begin} of {end - begin}, cut {at}, seed {seed}, {resume}"
    images = story.power.recover("after", at=at, seed=seed)
    moment = story.ops[min(at, len(story.ops) - 1)].time_s + story.clock
    story.rewind_repository(moment)
    devices = {image: story.box.loop(path) for image, path in images.items()}
    story.node.volumes[0].device = devices["pgdata"]
    try:
        story.plug(devices)
        boot(story)
        step = step_of(story.node)
        order = list(ALLOWED)
        certain = at == end or begun in ALONE
        before = order[order.index(begun) - 1 if not certain and begun != "none" else
                       order.index(begun)]
        ok(step in (before, begun), f"{name}: the journal says {step}")
        found = start_by_hand(story)
        if not ok(found in ALLOWED[step], f"{name}, step {step}: started by hand: {found}"):
            tm.diag(tm.tail(story.server.log, 20))
        if step == "recovering":
            is_(found, REFUSED if needs_permit(story) else RECOVERS,
                f"{name}: refused until the settings of the recovery are gone")
        if found == OLD:
            story.server.psql("create table by_hand (); drop table by_hand")
        finish(story, name, step, resume)
        story.server.wait_ready()
        story.timeline = story.server.timeline() - 1
        story.check_tag(name)
    except Exception:  # pylint: disable=broad-except
        ok(False, f"{name}: the cut was tested to its end")
        tm.diag(traceback.format_exc())
        step = None
    story.unplug()
    for device in devices.values():
        story.box.unloop(device)
    return step


def cut_everywhere(box, fs):
    story = CutStory(box, fs)
    story.begin()
    story.record()
    steps = story.steps()
    is_(list(steps), list(ALLOWED), f"{fs}: the recorded run enters every step")
    tm.diag(f"{fs}: " + ", ".join(f"{step} {begin}-{end}" for step, (begin, end) in steps.items()))
    rng, _ = seeded()
    wanted = os.environ.get("TIDEMARK_CUT_STEPS", ",".join(steps)).split(",")
    hits = dict.fromkeys(wanted, 0)
    for index, (step, at, seed) in enumerate(story.moments(rng)):
        if step in wanted:
            found = test_cut(story, step, at, seed, ("auto", "wait")[index % 2])
            hits[found] = hits.get(found, 0) + 1
    tm.diag(f"{fs}: cuts by the step they left: {hits}")
    ok(all(hits[step] for step in wanted), f"{fs}: every step was cut")
    if not tm.failures():
        story.power.remove()
    shutil.rmtree(story.saved)
    shutil.rmtree(story.repository)


def main():
    need_root()
    box = Sandbox("restore-powercut")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tests/sim/tool_powercut")
    for fs in os.environ.get("TIDEMARK_CUT_FS", "ext4,xfs" if tm.CAMPAIGN else "ext4").split(","):
        cut_everywhere(box, fs)


if __name__ == "__main__":
    run(main)
