#!/usr/bin/env python3
# check: build=release campaign=asan timeout=400
"""A standby that follows a standby, and one whose primary becomes another. db1 ← db2 ← db3; db3 is
captured: while it cascades, while db2 is promoted (nothing is kept), and when it follows that. Each
is restored on db3; a primary that may run then is never overlooked."""
import os
import shutil
import signal
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), os.path.join(HERE, "..", "cli"), HERE]
from tm import *  # noqa: E402, F403
from cluster_checks import stopped_below  # noqa: E402
from cluster_lib import Cluster  # noqa: E402
from t_prompt import QUESTION, Terminal  # noqa: E402
from t_snapshot_standby import ORDERS, Load, configure, holds, refused, tagged  # noqa: E402
import snapshots as snap  # noqa: E402
import tm  # noqa: E402

UNKNOWN = "whether the primary of this cluster still runs is not known: "
WORDS = "Type it is down: "


def start(cluster):
    first, second, third = cluster.members
    first.start()
    for standby, upstream in ((second, first), (third, second)):
        standby.copy_from(upstream)
        standby.agent.start()
    cluster.wait_attached(1)


def both(*members):
    """A way to whichever of them is the primary."""
    return (f"host={','.join(m.server.socket for m in members)}"
            f" port={','.join(str(m.server.port) for m in members)}"
            " user=postgres target_session_attrs=read-write")


def capture(node, load, tag, timeline):
    load.start()
    is_status(node.cli("snapshot", "--tag", tag), 0, f"{tag}: a snapshot of a standby")
    load.stop()
    is_(snap.record(node, tag)["postgresql"]["timeline"], timeline,
        f"{tag}: of timeline {timeline}")
    return tagged(node, load, tag)


def test_cascading(first, node, load):
    refused(node, "what it follows is a standby", "refused",
            r"is a standby itself.*hint: .*primary_connection")
    configure(node, primary_connection=first.server.conninfo)
    return capture(node, load, "c1", 1)


def not_restored(node, what, pattern, *args):
    done = node.cli("restore", "c1", *args)
    is_status(done, "refused", f"{what}: refused")
    like(done.err, "(?s)" + pattern, f"{what}: says why, and what to do")
    ok(node.server.running(), f"{what}: the standby runs as before")


def test_primary_runs(first, node):
    """The snapshot's own primary is two steps away."""
    runs = rf"primary of this cluster runs and takes writes, at {first.server.socket}:" \
           rf"{first.server.port}.*hint: stop it first; .*cluster restore.*--allow-second-primary"
    not_restored(node, "a primary that runs", runs, "--yes")
    not_restored(node, "a primary that runs, dry run", runs, "--dry-run")
    not_restored(node, "a primary that runs, and somebody says no", runs, "--yes",
                 "--primary-is-down")
    done = node.cli("restore", "c1", "--dry-run", "--allow-second-primary")
    is_status(done, 0, "a primary that runs, allowed: planned")
    like(done.out, r"warning +the primary at .* goes on: two servers .* take writes",
         "a primary that runs, allowed: the plan says what that means")
    configure(node, primary_connection=None)
    not_restored(node, "only a standby answers", UNKNOWN + r".*\(a standby\).*hint: make sure .*"
                 "without --yes.*--primary-is-down.*primary_connection", "--yes")
    like(node.cli("restore", "c1", "--dry-run").out, "warning +" + UNKNOWN + r".*\(a standby\)",
         "only a standby answers: a plan says so")
    terminal = Terminal(node, "restore", "c1").read(WORDS).write("yes\n")
    is_(terminal.end(), EXIT["cancelled"], "only a standby answers: yes is not that word")
    ok(node.server.running(), "only a standby answers: it runs as before")


def test_promoted_upstream(first, second, node):
    """The tag is made on db1, and db3 leaves its timeline before it has replayed that."""
    configure(node, primary_connection=first.server.conninfo)
    before = snap.tags(node)
    job = snap.Running(node, "snapshot", "--tag", "never")
    job.wait_phase("copying")
    pid = job.pid()
    os.kill(pid, signal.SIGSTOP)
    second.server.psql("select pg_promote()")
    os.kill(pid, signal.SIGCONT)
    done = job.wait()
    is_status(done, "postgres", "its upstream was promoted between start and end: failed")
    like(done.err, r"(?s)left timeline 1 during the snapshot: it replays timeline 2.*hint: "
         if "left timeline" in done.err else "did not replay what its primary has written",
         "and it says so")
    is_(snap.tags(node), before, "nothing of it is visible")
    poll(lambda: node.streams(2), 60, "db3 to follow db2 onto timeline 2")


