#!/usr/bin/env python3
"""Jobs with a real server: who may run beside whom, Ctrl-C, kill -9 of agent and job, and what a
restarted agent makes of it. A snapshot is held up by an archive_command that waits while a file is
there; a restore by SIGSTOP."""
import fcntl
import json
import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403


HELD = "checking the archive"  # the phase that waits for the first segment to be archived


def hold(node, box):
    """Archiving stands still, and with it a snapshot, until release()."""
    path = box.join("hold")
    node.server.psql("alter system set archive_command = "
                     f"'while test -e {path}; do sleep 0.1; done; {node.archive_command}'")
    node.server.psql("select pg_reload_conf()")
    box.write("hold", "")
    return path


def release(path):
    os.unlink(path)


def status(node, job):
    return node.agent.api("GET", f"/jobs/{job}")[1]


def wait_phase(node, job, phase):
    poll(lambda: status(node, job).get("phase") == phase, 60, f"job {job} at {phase}")


def pid_of(node, job):
    with open(f"{node.state_dir}/jobs/{job}/lock", encoding="ascii") as file:
        return int(file.read())


def start_snapshot(node, tag):
    code, body = node.agent.api("POST", "/snapshots", {"tag": tag})
    is_(code, 202, f"snapshot {tag} is accepted")
    wait_phase(node, body["id"], HELD)
    return body["id"]


def busy(node, what, method, path, body, detail):
    code, answer = node.agent.api(method, path, body)
    is_((code, answer.get("code")), (409, "busy"), f"{what}: 409 busy")
    like(answer.get("detail", ""), detail, f"{what}: says what runs")


def test_beside_snapshot(node, box):
    path = hold(node, box)
    job = start_snapshot(node, "held")
    held = rf"a snapshot \(job {job}\) is running on this node"
    busy(node, "a second snapshot", "POST", "/snapshots", {"tag": "second"}, held)
    busy(node, "a restore beside a snapshot", "POST", "/restores", {"snapshot": "first"}, held)
    done = node.cli("snapshot", "--tag", "second")
    is_status(done, "busy", "tidemark snapshot: exit status")
    like(done.err, rf"^error: {held}\nhint: ", "and message")
    done = node.cli("snapshot", "--tag", "second", "--local")
    is_status(done, "busy", "the same without the agent")
    done = node.cli("restore", "first", "--local")
    is_status(done, "busy", "and for a restore without the agent")
    code, answer = node.agent.api("POST", "/snapshots", {"tag": "first"})
    is_((code, answer["code"]), (409, "busy"), "a tag that is in use: 409")
    like(answer["detail"], "^tag 'first' is taken by snapshot [0-9a-f]{32}$", "and says by whom")

    node.agent.kill()
    pid = pid_of(node, job)
    ok(not process_gone(pid), "the job outlives kill -9 of the agent")
    node.agent.start()
    like(tail(node.agent.log, 200), f"job is running, attached to it: job={job}",
         "the restarted agent finds it")
    is_(status(node, job)["running"], True, "and says that it runs")
    release(path)
    is_(node.agent.wait_job(job)["state"], "complete", "it ends well")
    like(node.cli("list").out, "(?m)^held ", "and its snapshot is there")


def test_kill_job(node, box):
    path = hold(node, box)
    job = start_snapshot(node, "killed")
    kill_pid(pid_of(node, job))
    poll(lambda: status(node, job)["state"] == "failed", 30, "the agent to see the death")
    error = status(node, job)["error"]
    like(error["text"], "^interrupted: ", "kill -9 of a job: failed")
    like(error["hint"], rf"^start it again.*/jobs/{job}/log", "with a hint: again, and its log")
    for where in ([], ["--local"]):
        done, _ = run_and_signal(node, "snapshot", lambda j: j["phase"] == HELD, "snapshot",
                                 "--tag", "killed", *where, kill="job")
        is_status(done, "internal", f"the command line that watched it {where}")
        like(done.err, r"\nhint: start it again", "has the hint as well")
    done, job = run_and_signal(node, "snapshot", lambda j: j["phase"] == HELD, "snapshot", "--tag",
                               "killed", kill="agent")
    like(done.err, "the agent stopped; the job goes on without it\n", "kill -9 of the agent")
    kill_pid(pid_of(node, job))
    node.agent.start()
    is_(status(node, job)["state"], "failed", "and of the job before its restart: failed")
    done, job = run_and_signal(node, "snapshot", lambda j: j["phase"] == HELD, "snapshot", "--tag",
                               "killed", kill="both")
    is_status(done, "internal", "kill -9 of both: nothing goes on")
    like(done.err, rf"job {job} ended without a word\nhint: start it again", "is not said either")
    node.agent.start()
    is_(status(node, job)["state"], "failed", "kill -9 of both: failed after the restart")
    release(path)
    unlike(node.cli("list").out, "killed", "nothing of them is visible")
    is_(node.agent.api("GET", "/health")[0], 200, "the node is healthy")
    is_status(node.cli("snapshot", "--tag", "killed"), 0, "the tag can be used")


