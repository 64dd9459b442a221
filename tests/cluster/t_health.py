#!/usr/bin/env python3
# check: build=asan timeout=400
"""GET /health of agents and coordinator in each of its six states, each made for real: restores
that stop, a server that is down, nodes whose history is another. What a daemon finds when it
starts: it resumes, or waits and says how to go on; and marks and journals that do not belong
together never start a server."""
import glob
import os
import re
import shutil
import signal
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE, os.path.join(HERE, "..", "pg")]
from tm import *  # noqa: E402, F403
from cluster_checks import stopped_below  # noqa: E402
from cluster_lib import Cluster, Coordinator  # noqa: E402
from t_restore import journal_of  # noqa: E402
import tm  # noqa: E402

MARK = 65536  # device_mark() writes so much


def health(agent, want, what, cause=None, hint=None):
    """GET /health until it says want; the body. 200 is for ok alone."""
    code, body = poll(lambda: (lambda a: a if a[1]["status"] == want else None)(
        agent.api("GET", "/health")), 60, f"{what}: health {want}: {agent.api('GET', '/health')}")
    is_(code, 200 if want == "ok" else 503, f"{what}: {want}")
    if cause:
        like(body["cause"] or "", cause, f"{what}: the cause")
    if hint:
        like(body["hint"] or "", hint, f"{what}: what to do")
    return body


def said(agent, what):
    """The self-check of its start did, in its log; after it began to serve."""
    pattern = re.compile(f"self-check: status=partial .*{what}")
    ok(poll(lambda: pattern.search(tm.tail(agent.log)), 60, f"the log: {what}"), "its log says so")


def cluster_status(coordinator, want, pattern, what):
    """`tidemark cluster status` once its exit status is want."""
    done = poll(lambda: (lambda d: d if d.status == tm.EXIT[want] else None)(
        coordinator.cli("status")), 60, f"{what}: cluster status: exit status {want}")
    ok(done, f"{what}: cluster status: exit status {want}")
    like(done.out, pattern, f"{what}: cluster status: {pattern}")
    return done


class Paused:
    """`tidemark …` in the background whose job on member has stopped itself at point."""

    def __init__(self, member, point, command):
        self.member = member
        member.restart_agent(TIDEMARK_TEST_PAUSE=point)
        self.thread = threading.Thread(target=command, daemon=True)
        self.thread.start()
        self.pid = poll(lambda: stopped_below(member.state_dir), 120,
                        f"{member.name}: its job at {point}")

    def go_on(self):
        os.kill(self.pid, signal.SIGCONT)
        self.thread.join()
        self.member.restart_agent()

    def die(self, start=False):
        """Job and agent, as with the host."""
        self.member.agent.kill()
        kill_pid(self.pid)
        if start:
            self.member.agent.start()
        self.thread.join()


# --- one node -------------------------------------------------------------------------------------
def test_server(primary, standby):
    body = health(primary.agent, "ok", "a primary")
    is_([body[k] for k in ("role", "timeline", "job", "step", "cause", "hint")],
        ["primary", 1, None, None, None, None], "a primary that is well")
    body = health(standby.agent, "ok", "a standby")
    is_((body["role"], body["timeline"]), ("standby", 1), "a standby that answers is ok")
    standby.server.stop()
    health(standby.agent, "failed", "a server that is down", "PostgreSQL does not run", "start it")
    is_status(standby.cli("status"), "postgres", "tidemark status")
    standby.server.start()
    health(standby.agent, "ok", "started again")


def killed_in_pulling(node):
    """Its own restore dies with its agent; the id."""
    Paused(node, "pulling", lambda: node.cli("restore", "t1", "--yes")).die()
    return journal_of(node)["id"]


def stopped(node, what):
    """Nobody has started the server, and nobody can."""
    ok(not node.server.running() and node.server.start(check=False).returncode != 0,
       f"{what}: no server, and none can be started")


def read_head(node):
    with open(node.volumes[0].device, "rb") as device:
        return device.read(MARK)


def write_head(node, head):
    with open(node.volumes[0].device, "r+b", buffering=0) as device:
        device.write(head)
        os.fsync(device.fileno())


def refuses(node, job, what):
    """It is left as it is, whoever asks."""
    done = node.cli("restore", "--resume", job)
    is_status(done, "refused", f"{what}: resume is refused")
    like(done.err, f"has lost the mark.*\nhint: .*tidemark cancel {job}", f"{what}: and says why")
    stopped(node, what)
    node.sections["tidemark"]["resume"] = "auto"
    node.write_conf()
    node.restart_agent()
    node.agent.wait_job(job)
    health(node.agent, "partial", f"{what}, resume = auto", "mark", "tidemark cancel")
    stopped(node, f"{what}, resume = auto")
    node.sections["tidemark"]["resume"] = "wait"
    node.write_conf()
    node.restart_agent()


