#!/usr/bin/env python3
# check: build=asan timeout=300
"""What gives nodes back, or must not: a repository that is away, a host that shuts down in the
middle of its fence, an abort when the new primary accepts writes, a promoted node that was given
up. The primary moves to db2, through a primary_conninfo with a password that nobody shows."""
import os
import shutil
import signal
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE]
from tm import *  # noqa: E402, F403
from cluster_checks import newest, stopped_below  # noqa: E402
from cluster_lib import (SECRET, Cluster, Coordinator, break_repository, diskseq_name,  # noqa: E402
                         mend_repository)
import tm  # noqa: E402


def writers(cluster):
    return [m.name for m in cluster.members
            if m.server.psql("select pg_is_in_recovery()", check=False).stdout.strip() == "f"]


def prepare(coordinator, **more):
    body = {"snapshot": "t1", "primary": "db2", **more}
    job = coordinator.agent.api("POST", "/cluster/restores", body)[1]["id"]
    newest(coordinator, "prepared", "prepare")
    return job


def last_job(member):
    return member.agent.api("GET", "/jobs")[1]["jobs"][-1]


def secret(coordinator):
    """In the configuration alone, and in the job's copy of that."""
    unlike(str(coordinator.agent.api("GET", "/jobs")), SECRET, "the plan does not say the password")
    like(str(coordinator.journal()["plan"]), "application_name=db1", "but the rest")
    files = output("grep", "-rl", SECRET, coordinator.state_dir, coordinator.agent.log).split()
    is_({os.path.basename(path) for path in files}, {"conf"}, "nor does a journal")


def repository_away(cluster, coordinator):
    """Nothing is touched: the nodes are free again, without the repository."""
    job = prepare(coordinator)
    secret(coordinator)
    path = break_repository(cluster.repository)
    coordinator.agent.api("POST", f"/restores/{job}/execute", {})
    journal = newest(coordinator, "failed", "no repository")
    is_([last_job(m)["state"] for m in cluster.members], ["cancelled"] * len(cluster.members),
        "no repository: all nodes are given back")
    ok(not journal.get("not_released"), "and the job is over")
    mend_repository(path)


def one_stays_away(cluster, coordinator):
    """Both agents are away when their nodes are given back: the one that comes back does not wait
    for the other."""
    first, second = cluster.members
    for back, away in (first, second), (second, first):
        prepare(coordinator)
        for member in cluster.members:
            member.agent.stop()
        results = []
        thread = threading.Thread(target=lambda to=results: to.append(coordinator.cli("abort")),
                                  daemon=True)
        thread.start()
        poll(lambda: len(coordinator.journal().get("silent", [])) == 2, 60, "both to be missed")
        back.restart_agent()
        poll(lambda m=back: last_job(m)["state"] == "cancelled", 60, f"{back.name} to be free")
        ok(thread.is_alive(), f"{back.name} is given back while {away.name} is waited for")
        away.restart_agent()
        thread.join()
        is_status(results[0], 0, "then the other one, and the abort ends well")
        is_(last_job(away)["state"], "cancelled", f"{away.name} is free")


def fence_waits(cluster, member):
    """The job dies in its fence, and the repository is away: the fence is lifted later."""
    member.restart_agent(TIDEMARK_TEST_PAUSE="fenced-closed")
    job = member.agent.api("POST", "/restores", {
        "snapshot": "t1", "execute": True,
        "overwrite": {"pgdata": diskseq_name(member.volumes[0].device)}})[1]["id"]
    pid = poll(lambda: stopped_below(member.state_dir), 60, "the fence")
    path = break_repository(cluster.repository)
    kill_pid(pid)
    member.restart_agent()
    poll(lambda: last_job(member)["state"] == "failed", 60, "the abort to fail")
    ok(not member.server.running(), "no repository: the fence stays")
    is_(member.health(), "partial", "and health says so")
    mend_repository(path)
    is_(member.agent.api("DELETE", f"/jobs/{job}")[0], 202, "it can be given up again")
    is_(member.agent.wait_job(job)["state"], "cancelled", "which lifts the fence")
    ok(member.server.running(), "the old server runs again")
    is_(member.health(), "ok", "health is ok")


def other_data(cluster, coordinator, member):
    """A coordinator names whatever is mounted: the data of another cluster is refused."""
    member.server.stop()
    away = cluster.box.join("away")
    output("mv", member.data, away)
    member.server.program("initdb", "-D", member.data, "-U", "postgres", "-A", "trust")
    done = coordinator.cli("restore", "t1", "--yes", "--primary=db2")
    is_status(done, "refused", "another cluster's data on a node: refused")
    like(done.err, f"node {member.name}.*belongs to another cluster", "and says so")
    shutil.rmtree(member.data)
    output("mv", away, member.data)
    member.server.start()


def promoted_alone(cluster, coordinator):
    """db1 does its fence again while db2 is promoted already; then its host goes down."""
    old, new = cluster.members
    old.restart_agent(TIDEMARK_TEST_PAUSE="fenced-closed")
    results = []
    thread = threading.Thread(target=lambda: results.append(
        coordinator.cli("restore", "t1", "--yes", "--primary=db2")))
    thread.start()
    first = poll(lambda: stopped_below(old.state_dir), 120, "the fence")
    os.kill(first, signal.SIGCONT)
    poll(lambda: last_job(new).get("held_at") == "recovered", 120, "db2 to be promoted")
    second = poll(lambda: stopped_below(old.state_dir), 120, "the second fence")
    os.kill(second, signal.SIGTERM)
    os.kill(second, signal.SIGCONT)
    thread.join()
    is_status(results[0], "partial", "a host shuts down in its fence: partial")
    status = last_job(old)
    is_((status["state"], status["step"]), ("failed", "fenced"), "its part is still fenced")
    ok(not old.server.running(), "its old server does not run beside the new primary")
    old.restart_agent()