def is_free(node, job):
    """Nobody holds the lock of the job."""
    with open(f"{node.state_dir}/jobs/{job}/lock", "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except BlockingIOError:
            return False
    return True


def run_and_signal(node, job_type, until, *args, kill=None):
    """tidemark ARGS; once the newest job of this type is `until`, SIGINT to tidemark alone, or
    SIGKILL to the job, the agent, or both: to the agent last, and it does not see the other's."""
    process = subprocess.Popen([os.path.join(node.programs, "tidemark"), *args], text=True,
                               env={**os.environ, "TIDEMARK_CONFIG": node.conf},
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, start_new_session=True)

    def reached():
        jobs = [j for j in node.agent.api("GET", "/jobs")[1]["jobs"] if j["type"] == job_type]
        return jobs[-1]["id"] if jobs and jobs[-1]["running"] and until(jobs[-1]) else None
    job = poll(reached, 60, f"a {job_type} to signal")
    if kill == "both":
        node.agent.signal(signal.SIGSTOP)
    if kill in ("job", "both"):
        kill_pid(pid_of(node, job))
        poll(lambda: is_free(node, job), 20, "the lock of the job, which its children have, too")
    if kill in ("agent", "both"):
        node.agent.kill()
    if not kill:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err), job


def catches_interrupt(process):
    """A SIGINT would reach a handler, and the last one has."""
    with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
        fields = dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)
    bit = 1 << (signal.SIGINT - 1)
    return int(fields["SigCgt"], 16) & bit and not int(fields["ShdPnd"], 16) & bit


def run_unanswered(node, interrupts):
    """`tidemark snapshot` whose agent does not answer until it got so many SIGINT. (With a named
    configuration it would ask before that for the agent's own, and could just end.)"""
    node.agent.signal(signal.SIGSTOP)
    process = subprocess.Popen([os.path.join(node.programs, "tidemark"), "snapshot", "--tag",
                                "interrupted", f"--agent=unix:{node.socket}"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, start_new_session=True)
    try:
        poll(lambda: catches_interrupt(process), 20, "tidemark to expect a signal")
        process.send_signal(signal.SIGINT)
        is_(process.stderr.readline(), "\n", "a line for the ^C of the terminal")
        first = process.stderr.readline()
        if interrupts > 1:  # one that comes with the first does not count
            poll(lambda: process.send_signal(signal.SIGINT) or process.poll() is not None, 20,
                 "tidemark to leave", 0.1)
    finally:
        node.agent.signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, first + err)


def test_ctrl_c(node, box):
    path = hold(node, box)
    done, job = run_and_signal(node, "snapshot", lambda j: j["phase"] == HELD,
                               "snapshot", "--tag", "interrupted")
    is_status(done, "cancelled", "Ctrl-C in a snapshot: cancelled")
    like(done.err, "cancelling; press Ctrl-C again to leave without waiting\n", "and says so")
    is_(status(node, job)["state"], "cancelled", "the job is cancelled")
    done = run_unanswered(node, 1)
    is_status(done, "cancelled", "Ctrl-C while the job is made: cancelled")
    like(done.err, "waiting for the job's id; press Ctrl-C again", "and says so")
    last = node.agent.api("GET", "/jobs")[1]["jobs"][-1]
    is_((last["state"], last["id"] != job), ("cancelled", True), "the job that was made, too")
    done = run_unanswered(node, 2)
    is_status(done, "cancelled", "Ctrl-C twice while the job is made: gone at once")
    like(done.err, "a job may have been started\nhint: `tidemark jobs` shows it, `tidemark cancel "
         "JOB` ends it\n$", "and says how to end it")
    for left in node.agent.api("GET", "/jobs")[1]["jobs"]:
        if left["running"]:
            is_status(node.cli("cancel", left["id"]), 0, "as it can be")
            node.agent.wait_job(left["id"])
    release(path)
    unlike(node.cli("list").out, "interrupted", "nothing is visible")


def test_beside_restore(node):
    code, body = node.agent.api("POST", "/restores", {"snapshot": "first", "verify": "quick"})
    is_(code, 202, "a restore is prepared")
    job = body["id"]
    is_(node.agent.wait_job(job)["state"], "prepared", "and waits")
    is_(node.server.running(), True, "the server still runs")
    code, answer = node.agent.api("POST", f"/restores/{job}/verify", {})
    is_((code, answer["code"]), (409, "refused"), "it cannot be verified before it is executed")
    is_(node.agent.api("POST", f"/restores/{job}/execute", {})[0], 202, "execute")
    pid = pid_of(node, job)
    os.kill(pid, signal.SIGSTOP)
    running = rf"a restore \(job {job}\) is running on this node"
    busy(node, "a second restore", "POST", "/restores", {"snapshot": "first"}, running)
    busy(node, "a snapshot while a restore runs", "POST", "/snapshots", {"tag": "x"}, running)
    busy(node, "execute twice", "POST", f"/restores/{job}/execute", {}, "is running")
    is_status(node.cli("snapshot", "--tag", "x", "--local"), "busy", "the same without the agent")
    os.kill(pid, signal.SIGCONT)
    is_(node.agent.wait_job(job)["state"], "executed", "executed")
    code, health = node.agent.api("GET", "/health")
    is_((code, health["status"], health["job"]), (503, "recovering", job), "not verified: 503")
    is_status(node.cli("status"), "busy", "tidemark status")
    is_(node.agent.api("POST", f"/restores/{job}/verify", {})[0], 202, "verify")
    is_(node.agent.wait_job(job)["state"], "complete", "complete")
    is_(node.agent.api("GET", "/health")[1]["status"], "ok", "health is ok")