def test_marks(node, job):
    """The device has not what the journal says."""
    mark = read_head(node)
    write_head(node, bytes(MARK))
    node.box.mkfs(node.volumes[0].device)
    health(node.agent, "partial", "the mark is gone", "has lost its mark", "attach the right")
    refuses(node, job, "the mark is gone")
    write_head(node, mark)
    is_status(node.cli("cancel", job), 0, "it is given up")
    health(node.agent, "partial", "given up", f"restore {job} was given up", "tidemark restore TAG")
    second = killed_in_pulling(node)
    write_head(node, mark)
    node.agent.start()
    health(node.agent, "partial", "a foreign mark", f"has the mark of restore {job}",
           "attach the right device")
    refuses(node, second, "a foreign mark")
    jobs = node.state_dir + "/jobs"
    os.rename(jobs, jobs + ".away")
    node.restart_agent()
    health(node.agent, "partial", "no journal", f"mark of restore {job}, which is not known here",
           "tidemark restore TAG")
    stopped(node, "no journal")
    said(node.agent, "not known here")


def test_one_node(node):
    """Its own restores: to wait is to say how to go on; auto goes on."""
    job = killed_in_pulling(node)
    node.agent.start()
    body = health(node.agent, "partial", "resume = wait", f"restore {job} stopped at step pulling",
                  f"^`tidemark restore --resume {job}` goes on$")
    is_((body["job"], body["step"], body["role"]), (job, "pulling", None), "which, and where")
    ok(body["since_s"] > 0, "since when")
    stopped(node, "resume = wait")
    said(node.agent, f"--resume {job}")
    test_marks(node, job)
    done = node.cli("restore", "t1", "--yes", "--target-name=never", "--target-timeline=1")
    is_status(done, "postgres", "a target that is not there")
    failed = health(node.agent, "failed", "the target is not there", "before the target",
                    "to another target")
    is_(failed["step"], "recovering", "it failed when it recovered")
    is_status(node.cli("cancel", failed["job"]), 0, "it is given up")
    node.sections["tidemark"]["resume"] = "auto"
    node.write_conf()
    job = killed_in_pulling(node)
    node.agent.start()
    is_(node.agent.wait_job(job)["state"], "complete", "resume = auto goes on by itself")
    ok(health(node.agent, "ok", "resume = auto")["since_s"] > 0, "ok since the restore")


# --- the cluster ----------------------------------------------------------------------------------
def test_members(coordinator, standby):
    body = health(coordinator.agent, "ok", "cluster")
    is_((body["role"], body["timeline"]), ("coordinator", 1), "the timeline of its primary")
    is_({name: (m["status"], m["role"]) for name, m in body["members"].items()},
        {"db1": ("ok", "primary"), "db2": ("ok", "standby")}, "its members by name")
    standby.agent.kill()
    body = health(coordinator.agent, "failed", "an agent is away", "node db2 is unreachable: ",
                  "see 'db2=unix:.*' in .coordinator. members of ")
    is_status(coordinator.cli("status"), "device", "an agent is away: cluster status")
    is_(body["members"]["db2"]["status"], "unreachable", "it is named")
    standby.agent.start()
    standby.server.stop()
    body = health(coordinator.agent, "failed", "a server is down", "node db2 is down: .*not run")
    is_(body["members"]["db2"]["role"], "down", "it is named")
    is_status(coordinator.cli("status"), "postgres", "a server is down: cluster status")
    like(body["hint"], "only as a standby of db1", "a server is down: as what it may be started")
    standby.server.start()
    health(coordinator.agent, "ok", "both are back")
    is_status(coordinator.cli("status"), 0, "both are back: cluster status")


def told(coordinator, job, state):
    """[notify] command was, how often."""
    with open(coordinator.told, encoding="ascii") as file:
        return file.read().split("\n").count(f"{job} {state}")