def test_old_primary_runs(first, second, node):
    """db1 is back as it crashed, beside db2, which was promoted: its own host names both."""
    own = f"{first.server.socket}:{first.server.port}"
    connection = first.sections["postgresql"]["connection"]
    first.server.start()
    first.server.psql("create role looker login")
    configure(first, primary_connection=both(first, second))
    done = first.cli("restore", "p1", "--yes")
    is_status(done, "refused", "an old primary beside a promoted one: refused")
    like(done.err, "(?s)runs and takes writes, at "
         rf"{second.server.socket}:{second.server.port}: .*hint: stop it first",
         "an old primary beside a promoted one: names the other one")
    unlike(done.err, own, "an old primary beside a promoted one: and not itself")
    like(first.cli("check").out, "(?s)FAILED primary +this server takes writes, and so does another"
         rf" .*{second.server.socket}:{second.server.port}.*hint: stop the one",
         "an old primary beside a promoted one: check says so")
    for way, what in ((both(first, node), "as a standby"),
                      (both(first).replace("user=postgres", "user=looker"), "as anybody")):
        configure(first, primary_connection=way)
        done = first.cli("restore", "p1", "--dry-run")
        is_status(done, 0, f"only itself takes writes, asked {what}: planned")
        like(done.out, rf"primary +nobody: {own} \(this server\)",
             f"only itself takes writes, asked {what}: it knows itself")
    configure(first, primary_connection=both(first),
              connection=f"host={first.server.socket} port=1 user=postgres")
    done = first.cli("restore", "p1", "--yes")
    is_status(done, "refused", "its own connection is wrong: refused")
    like(done.err, rf"(?s)another primary .* not known: {own} \(takes writes, .*cannot be told.*"
         "hint: make sure",
         "its own connection is wrong: says why, and what to do")
    ok(first.server.running(), "the old primary runs as before")
    configure(first, primary_connection=None, connection=connection)
    first.server.stop("immediate")


def test_restored(node, primary, load, rows, bounds):
    """The new primary hangs: it does not answer, and nobody but a person knows what it is up to."""
    hung = int(output("head", "-1", f"{primary.data}/postmaster.pid"))
    children = output("pgrep", "-P", str(hung)).split()
    for pid in (hung, *map(int, children)):
        os.kill(pid, signal.SIGSTOP)
    terminal = Terminal(node, "restore", "c1", "--verify=quick").read(WORDS)
    like(terminal.text, "Whether the primary still runs is not known: .*no answer",
         "a primary that hangs: a person is asked")
    terminal.write("it is down\n").read(QUESTION).write("yes\n")
    if not is_(terminal.end(), 0, "the word is given: restored"):
        tm.diag(terminal.text)
    primary.server.kill()
    for pid in map(int, children):
        tm.kill_pid(pid)
    is_((node.server.timeline(), node.server.psql(ORDERS)), (3, rows), "c1: a primary, timeline 3")
    holds(node.server, load, bounds, "c1")


def first_down(first, second):
    """Nobody shall be told to start it beside the promoted one."""
    configure(first, primary_connection=both(first, second))
    done = first.cli("status")
    is_status(done, "postgres", "an old primary is down: its status")
    like(done.err, "(?s)does not run.*hint: do not start it as it is: another primary .* runs, at "
         rf"{second.server.socket}:{second.server.port}; make this one a standby",
         "an old primary is down: the hint names the promoted one")


def test_crashed_primary(first, second, node):
    """db1 crashed, db2 was promoted, db3 follows that: db1 and db3 do not say where it is."""
    done = first.cli("restore", "p1", "--dry-run")
    is_status(done, 0, "nobody to ask: planned")
    like(done.out, "warning +this server had standbys .*promoted since is not asked"
         ".*primary_connection",
         "nobody to ask: the plan says that it had standbys")
    configure(first, primary_connection=both(first, node))
    done = first.cli("restore", "p1", "--yes")
    is_status(done, "refused", "one refuses, the other follows somebody: refused")
    like(done.err, "(?s)" + UNKNOWN + r".*\(this server\).*\(a standby\).*hint: make sure",
         "one refuses, the other follows somebody: says why, and what to do")
    ok(not first.server.running(), "one refuses, the other follows somebody: db1 is down")
    first_down(first, second)
    own = f"localhost:{first.server.port}"
    configure(first, primary_connection=f"host=localhost port={first.server.port}")
    done = first.cli("restore", "p1", "--dry-run")
    like(done.out, rf"(?s)primary  not asked: .*{own} \(this server\).*warning +this server had "
         "standbys", "it names only itself: that says nothing about its standbys")
    unlike(done.out, UNKNOWN, "it names only itself: and holds nothing up")


def test_repointed(node, load, rows, bounds):
    is_status(node.cli("restore", "c2", "--yes", "--verify=quick"), 0,
              "c2: nobody but the primary on its own host: restored")
    is_((node.server.timeline(), node.server.psql(ORDERS)), (4, rows), "c2: timeline 4")
    holds(node.server, load, bounds, "c2")


def follow(node, primary):
    """node, which was a primary, is made a standby."""
    node.server.stop("immediate", check=False)
    for name in os.listdir(node.data):
        path = os.path.join(node.data, name)
        (os.unlink if os.path.islink(path) or not os.path.isdir(path) else shutil.rmtree)(path)
    node.copy_from(primary)
    timeline = primary.server.timeline()
    poll(lambda: node.streams(timeline), 60, f"{node.name} to follow {primary.name}")