def test_one_run(node):
    """Where nobody reads the plan one process does it all, and plans once."""
    body = {"snapshot": "first", "verify": "quick", "execute": True}
    code, answer = node.agent.api("POST", "/restores", body)
    is_(code, 202, "a restore in one run")
    job = node.agent.wait_job(answer["id"])
    is_((job["state"], job["plan"]["tag"]), ("complete", "first"), "it is complete, with its plan")
    with open(os.path.join(node.state_dir, "jobs", answer["id"], "log"), encoding="utf-8") as file:
        log = file.read()
    is_((log.count("job starts"), log.count("step=planned")), (1, 1), "one process, one plan")


def test_ctrl_c_planning(node):
    """Whether the cancel or the end of the plan comes first: nothing is executed."""
    process = subprocess.Popen([os.path.join(node.programs, "tidemark"), "restore", "first"],
                               env={**os.environ, "TIDEMARK_CONFIG": node.conf}, text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, start_new_session=True)
    is_(process.stderr.readline(), "planning\n", "a restore plans")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    is_status(Result(process.returncode, out, err), "cancelled", "Ctrl-C while it plans")
    job = node.agent.api("GET", "/jobs")[1]["jobs"][-1]["id"]
    is_(node.agent.wait_job(job)["state"], "cancelled", "the job is cancelled")
    is_(node.server.running(), True, "the server runs")


def test_detach_and_resume(node):
    """Ctrl-C after `marked` only stops watching; kill -9 of both; the restarted agent finishes."""
    done, job = run_and_signal(node, "restore",
                               lambda j: j.get("step") in ("written", "configured", "recovering"),
                               "restore", "first", "--verify=quick")
    is_status(done, "partial", "Ctrl-C in a late restore: detached")
    like(done.err, rf"left restore {job} running: it is not finished\nhint: `tidemark jobs "
         "--follow", "and says how to watch it")
    state = node.agent.wait_job(job)["state"]
    is_(state, "complete", "the restore went on to its end by itself")


def test_killed_restore(node):
    code, body = node.agent.api("POST", "/restores", {"snapshot": "first", "verify": "quick"})
    job = body["id"]
    node.agent.wait_job(job)
    node.agent.api("POST", f"/restores/{job}/execute", {})

    steps = ("marked", "pulling", "written", "configured", "recovering")

    def marked():
        now = status(node, job)
        return now["running"] and now.get("step") in steps
    poll(marked, 60, "the restore to mark its volume", 0.01)
    pid = pid_of(node, job)
    node.agent.kill()
    kill_pid(pid)
    like(node.cli("status", "--json").out, '"status":"partial"', "kill -9 of both: partial")
    is_status(node.cli("status"), "partial", "tidemark status")
    done = node.cli("snapshot", "--tag", "y")
    is_status(done, "partial", "no snapshot of half a restore")
    like(done.err, rf"restore {job} is not finished\nhint: finish it with `tidemark restore "
         "--resume", "and says what to do")
    node.agent.start()
    is_(node.agent.wait_job(job)["state"], "complete", "the restarted agent finishes it")
    is_(node.server.psql("select count(*) from t"), "1000", "with the right data")


def main():
    box = need_root() or Sandbox("jobs")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal")
    node = Node(box, volumes=[box.volume("pgdata", 400 * MIB)])
    node.start()
    node.server.psql("create table t as select generate_series(1, 1000) as i")
    is_status(node.cli("snapshot", "--tag", "first"), 0, "a snapshot is taken")
    test_beside_snapshot(node, box)
    test_kill_job(node, box)
    test_ctrl_c(node, box)
    node.server.psql("alter system reset archive_command")
    node.server.psql("select pg_reload_conf()")
    node.server.psql("drop table t")
    test_beside_restore(node)
    test_one_run(node)
    is_(node.server.psql("select count(*) from t"), "1000", "the table is back")
    test_ctrl_c_planning(node)
    test_detach_and_resume(node)
    test_killed_restore(node)
    lines = [json.loads(line) for line in node.cli("jobs", "--json").out.splitlines()]
    ok(all(not line["running"] for line in lines), "nothing runs at the end")


run(main)