def test_killed(coordinator, job):
    """kill -9 of the restore's process, and the daemon is there."""
    what = "killed"
    coordinator.kill_job()
    poll(lambda: told(coordinator, job, "interrupted"), 60, "somebody to be told")
    is_(coordinator.journal()["state"], "interrupted", f"{what}: its state")
    like(coordinator.journal()["error"]["text"], "process was killed", f"{what}: and why")
    done = cluster_status(coordinator, "partial", f"(?m)^restore {job} to t1: stopped, in step pull"
                          f".*; `tidemark cluster resume {job}` goes on$", what)
    like(done.err, f"(?s)error: cluster restore {job} stopped at step pulling: .*process was killed"
         f".*\nhint: `tidemark cluster resume {job}` goes on", f"{what}: and why, and what to do")
    like(tm.tail(coordinator.agent.log), f"warn: interrupted restore stays as it is: job={job} "
         f"type=cluster_restore step=pulling", f"{what}: the coordinator's log says so")
    is_(told(coordinator, job, "interrupted"), 1, f"{what}: it is told once")
    is_(coordinator.journal()["notified"], {"command": "ok"}, f"{what}: of which the job knows")


def test_restore(cluster, coordinator):
    """Both states of a restore that works, and a coordinator that dies in between."""
    primary = cluster.primary
    paused = Paused(primary, "pulling", lambda: coordinator.cli("restore", "t1", "--yes"))
    job = coordinator.journal()["id"]
    body = health(primary.agent, "restoring", "pulling")
    is_((body["step"], body["cluster_job"]), ("pulling", job), "at which step of what")
    body = health(coordinator.agent, "restoring", "cluster, pulling", f"cluster restore {job}")
    is_((body["job"], body["members"]["db1"]["status"]), (job, "restoring"), "its own restore")
    status, _, page = get_page(coordinator)
    is_(status, 200, "the page meanwhile")
    like(page, rf"(?s){job} to t1: running, wave: pulling.*db1</td><td>primary</td><td>fenced",
         "shows the restore and its waves")
    cluster_status(coordinator, "busy", f"restore {job} to t1: running, in step pulling,",
                   "pulling")
    test_killed(coordinator, job)
    coordinator.agent.kill()
    paused.go_on()
    coordinator.start()
    resume = f"^`tidemark cluster resume {job}` goes on$"
    health(coordinator.agent, "partial", "cluster, resume = wait", "stopped at step", resume)
    said(coordinator.agent, f"cluster resume {job}")
    done = coordinator.cli("restore", "t1", "--yes")
    like(done.err, f"hint: finish it with `tidemark cluster resume {job}`", "another has to wait")
    standby = cluster.standbys[0]
    paused = Paused(standby, "recovering-started", lambda: coordinator.cli("resume", job))
    is_(health(standby.agent, "recovering", "recovering")["step"], "recovering", "its step")
    health(primary.agent, "recovering", "the primary waits for it", hint="waits for its coord")
    health(coordinator.agent, "recovering", "cluster, recovering")
    cluster_status(coordinator, "busy", f"restore {job} to t1: running, in step recovering,",
                   "recovering")
    paused.die(start=True)
    coordinator.agent.wait_job(job)
    health(standby.agent, "partial", "killed when it recovered", "stopped at step recovering",
           f"tidemark cluster resume {job}")
    health(coordinator.agent, "partial", "cluster, a node died", hint=f"cluster resume {job}")
    cluster_status(coordinator, "partial", f"restore {job} to t1: stopped, in step recovering,",
                   "a node died")
    ok(poll(lambda: re.search("warn: interrupted restore stays as it is: .*type=restore step=recov",
                              tm.tail(standby.agent.log)), 30, "the log of the node"),
       "the node's log says that its part was killed")
    is_status(coordinator.cli("resume", job), 0, "resume")
    cluster.wait_attached(2)
    for agent in (coordinator.agent, *(m.agent for m in cluster.members)):
        health(agent, "ok", "restored")


def replace_data(member, directory):
    """What somebody does who copies old files back."""
    member.server.stop("immediate", check=False)
    shutil.rmtree(member.data)
    output("cp", "-a", directory, member.data)
    member.server.start()


def diverged(coordinator, what, cause):
    """By the coordinator's word."""
    body = health(coordinator.agent, "diverged", what, "node db2 is diverged: " + cause)
    is_({name: member["status"] for name, member in body["members"].items()},
        {"db1": "ok", "db2": "diverged"}, f"{what}: which")


def promote_apart(server):
    """A server that knows of no other timeline 2 makes its own."""
    server.configure(primary_conninfo="", restore_command="", archive_command="true")
    server.reload()
    poll(lambda: server.psql("select count(*) from pg_stat_wal_receiver") == "0", 60, "no receiver")
    for path in glob.glob(server.data + "/pg_wal/*.history"):
        os.unlink(path)
    server.psql("select pg_promote()")
    server.wait_ready()
    is_(server.timeline(), 2, "another timeline 2")


