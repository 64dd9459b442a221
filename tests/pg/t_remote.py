#!/usr/bin/env python3
# check: build=asan timeout=400
"""A node's main path from another host: `tidemark --agent=https://…` snapshots, shows, restores a
real server; a connection that is lost loses no job."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
from certificates import Authority  # noqa: E402
from node import conf_text, run_program  # noqa: E402
from s3 import free_ports  # noqa: E402


class Remote:
    """A node and, elsewhere as it were, a configuration with nothing but a certificate."""

    def __init__(self, box):
        authority, self.port = Authority(box.mkdir("ca")), free_ports(1)[0]
        agent = authority.issue("db1", "agent", ["DNS:db1"])
        self.node = Node(box, [box.volume("pgdata", 448 * MIB)], name="db1", options={
            "tidemark": {"freeze_deadline": "60s"},
            "tls": {"listen": f"127.0.0.1:{self.port}", **agent.options}})
        self.conf = box.write("ops.conf", conf_text({
            "tidemark": {"state_dir": box.join("ops-state")},
            "tls": authority.issue("ops", "coordinator").options}))
        self.address = (f"--agent=https://127.0.0.1:{self.port}", "--agent-node=db1")
        self.program = os.path.join(self.node.programs, "tidemark")

    def __call__(self, *args):
        return run_program(self.program, *self.address, *args, conf=self.conf)


def test_main_path(remote):
    server = remote.node.server
    server.psql("create table t (i int); insert into t values (1)")
    done = remote("snapshot", "--tag", "t1")
    is_status(done, 0, "a snapshot")
    like(remote("list").out, r"(?m)\bt1\b", "is listed")
    is_status(remote("verify", "t1"), 0, "verified")
    is_status(remote("snapshot", "--tag", "t1"), "busy", "a tag that is taken")
    server.psql("drop table t")
    done = remote("restore", "--dry-run", "t1")
    is_status(done, 0, "the plan of a restore")
    is_(server.psql("select count(*) from pg_class where relname = 't'"), "0", "touches nothing")
    done = remote("restore", "--yes", "t1")
    is_status(done, 0, "a restore")
    like(done.out, "is complete: the server runs on timeline 2", "says where the server is")
    is_(server.psql("select i from t"), "1", "the table is back")
    like(remote("jobs").out, r"(?m)^\w+ +restore +complete", "jobs")
    is_status(remote("status"), 0, "status")
    done = remote("check")
    is_status(done, 0, "check") or diag(done.out)
    like(done.out, r"(?m)\A\w+ +agent +answers: what follows is what it found$",
         "check: the agent's own host, not this one")
    like(done.out, r"(?m)^ok +archiving +segment \w+ was ended", "check: its server")
    log = tail(remote.node.agent.log, 100)
    for path in ("/snapshots", "/restores", "/verifications"):
        like(log, f'method=POST path={path} subject="CN=ops,OU=coordinator,O=Tests" serial=', path)
    ok(not os.path.exists(os.path.dirname(remote.conf) + "/ops-state"), "nothing happened here")


def test_lost_connection(remote):
    node = remote.node
    node.agent.stop()
    node.sections["tidemark"]["rate_limit"] = "16MiB"
    node.write_conf()
    node.agent.start()
    with subprocess.Popen([remote.program, *remote.address, "snapshot", "--tag", "t2"],
                          env={**os.environ, "TIDEMARK_CONFIG": remote.conf}, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as command:
        def copying():
            jobs = node.agent.api("GET", "/jobs")[1]["jobs"]
            return next((job["id"] for job in jobs if job.get("running")
                         and job.get("progress", {}).get("bytes_done", 0) > 0), None)
        job = poll(copying, 60, "the job to copy")
        node.agent.kill()
        errors = command.communicate(timeout=120)[1]
    is_(command.returncode, EXIT["device"], "the agent is killed: the command line ends")
    like(errors, "error: the connection to the agent ended; the job may go on without it\n"
                 f"hint: follow it with `tidemark jobs --follow {job}` once the agent is back\n",
         "says what of, and how to go on watching")
    done = remote("status")
    is_status(done, "device", "nobody answers then")
    like(done.err, "hint: does it run there, with \\[tls\\] listen\\?\n", "the hint")
    node.agent.start()
    done = remote("jobs", "--follow", job)
    is_status(done, 0, "the job went on and ends well")
    like(remote("list").out, r"(?m)\bt2\b", "its snapshot is there")


def main():
    need_root()
    need_tools("openssl")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal")
    remote = Remote(Sandbox("remote"))
    remote.node.start()
    test_main_path(remote)
    test_lost_connection(remote)


run(main)
