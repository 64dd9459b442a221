"""A cluster restore that is held still in one of its waves, for a test to do harm there."""
import os
import signal
import threading

import tm
from cluster_checks import as_before, jobs_stopped, restored
from sandbox import poll

# wave: (where a node's job stops itself, the how manieth time, whose job: None = any node's)
WAVES = {
    "reserve": ("planned", 1, None),
    "fence": ("fenced-stopped", 1, None),
    "pull": ("pulling", 1, None),
    "configured": ("configured", 1, None),
    "recovery": ("recovering-started", 1, "primary"),
    "attach": ("recovering-started", 1, "standby"),
    "verify": ("verifying", 2, None),
}
UNTOUCHED = ("reserve", "fence")  # the old data is still there


class Held:
    """`tidemark cluster restore t1` up to the wave, or to a point of the product's. The job that
    stops is that of `near` where the wave allows, else of a node in whose hands the wave is;
    go_on() lets it go on."""

    def __init__(self, cluster, coordinator, wave, near=None):
        self.coordinator, self.wave = coordinator, wave
        point, times, role = WAVES.get(wave, (wave, 1, None))
        if role == "standby" and near not in cluster.standbys:
            near = cluster.standbys[0]
        self.member = near if near in cluster.members and role != "primary" else cluster.primary
        self.result = None
        self.member.restart_agent(TIDEMARK_TEST_PAUSE=point)
        self.thread = threading.Thread(target=self._restore)
        self.thread.start()
        self.pid = None
        for time in range(times):
            if time:
                self.go_on()
            self.pid = poll(self._stopped, 180, f"{wave}: a job of {self.member.name} to stop")

    def _restore(self):
        self.result = self.coordinator.cli("restore", "t1", "--yes")

    def _stopped(self):
        if not self.thread.is_alive():
            raise RuntimeError(f"{self.wave}: the restore ended before: {self.result}")
        return next((pid for pid in jobs_stopped(self.member.state_dir) if pid != self.pid), None)

    def go_on(self):
        try:
            os.kill(self.pid, signal.SIGCONT)
        except ProcessLookupError:
            pass  # the test has killed it

    def wait(self):
        """The end of the command."""
        self.thread.join()
        return self.result


def chosen(cases, count, always=()):
    """A sample and `always`, all in a campaign; those that TIDEMARK_POINTS names, as its words
    joined by ':'."""
    wanted = os.environ.get("TIDEMARK_POINTS")
    if not wanted:
        return [case for case in cases if case in always] + tm.sample(
            [case for case in cases if case not in always], count)
    cases = [(case, case if isinstance(case, tuple) else (case,)) for case in cases]
    return [case for case, words in cases if ":".join(map(str, words)) in wanted.split(",")]


def rest(coordinator, timeout_s=180):
    """The journal of the coordinator's newest job once nothing runs."""
    def rests():
        journal = coordinator.journal()
        return None if journal["running"] else journal
    return poll(rests, timeout_s, "the coordinator's job to end")


def settle(cluster, coordinator, timeline, rows, what):
    """`tidemark cluster resume` where it is needed, once; then all is as the tag has it. Or all was
    given back, if need be by `tidemark cluster abort`, which the coordinator does every minute."""
    journal = rest(coordinator)
    touched = journal.get("touched")
    if journal["state"] != "complete" and (touched or journal.get("not_released")):
        verb = "resume" if touched else "abort"
        if not tm.is_status(coordinator.cli(verb), 0, f"{what}: {verb}"):
            coordinator.diagnose()
        journal = rest(coordinator)
    if touched:
        tm.is_(journal["state"], "complete", f"{what}: complete")
        # A promotion that was interrupted may have archived the history of its timeline.
        now = journal.get("fork", {}).get("timeline", 0)
        tm.ok(now > timeline, f"{what}: on a new timeline, {now} after {timeline}")
        restored(cluster, coordinator, now, rows, what)
        return
    tm.ok(journal["state"] in ("failed", "cancelled"), f"{what}: it has ended: {journal['state']}")
    for member in cluster.members:
        if not member.server.running():  # it was killed, and what starts servers starts it
            member.server.start()
    as_before(cluster, timeline, what)


__all__ = ["Held", "UNTOUCHED", "WAVES", "chosen", "rest", "settle"]