def shutdown_in_fence(cluster, coordinator):
    """The new primary can be finished: nobody is given back."""
    old, new = cluster.members
    promoted_alone(cluster, coordinator)
    done = coordinator.cli("abort")
    is_status(done, "refused", "abort is refused")
    like(done.err, "(?s)db2 may accept writes.*db1.*cluster resume", "and says why")
    is_(writers(cluster), ["db2"], "one server accepts writes")
    is_status(coordinator.cli("resume"), 0, "resume")
    cluster.primary, cluster.standbys = new, [old]
    cluster.wait_attached(new.server.timeline())
    is_(writers(cluster), ["db2"], "one server accepts writes, in the end")


def promoted_and_given_up(cluster, coordinator):
    """The standby has followed the promoted server: another promotion would leave it behind."""
    job = prepare(coordinator)
    coordinator.agent.api("POST", f"/restores/{job}/execute", {})
    newest(coordinator, "executed", "execute")
    like(coordinator.agent.api("GET", "/health")[1]["hint"], f"`tidemark cluster resume {job}` "
         "verifies it", "executed: health says that it is not verified")
    done = coordinator.cli("status")
    is_status(done, "busy", "executed: cluster status")
    like(done.out, f"restore {job} to t1: executed, in step verifying,.* not verified yet",
         "executed: and says so")
    new = cluster.primary
    part = f"/jobs/{last_job(new)['id']}"
    status, answer = new.agent.api("DELETE", part)
    is_((status, answer.get("code")), (409, "refused"), "a part does not end by the way")
    is_(new.agent.api("DELETE", part + "?force=1")[0], 200, "db2's part is given up")
    coordinator.agent.api("POST", f"/restores/{job}/verify", {})
    journal = newest(coordinator, "failed", "verify")
    is_(journal["error"]["code"], "refused", "the rest is not finished without it")
    like(journal["error"]["text"], "given up, and node db1 has followed", "and says why")
    is_status(coordinator.cli("abort"), 0, "abort")
    is_status(coordinator.cli("restore", "t1", "--yes", "--primary=db2"), 0, "and restore anew")
    cluster.wait_attached(new.server.timeline())


def left_in_fence(cluster, coordinator):
    """The promoted server was given up and another node is fenced: one command ends it, and no
    second server accepts writes."""
    old, new = cluster.members
    promoted_alone(cluster, coordinator)
    is_(new.agent.api("DELETE", f"/jobs/{last_job(new)['id']}?force=1")[0], 200, "db2 is given up")
    is_status(coordinator.cli("abort"), 0, "abort")
    status = last_job(old)
    is_((status["state"], status["step"], status.get("given_up")), ("cancelled", "fenced", True),
        "db1 is given up in its fence")
    ok(not old.server.running(), "its old server stays down")
    is_(old.health(), "partial", "health says so")
    is_(writers(cluster), ["db2"], "one server accepts writes")
    is_status(coordinator.cli("restore", "t1", "--yes", "--primary=db2"), 0, "and restore anew")
    cluster.wait_attached(new.server.timeline())


def given_up_on_its_way(cluster, coordinator):
    """The job dies when it has started the server: given up, that is not promoted after all."""
    old, new = cluster.members
    new.restart_agent(TIDEMARK_TEST_STOP="recovering-started")
    is_status(coordinator.cli("restore", "t1", "--yes", "--primary=db2"), "partial",
              "db2's job dies")
    new.restart_agent()
    is_(last_job(new)["step"], "recovering", "while its server recovers")
    is_status(coordinator.cli("abort"), 0, "abort")
    is_(last_job(new)["state"], "cancelled", "it is given up")
    ok(not new.server.running(), "and its server is stopped")
    is_([m.health() for m in cluster.members], ["partial"] * 2, "health says so")
    isnt(new.server.start(check=False).returncode, 0, "nobody starts it")
    is_status(coordinator.cli("restore", "t1", "--yes", "--primary=db2"), 0, "and restore anew")
    cluster.wait_attached(new.server.timeline())


def main():
    box = tm.need_root() or tm.Sandbox("give-up")
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal")
    cluster = Cluster(box, ("db1", "db2")).start()
    new = cluster.members[1]
    conninfo = new.conninfo_to(new).replace("application_name=db2", "application_name=%n")
    coordinator = Coordinator(box, cluster, options={
        "coordinator": {"primary_conninfo": f"{conninfo} password={SECRET}",
                        "agent_timeout": "5min"}}).start()
    cluster.primary.server.pgbench_init(1)
    is_status(coordinator.cli("snapshot", "--tag", "t1"), 0, "cluster snapshot")
    repository_away(cluster, coordinator)
    one_stays_away(cluster, coordinator)
    fence_waits(cluster, cluster.primary)
    other_data(cluster, coordinator, new)
    shutdown_in_fence(cluster, coordinator)
    promoted_and_given_up(cluster, coordinator)
    left_in_fence(cluster, coordinator)
    given_up_on_its_way(cluster, coordinator)
    cluster.stop()


run(main)
