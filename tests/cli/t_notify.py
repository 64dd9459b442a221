#!/usr/bin/env python3
# check: timeout=300
"""[notify]: a command and a webhook hear of every end of a job, and whatever they do the job stays
what it is. Most jobs here are verifications of a snapshot that is not there: no server is needed
for these."""
import glob
import http.server
import json
import os
import re
import socket
import ssl
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from certificates import Authority  # noqa: E402
from tm import *  # noqa: E402,F403
from node import Node, conf_text, make_repository, run_program  # noqa: E402

SECRET = "T0-hook-secret"


class Hooks:
    """A web server that keeps what was posted. `answers`: the statuses of the next requests, then
    200; None is no answer until close()."""

    def __init__(self):
        self.posts, self.answers, self.closing = [], [], threading.Event()
        hooks = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = hooks.answers.pop(0) if hooks.answers else 200
                hooks.posts.append((self.path, self.headers["Content-Type"], body.decode()))
                if status is None:
                    hooks.closing.wait(60)
                    return
                self.send_response(status)
                self.send_header("Content-Length", "5")
                self.end_headers()
                self.wfile.write(b"done\n")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?key={SECRET}"

    def take(self):
        """The bodies that came since the last call."""
        posts, self.posts[:] = list(self.posts), []
        return [json.loads(body) for _, _, body in posts]

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


class World:
    """A repository and a state_dir; no agent and no server."""

    def __init__(self, box):
        self.box, self.state = box, box.mkdir("state")
        self.repository = make_repository(box)
        self.conf = box.join("notify.conf")
        self.configure({})
        is_status(self.cli("init"), 0, "a repository")

    def configure(self, notify):
        self.box.write("notify.conf", conf_text({
            "tidemark": {"cluster": "blue", "node": "db7", "state_dir": self.state,
                         "socket": self.box.join("none")},
            "repository": {"url": self.repository, "group": "postgres"}, "notify": notify}))

    def cli(self, *args):
        return run_program(os.path.join(BUILD, "tidemark"), *args, conf=self.conf)

    def fail(self, what, **notify):
        """A job that fails with this [notify]: (its id, what came of its notifications)."""
        self.configure(notify)
        before = set(glob.glob(self.state + "/jobs/*"))
        is_status(self.cli("verify", "nosuch"), "missing", f"{what}: the job's own status")
        directory = (set(glob.glob(self.state + "/jobs/*")) - before).pop()
        path = directory + "/notified.json"
        poll(lambda: os.path.exists(path), 60, f"{what}: {path}")
        with open(path, encoding="utf-8") as file:
            notified = json.load(file)["notified"]
        listed = [json.loads(x) for x in self.cli("jobs", "--json").out.splitlines()]
        job = [x for x in listed if x["id"] == os.path.basename(directory)][0]
        is_((job["state"], job["error"]["code"], job["notified"]), ("failed", "missing", notified),
            f"{what}: the job failed for its own reason, and says what came of telling")
        with open(directory + "/log", encoding="utf-8") as file:
            log = file.read()
        ok(SECRET not in log + json.dumps(notified), f"{what}: no secret in log and journal")
        return job["id"], notified, log


def test_both(world, hooks):
    out = world.box.join("command.out")
    command = f"{{ env | grep ^TIDEMARK_ | sort; id -u; cat; }} >{out}"
    job, notified, _ = world.fail("both", command=command, webhook=hooks.url)
    is_(notified, {"command": "ok", "webhook": "ok"}, "both heard of it")
    is_([post[:2] for post in hooks.posts], [(f"/hook?key={SECRET}", "application/json")],
        "one POST of JSON, to path and query")
    raw = hooks.posts[0][2]
    body = hooks.take()[0]
    want = {"event": "verification", "state": "failed", "cluster": "blue", "node": "db7",
            "job": job, "tag": "nosuch", "snapshot": None, "cluster_job": None,
            "last_good_verification": None}
    is_({key: body.get(key) for key in want}, want, "the body says which job of what")
    is_(body["error"]["code"], "missing", "why it failed")
    like(body["error"]["text"], "nosuch", "in words")
    like(body["started"] + body["ended"], r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ){2}$", "and when")
    ok(isinstance(body["duration_s"], int), "and how long it took")
    unlike(raw, f"{SECRET}|{re.escape(world.repository)}|{re.escape(out)}",
           "nothing of the configuration is in it")
    with open(out, encoding="utf-8") as file:
        lines = file.read().split("\n")
    is_(lines[:7], ["TIDEMARK_CLUSTER=blue", "TIDEMARK_EVENT=verification", f"TIDEMARK_JOB={job}",
                    "TIDEMARK_NODE=db7", "TIDEMARK_SNAPSHOT=", "TIDEMARK_STATE=failed",
                    "TIDEMARK_TAG=nosuch"], "the command has the facts in its environment")
    is_(lines[7:], ["0", raw], "runs as root, and the same JSON comes on stdin")


