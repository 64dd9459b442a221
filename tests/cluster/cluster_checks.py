"""What a cluster restore has to leave behind, and what must be true at any time."""
import os
import threading

import tm
from sandbox import kill_pid, poll, processes_below
from tm import is_, is_status, ok

LATER = 1000000
ROWS = "select count(*), coalesce(sum(hashtext(pad)::bigint), 0) from orders"
STATES = ("ok", "restoring", "recovering", "partial", "diverged", "failed")  # by GET /health


class Watch(threading.Thread):
    """Asks every server all the time whether it accepts writes, and for rows that were committed
    after the tag (later()): never two primaries, and no standby with rows that its primary has
    not, which replayed the old timeline beyond the fork.

        with Watch(cluster):
            …  # it is told at the end, also when that is an exception
    """

    SQL = f"select pg_is_in_recovery(), exists (select from orders where id >= {LATER})"

    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.cluster, self.ended = cluster, threading.Event()
        self.most, self.asked, self.astray = 0, 0, []

    def look(self):
        """{node: (in recovery, has later rows)} of the servers that answer. Standbys first: what
        they have of their primary's it has had before."""
        found = {}
        for member in sorted(self.cluster.members, key=lambda m: m is self.cluster.primary):
            done = member.server.psql(self.SQL, check=False)
            if done.returncode == 0:
                found[member.name] = tuple(done.stdout.strip().split("|"))
        return found

    def count(self):
        return sum(state[0] == "f" for state in self.look().values())

    def judge(self, found):
        primaries = [state for state in found.values() if state[0] == "f"]
        self.most, self.asked = max(self.most, len(primaries)), self.asked + 1
        if primaries and all(state[1] == "f" for state in primaries):
            self.astray += [name for name, state in found.items() if state[1] == "t"]

    def run(self):
        while not self.ended.wait(0.2):
            self.judge(self.look())

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self.ended.set()
        self.join()
        ok(self.most == 1 and self.asked > 10,
           f"never two primaries: at most {self.most} in {self.asked} looks")
        is_(self.astray, [], "never a standby on a dead branch")


def later(cluster):
    """Commits and archives what a restore to the tag must not bring back."""
    server = cluster.primary.server
    server.psql(f"insert into orders select {LATER}, 'after'")
    cluster.primary.wait_archived(server.switch_wal())


def tagged(cluster, coordinator):
    """A table, and a snapshot of the cluster with the tag t1; what ROWS says then."""
    server = cluster.primary.server
    server.psql("create table orders as select i as id, repeat(md5(i::text), 20) as pad"
                " from generate_series(1, 5000) i")
    is_status(coordinator.cli("snapshot", "--tag", "t1"), 0, "cluster snapshot")
    return server.psql(ROWS)


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
    cluster.wait_attached(timeline)
    is_([m.health() for m in cluster.members], ["ok"] * len(cluster.members), f"{what}: nodes ok")
    is_(cluster.primary.server.timeline(), timeline, f"{what}: the old servers run again")


def restored(cluster, coordinator, timeline, rows, what):
    cluster.wait_attached(timeline)
    cluster.wait_replayed()
    for member in cluster.members:
        is_((member.server.psql(ROWS), member.health()), (rows, "ok"),
            f"{what}: {member.name} has the tag's rows")
    is_(coordinator.status()["status"], "ok", f"{what}: the cluster is well")


def named_states(cluster, what):
    """Every agent has a word for its node."""
    states = [member.health() for member in cluster.members]
    ok(set(states) <= set(STATES), f"{what}: every node has a named state: {states}")


def jobs_stopped(state_dir):
    """Processes of jobs below state_dir that stopped themselves (TIDEMARK_TEST_PAUSE)."""
    found = []
    for pid in processes_below(state_dir):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                if file.read().rpartition(")")[2].split()[0] == "T":
                    found.append(pid)
        except OSError:
            continue
    return found


def kill_server(member):
    """kill -9 of the postmaster, and nothing of it is left: PostgreSQL takes one that is not reaped
    yet for running, and does not start while a child holds its shared memory."""
    pid = member.server.pid()
    kill_pid(pid)
    poll(lambda: not os.path.exists(f"/proc/{pid}"), 120, "the killed server to be reaped")
    poll(lambda: not [p for p in processes_below(member.data) if _is_postgres(p)], 60,
         "the killed server's children to end")


def _is_postgres(pid):
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("postgres")
    except OSError:
        return False


def stopped_below(state_dir):
    return next(iter(jobs_stopped(state_dir)), None)


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