def test_old_files(cluster, coordinator, old):
    """db2 comes back with what it had before the restore: past the fork, on the old timeline."""
    member = cluster.standbys[0]
    replace_data(member, old)
    what = "an old standby"
    health(member.agent, "diverged", what, "on timeline 1 and has never been on timeline 2",
           "stop it")
    is_status(member.cli("status"), "refused", f"{what}: tidemark status")
    diverged(coordinator, what, "its history is not that of db1: it is on timeline 1")
    promote_apart(member.server)
    what = "timeline 2 as well, from another fork"
    health(member.agent, "diverged", what)
    diverged(coordinator, what, "its history is not that of db1: it is on timeline 2")
    cluster_status(coordinator, "refused", "(?m)^db2 +diverged +primary +2 (.*\n)+db2: its history"
                   ".*\nhint: stop it now", what)


def test_left_out(cluster, coordinator):
    """A restore without db2, whose server was not stopped."""
    primary = cluster.primary
    done = coordinator.cli("restore", "t1", "--yes", "--discard-unarchived-wal")
    is_status(done, 0, "all are restored again")
    timeline = primary.server.timeline()
    cluster.wait_attached(timeline)
    health(coordinator.agent, "ok", "all are restored again")
    primary.server.psql("create table later as select 1")
    cluster.wait_replayed()
    is_status(coordinator.cli("restore", "t1", "--yes", "--without-node=db2"), 0, "without db2")
    diverged(coordinator, "left out",
             f"its history is not that of db1: it is on timeline {timeline}")
    health(primary.agent, "ok", "the others are well")


def test_stranger(cluster, coordinator):
    """Another cluster altogether answers at db2's place."""
    member = cluster.standbys[0]
    member.server.stop("immediate")
    shutil.rmtree(member.data)
    member.server.init()
    member.server.start()
    diverged(coordinator, "a stranger", "its system identifier is")


# --- notifications --------------------------------------------------------------------------------
def test_told_once(box, cluster, coordinator):
    """A node that cannot be given back is asked again and again: that is told once, and so is the
    end."""
    def told_of():
        with open(box.join("told"), encoding="ascii") as file:
            return [line.split()[1] for line in file if line.split()[0] == job]
    node = cluster.standbys[0]
    job = coordinator.agent.api("POST", "/cluster/restores", {"snapshot": "t1"})[1]["id"]
    coordinator.agent.wait_job(job)
    path = node.state_dir + "/cluster.json"
    os.rename(path, path + ".whole")
    node.box.write(os.path.relpath(path, node.box.join("")), "{}")
    health(node.agent, "failed", "its reservation cannot be read", "the reservation of this node",
           "remove the file")
    for attempt in ("first", "second", "third"):
        isnt(coordinator.cli("abort", job).status, 0, f"it cannot be given back: {attempt} abort")
    health(coordinator.agent, "failed", "a node is kept", "node db2")
    os.rename(path + ".whole", path)
    is_status(coordinator.cli("abort", job), 0, "it can be read again: abort")
    poll(lambda: "cancelled" in told_of(), 30, "the end to be told")
    is_(told_of(), ["failed", "cancelled"], "told once of each")
    is_([m.agent.api("GET", "/node")[1]["reservation"]["state"] for m in cluster.members],
        ["released"] * 2, "the nodes are free")


def get_page(coordinator):
    return coordinator.agent.request("GET", "/")


def main():
    box = tm.need_root() or tm.Sandbox("health")
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal")
    options = {"tidemark": {"freeze_deadline": "60s", "resume": "wait"}}
    cluster = Cluster(box, ("db1", "db2"), options=options).start()
    primary, standby = cluster.members
    box.write("told", "", 0o600)
    hook = f'echo "$TIDEMARK_JOB $TIDEMARK_STATE" >>{box.join("told")}'
    coordinator = Coordinator(box, cluster, options={"tidemark": {"resume": "wait"},
                                                     "notify": {"command": hook}}).start()
    coordinator.told = box.join("told")
    is_status(coordinator.cli("snapshot", "--tag", "t1"), 0, "cluster snapshot")
    primary.server.psql("create table later as select i from generate_series(1, 1000) i")
    cluster.wait_replayed()
    test_server(primary, standby)
    test_members(coordinator, standby)
    test_told_once(box, cluster, coordinator)
    standby.server.stop()
    old = box.mkdir("old", 0o700) + "/data"
    output("cp", "-a", standby.data, old)
    standby.server.start()
    test_restore(cluster, coordinator)
    test_old_files(cluster, coordinator, old)
    test_left_out(cluster, coordinator)
    test_stranger(cluster, coordinator)
    standby.agent.stop()
    test_one_node(primary)
    cluster.stop()


run(main)