def stopped_at(node, point, tag):
    """A restore that stopped itself there: the command, and the job's pid."""
    node.restart_agent(TIDEMARK_TEST_PAUSE=point)
    running = snap.Running(node, "restore", tag, "--yes", "--verify=quick")
    return running, poll(lambda: stopped_below(node.state_dir), 120, f"the job to stop at {point}")


def let_in(node, rules):
    """pg_hba.conf as it was before."""
    with open(f"{node.data}/pg_hba.conf", "r+", encoding="utf-8") as file:
        before = file.read()
        file.seek(0)
        file.truncate()
        file.write(rules)
    node.server.reload()
    return before


def cancelled_in_fence(node, running, pid):
    """Its end, once it is known to everybody."""
    node.agent.api("DELETE", f"/jobs/{os.path.basename(running.job())}")
    os.kill(pid, signal.SIGCONT)
    done = running.wait()
    is_status(done, "cancelled", "cancelled in its fence")
    return done


def test_lifted(node, standby):
    """The fence of a primary: its server starts again beside a standby, and beside nobody else."""
    follow(standby, node)
    configure(node, primary_connection=both(standby, node))
    cancelled_in_fence(node, *stopped_at(node, "fenced-pushed", "c2"))
    ok(node.server.running(), "the standby is one yet: the old server runs again")
    running, pid = stopped_at(node, "fenced-pushed", "c2")
    rules = let_in(standby, "local all all reject\n")
    done = cancelled_in_fence(node, running, pid)
    like(done.err, "(?s)nothing was touched.*hint: the old server stays down, .*: whether another "
         rf"primary .* is not known: {standby.server.socket}:", "nobody knows: and it says so")
    ok(not node.server.running(), "nobody knows: the old server stays down")
    let_in(standby, rules)
    node.server.start()
    running, pid = stopped_at(node, "fenced-pushed", "c2")
    node.agent.kill()
    tm.kill_pid(pid)
    standby.server.psql("select pg_promote()")
    node.agent.start()
    poll(lambda: running.journal()["state"] == "cancelled", 60, "the fence to be lifted")
    running.wait()
    like(running.journal()["error"]["hint"], "the old server stays down, .*: another primary of "
         f"this cluster runs, at {standby.server.socket}:", "promoted meanwhile: the job says so")
    ok(not node.server.running(), "promoted meanwhile: the old server stays down")


def test_promoted_while_pulling(node, standby):
    """node was the primary and ran when its restore began."""
    follow(standby, node)
    node.sections["tidemark"]["resume"] = "wait"
    configure(node, primary_connection=both(standby, node))
    running, pid = stopped_at(node, "pulling", "p1")
    standby.server.psql("select pg_promote()")
    os.kill(pid, signal.SIGCONT)
    done = running.wait()
    is_status(done, "refused", "its standby was promoted while it was restored: refused")
    like(done.err, f"runs and takes writes, at {standby.server.socket}:", "and says where")
    ok(not node.server.running(), "its standby was promoted while it was restored: it is down")
    is_status(node.cli("cancel", os.path.basename(running.job())), 0, "given up")


def test_given_up(node, primary):
    """The volumes of a standby say no more that it was one; the restore that was given up does."""
    follow(node, primary)
    configure(node, primary_connection=None)
    primary.server.stop("immediate")
    running, pid = stopped_at(node, "pulling", "p1")
    tm.kill_pid(pid)
    running.wait()
    is_status(node.cli("cancel", os.path.basename(running.job())), 0, "a standby's is given up")
    done = node.cli("restore", "p1", "--dry-run")
    is_status(done, 0, "given up, the primary is down: planned")
    like(done.out, f"primary +nobody: .*{primary.server.socket}:{primary.server.port}",
         "given up, the primary is down: it is asked")
    primary.server.start()
    done = node.cli("restore", "p1", "--yes", "--verify=quick")
    is_status(done, "refused", "given up, the primary is back: refused")
    like(done.err, f"runs and takes writes, at {primary.server.socket}:", "and says where")


def main():
    box = need_root() or Sandbox("cascade")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    cluster = Cluster(box, options={"wal": {"archive_timeout": "60s", "get_timeout": "2s"}})
    start(cluster)
    first, second, node = cluster.members
    first.server.pgbench_init(1)
    first.server.psql("create table orders as select i as id, i % 97 as amount"
                      " from generate_series(1, 5000) i")
    rows = first.server.psql(ORDERS)
    load = Load(first)
    load.ledger.create()
    cascading = test_cascading(first, node, load)
    is_status(first.cli("snapshot", "--tag", "p1"), 0, "p1: a snapshot of the primary")
    test_primary_runs(first, node)
    test_promoted_upstream(first, second, node)
    first.server.stop("immediate")
    configure(node, primary_connection=both(first, second))
    later = Load(second, "later_ledger")
    later.ledger.create()
    repointed = capture(node, later, "c2", 2)
    test_crashed_primary(first, second, node)
    test_old_primary_runs(first, second, node)
    test_restored(node, second, load, rows, cascading)
    test_repointed(node, later, rows, repointed)
    test_lifted(node, first)
    test_promoted_while_pulling(first, node)
    test_given_up(first, node)
    cluster.stop()


run(main)
