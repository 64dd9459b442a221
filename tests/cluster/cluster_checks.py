"""What a cluster restore has to leave behind, and what must be true at any time."""
import threading

import tm
from sandbox import poll, processes_below
from tm import is_, ok

ROWS = "select count(*), coalesce(sum(hashtext(pad)::bigint), 0) from orders"


class Watch(threading.Thread):
    """Asks every server all the time whether it accepts writes."""

    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.cluster, self.ended, self.most, self.asked = cluster, threading.Event(), 0, 0

    def count(self):
        answers = [m.server.psql("select pg_is_in_recovery()", check=False).stdout.strip()
                   for m in self.cluster.members]
        return answers.count("f")

    def run(self):
        while not self.ended.wait(0.2):
            self.most = max(self.most, self.count())
            self.asked += 1

    def end(self):
        self.ended.set()
        self.join()
        ok(self.most == 1 and self.asked > 10,
           f"never two primaries: at most {self.most} in {self.asked} looks")


def newest(coordinator, state, what):
    """Its newest job has come to rest in this state; the journal."""
    def rests():
        journal = coordinator.journal()
        return None if journal["running"] else journal
    journal = poll(rests, 120, f"{what}: the coordinator's job")
    if not is_(journal["state"], state, f"{what}: {state}"):
        tm.diag(journal.get("error"))
        coordinator.diagnose()
    return journal


def as_before(cluster, timeline, what):
    """All was given back."""
    is_([m.health() for m in cluster.members], ["ok"] * len(cluster.members), f"{what}: nodes ok")
    cluster.wait_attached(timeline)
    is_(cluster.primary.server.timeline(), timeline, f"{what}: the old servers run again")


def restored(cluster, coordinator, timeline, rows, what):
    cluster.wait_attached(timeline)
    cluster.wait_replayed()
    for member in cluster.members:
        is_((member.server.psql(ROWS), member.health()), (rows, "ok"),
            f"{what}: {member.name} has the tag's rows")
    is_(coordinator.status()["status"], "ok", f"{what}: the cluster is well")


def stopped_below(state_dir):
    for pid in processes_below(state_dir):
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            if file.read().rpartition(")")[2].split()[0] == "T":
                return pid
    return None


def at_once(coordinators, *args):
    """`tidemark cluster ARGS` by all of them at the same time; their results."""
    results = {}

    def call(who):
        results[who] = who.cli(*args)
    threads = [threading.Thread(target=call, args=(who,)) for who in coordinators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