def test_retries(world, hooks):
    hooks.answers = [500, 503]
    _, notified, _ = world.fail("500 twice", webhook=hooks.url)
    is_((notified, len(hooks.take())), ({"webhook": "ok"}, 3), "500 twice, then 200: tried again")
    hooks.answers = [404]
    _, notified, log = world.fail("404", webhook=hooks.url)
    is_((notified, len(hooks.take())), ({"webhook": "the server answered with status 404"}, 1),
        "404: not tried again")
    like(log, r"warn: not told of the end.* hook=webhook err=\"the server answered with status 404",
         "and logged")
    hooks.answers = [302]
    _, notified, _ = world.fail("302", webhook=hooks.url)
    is_(notified, {"webhook": "the server answered with status 302"}, "no redirect is followed")
    hooks.answers = [500, 500]
    _, notified, _ = world.fail("500 always", webhook=hooks.url, retries=1)
    is_(notified, {"webhook": "2 tries: the server answered with status 500"}, "retries is a bound")
    hooks.take()
    hooks.answers = [None, None]
    _, notified, _ = world.fail("slow", webhook=hooks.url, retries=1, timeout="1s")
    like(notified["webhook"], r"^2 tries: no answer: .*time", "a server that never answers")
    is_(len(hooks.take()), 2, "was asked twice")


def test_dead(world):
    nobody = socket.socket()  # bound, but nobody listens: the port stays ours
    nobody.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{nobody.getsockname()[1]}/{SECRET}"
    _, notified, _ = world.fail("dead", webhook=url, retries=0)
    like(notified["webhook"], "^no answer: .*connect", "a server that is not there")
    nobody.close()


def test_stranger(world, box):
    """An https server whose certificate is of no CA that the system knows."""
    certificate = Authority(box.mkdir("ca")).issue("hook", names=["IP:127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.crt, certificate.key)
    hooks = Hooks()
    hooks.server.socket = context.wrap_socket(hooks.server.socket, server_side=True)
    url = hooks.url.replace("http:", "https:")
    _, notified, _ = world.fail("stranger", webhook=url)
    like(notified["webhook"], "^the server's certificate is not accepted: ", "refused, not retried")
    is_(hooks.take(), [], "and nothing was posted")
    hooks.close()


def test_commands(world):
    _, notified, log = world.fail("failing", command="echo no pager >&2; exit 3")
    is_(notified, {"command": "exit status 3: no pager"}, "a command that fails")
    like(log, "hook=command err=\"exit status 3: no pager\"", "is logged")
    pid = world.box.join("hang.pid")
    _, notified, _ = world.fail("hanging", command=f"echo $$ >{pid}; sleep 1000; :", timeout="1s")
    is_(notified, {"command": "'/bin/sh' did not end within 1 s"}, "a command that hangs")
    with open(pid, encoding="ascii") as file:
        ok(process_gone(int(file.read())), "was ended")


def test_conf(world):
    for value, what in (("ftp://x/", "ftp"), ("https://", "no host"), ("x", "no scheme"),
                        (f"file:///{SECRET}", "file")):
        world.configure({"webhook": value})
        done = world.cli("list")
        is_status(done, "config", f"webhook of {what}: refused")
        like(done.err, "the value is not valid, expected: http:// or https:// URL", "says what")
        unlike(done.err, SECRET, "and repeats no secret")


def told(hooks, count, what):
    poll(lambda: len(hooks.posts) >= count, 60, what)
    return sorted(hooks.take(), key=lambda body: body["ended"])


def test_node(box, hooks):
    """Jobs of an agent with a server: what is good is told as well."""
    node = Node(box, volumes=[box.volume("pgdata", 400 * MIB)],
                repository=make_repository(box, "node-repo"),
                options={"notify": {"webhook": hooks.url}})
    node.start()
    is_status(node.cli("snapshot", "--tag", "first"), 0, "a snapshot")
    body = told(hooks, 1, "the snapshot is told")[0]
    is_((body["event"], body["state"], body["tag"], body["error"]),
        ("snapshot", "complete", "first", None), "a snapshot that is complete")
    like(body["snapshot"] or "", "^[0-9a-f]{32}$", "with its id")
    is_status(node.cli("verify", "first"), 0, "a verification")
    last = told(hooks, 1, "the verification is told")[0]["last_good_verification"]
    is_((last["event"], last["tag"]), ("verification", "first"), "is the last good one")

    code, job = node.agent.api("POST", "/restores", {"snapshot": "first", "verify": "quick"})
    is_((code, node.agent.wait_job(job["id"])["state"]), (202, "prepared"), "a restore is planned")
    node.agent.api("POST", f"/restores/{job['id']}/execute", {})
    is_(node.agent.wait_job(job["id"])["state"], "executed", "and executed")
    is_(hooks.take(), [], "of which nothing is told")
    like(node.agent.api("GET", "/health")[1]["hint"],
         f"not verified yet: `tidemark restore --resume {job['id']}` verifies it",
         "health says what is next")
    node.agent.api("POST", f"/restores/{job['id']}/verify", {})
    is_(node.agent.wait_job(job["id"])["state"], "complete", "then it is verified")
    body = told(hooks, 1, "the restore is told")[0]
    is_((body["event"], body["state"], body["job"], body["tag"], body["step"]),
        ("restore", "complete", job["id"], "first", "complete"), "a restore that is complete: once")
    last = body["last_good_verification"]
    is_((last["job"], last["age_s"]), (job["id"], 0), "its own verification is the last good one")
    notified = poll(lambda: node.agent.api("GET", f"/jobs/{job['id']}")[1].get("notified"), 30,
                    "the job says so")
    is_(notified, {"webhook": "ok"}, "its status says so")
    test_cancelled(node, hooks)
    test_swept(node, box, hooks)


def test_cancelled(node, hooks):
    _, job = node.agent.api("POST", "/restores", {"snapshot": "first"})
    node.agent.wait_job(job["id"])
    is_status(node.cli("cancel", job["id"]), 0, "a planned restore is cancelled")
    bodies = told(hooks, 1, "that is told")
    is_([(x["job"], x["state"], x["error"]["code"]) for x in bodies],
        [(job["id"], "cancelled", "cancelled")], "though it had no process")


def test_swept(node, box, hooks):
    """A job whose process was killed: the agent that finds it has it told, once."""
    path = box.join("hold")
    box.write("hold", "")
    node.server.psql("alter system set archive_command = "
                     f"'while test -e {path}; do sleep 0.1; done; {node.archive_command}'")
    node.server.psql("select pg_reload_conf()")
    _, job = node.agent.api("POST", "/snapshots", {"tag": "killed"})
    poll(lambda: node.agent.api("GET", f"/jobs/{job['id']}")[1]["phase"] == "checking the archive",
         60, "the snapshot waits")
    with open(f"{node.state_dir}/jobs/{job['id']}/lock", encoding="ascii") as file:
        kill_pid(int(file.read()))
    node.agent.stop()
    os.unlink(path)
    node.agent.start()
    bodies = told(hooks, 1, "the dead job is told")
    is_([(x["job"], x["state"], x["tag"]) for x in bodies], [(job["id"], "failed", "killed")],
        "a job that was killed is told as failed")
    like(bodies[0]["error"]["text"], "^interrupted: ", "and why")
    node.sections["notify"]["on"] = "failure"
    node.write_conf()
    node.agent.stop()
    node.agent.start()
    is_status(node.cli("snapshot", "--tag", "quiet"), 0, "on = failure: a snapshot")
    is_status(node.cli("verify", "nosuch"), "missing", "and a job that fails")
    is_([(x["event"], x["state"]) for x in told(hooks, 1, "the failure is told")],
        [("verification", "failed")], "only that is told, and nothing twice")


def main():
    box = need_root() or Sandbox("notify")
    need_programs("tidemark", "tidemark-agent")
    world, hooks = World(box), Hooks()
    test_both(world, hooks)
    test_retries(world, hooks)
    test_dead(world)
    test_stranger(world, box)
    test_commands(world)
    test_conf(world)
    test_node(box, hooks)
    hooks.close()


run(main)
