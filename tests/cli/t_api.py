#!/usr/bin/env python3
"""The control socket without a server: statuses, problem documents, limits, permissions, who may
run beside whom by the agent's own locks."""
import fcntl
import grp
import http.client
import json
import os
import re
import signal
import socket
import stat
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
from node import conf_text, make_repository, run_program  # noqa: E402

NOBODY = 65534
JSON = {"Content-Type": "application/json"}


def request(path, method, url, body=None, headers=JSON, chunked=False):
    """(status, headers, decoded body)."""
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(30)
    connection.sock.connect(path)
    connection.request(method, url, body, headers, encode_chunked=chunked)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, answer.headers, json.loads(text) if text else None


def problem(agent, what, status, code, detail, *args, **options):
    got, headers, body = request(agent.socket, *args, **options)
    is_(got, status, f"{what}: status")
    is_(headers["Content-Type"], "application/problem+json", f"{what}: type")
    is_((body["status"], body["code"]), (status, code), f"{what}: code")
    like(body["detail"], detail, f"{what}: detail")
    return headers, body


def test_readers(agent):
    status, headers, body = request(agent.socket, "GET", "/health")
    is_((status, body["status"]), (200, "ok"), "GET /health")
    is_(headers["Content-Type"], "application/json", "is JSON")
    is_(request(agent.socket, "GET", "/jobs")[2], {"jobs": []}, "GET /jobs")
    is_(request(agent.socket, "GET", "/snapshots")[2], {"snapshots": [], "damaged": 0},
        "GET /snapshots")
    is_(request(agent.socket, "GET", "/version")[2]["api"], 1, "GET /version")


def test_problems(agent):
    problem(agent, "unknown path", 404, "missing", "^there is no /nothing$", "GET", "/nothing")
    headers, body = problem(agent, "wrong method", 405, "usage",
                            "^PUT is not possible on /snapshots$", "PUT", "/snapshots", "{}")
    is_((headers["Allow"], body["hint"]), ("GET, POST", "allowed: GET, POST"), "says what is")
    problem(agent, "unknown field", 400, "usage", r"^unknown field 'tga' \(did you mean 'tag'\?\)$",
            "POST", "/snapshots", '{"tga": "x"}')
    problem(agent, "unknown nested field", 400, "usage", "^target: unknown field 'typo'",
            "POST", "/restores", '{"snapshot": "x", "target": {"typo": 1}}')
    problem(agent, "a dry run that executes", 400, "usage", "contradict each other", "POST",
            "/restores", '{"snapshot": "x", "dry_run": true, "execute": true}')
    problem(agent, "missing field", 400, "usage", "^field 'tag' is missing$", "POST", "/snapshots",
            "{}")
    problem(agent, "wrong type", 400, "usage", "^field 'full' must be true or false$", "POST",
            "/snapshots", '{"tag": "x", "full": 1}')
    problem(agent, "bad tag", 400, "usage", "^'a b' cannot be a tag$", "POST", "/snapshots",
            '{"tag": "a b"}')
    problem(agent, "not JSON", 400, "usage", "^not valid JSON at line 1", "POST", "/snapshots", "{")
    problem(agent, "a key twice", 400, "usage", "duplicate object key", "POST", "/snapshots",
            '{"tag": "x", "tag": "y"}')
    problem(agent, "array", 400, "usage", "^expected a JSON object$", "POST", "/snapshots", "[]")
    problem(agent, "another content type", 415, "usage", "is not application/json", "POST",
            "/snapshots", '{"tag": "x"}', {"Content-Type": "text/plain"})
    long = '{"snapshot": "' + "x" * 70000 + '"}'
    problem(agent, "too long", 413, "usage", "longer than 64 KiB", "POST", "/restores", long)
    problem(agent, "longer than a topology", 413, "usage", "longer than 1024 KiB", "POST",
            "/snapshots", long.replace("x", "x" * 16))
    problem(agent, "too long without a length", 413, "usage", "longer than 64 KiB", "POST",
            "/restores", iter([long.encode()]), {**JSON, "Transfer-Encoding": "chunked"},
            chunked=True)
    problem(agent, "no such job", 404, "missing", "^there is no job 0{32}$", "GET",
            "/jobs/" + "0" * 32)
    problem(agent, "a job's name that climbs", 404, "missing", "^there is no /jobs/\\.\\./", "GET",
            "/jobs/..%2f..%2fetc")
    problem(agent, "execute nothing", 404, "missing", "^there is no job", "POST",
            "/restores/" + "0" * 32 + "/execute", "{}")
    problem(agent, "no such snapshot", 404, "missing", "", "GET", "/snapshots/nothing")
    is_(request(agent.socket, "GET", "/jobs")[2], {"jobs": []}, "no refused request left a job")


def test_idempotency(agent):
    def post(key, body):
        return request(agent.socket, "POST", "/verifications", body,
                       {**JSON, "Idempotency-Key": key})
    status, _, first = post("one", '{"snapshot": "nothing"}')
    is_(status, 202, "a request with a key")
    is_(post("one", '{"snapshot": "nothing"}')[2], first, "the same again: the same job")
    isnt(post("two", '{"snapshot": "nothing"}')[2], first, "another key: another job")
    is_(post("one", '{"snapshot": "other"}')[0], 422, "the same key for another request")
    is_(post("k" * 129, '{"snapshot": "x"}')[0], 400, "a key that is too long")
    done = agent.wait_job(first["id"])
    is_((done["state"], done["error"]["code"]), ("failed", "missing"), "the job says why it failed")
    status, _, body = request(agent.socket, "DELETE", "/jobs/" + first["id"], headers={})
    is_((status, body["code"]), (409, "refused"), "an ended job cannot be cancelled")


def test_socket(box, agent, conf):
    mode = stat.S_IMODE(os.stat(agent.socket).st_mode)
    log = tail(agent.log, 200)
    try:
        group = grp.getgrnam("tidemark")
        is_((mode, os.stat(agent.socket).st_gid), (0o660, group.gr_gid),
            "the socket is for group tidemark")
    except KeyError:
        is_(mode, 0o600, "without a group tidemark the socket is root's")
        like(log, "there is no group tidemark: only root can use the control socket", "and says so")
    like(log, r"request: method=POST path=/verifications uid=0 user=root pid=\d+ status=202",
         "who asked for what is logged")
    done = run_program(os.path.join(programs(box), "tidemark"), "jobs", conf=conf, user=NOBODY)
    is_status(done, "auth", "a user who may not use the socket")
    is_(done.err, f"error: connect to the agent at '{agent.socket}': Permission denied\n"
                  "hint: only root and members of group tidemark may use it: adduser USER tidemark,"
                  " then log in again\n", "is told what to do")
    second = run_program(agent.program, f"--config={conf}")
    is_status(second, "busy", "a second agent for the same state_dir")
    like(second.err, "another agent uses state_dir", "is refused")


def test_hanging_repository(box, agent):
    """A lease keeps everybody from opening tidemark.repo, as a server that is away would."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    with open(box.join("repo", "tidemark.repo"), "r+b") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(
            request(agent.socket, "POST", "/snapshots", '{"tag": "waits"}')))
        thread.start()
        poll(lambda: fcntl.fcntl(file, fcntl.F_GETLEASE) != fcntl.F_WRLCK, 20,
             "the agent to open tidemark.repo")
        status, _, job = request(agent.socket, "POST", "/verifications", '{"snapshot": "nothing"}')
        is_(status, 202, "while one request waits for the repository another starts a job")
        status = request(agent.socket, "DELETE", "/jobs/" + job["id"], headers={})[0]
        is_(status, 202, "and a third cancels it")
        ok(not answers, "the first still waits")
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    thread.join(60)
    is_([answer[0] for answer in answers], [202], "and gets its answer in the end")
    agent.wait_job(answers[0][2]["id"])
    agent.wait_job(job["id"])


def test_other_configuration(box, agent, conf, sections):
    """The socket in a file says nothing of the rest: who names another repository is not answered
    of the agent's."""
    def named(name, *args, **changes):
        path = box.write(name, conf_text({key: {**sections.get(key, {}), **changes.get(key, {})}
                                          for key in {**sections, **changes}}))
        return run_program(os.path.join(programs(box), "tidemark"), *args, f"--config={path}")
    other = {"repository": {"url": "file:///nonexistent/other"}}
    for args in (("list",), ("snapshot", "--tag=wrong"), ("expire", "--dry-run"), ("status",),
                 ("restore", "--yes", "x"), ("jobs",)):
        done = named("other.conf", *args, **other)
        is_status(done, "refused", f"another repository: {args[0]}")
        is_(done.err, f"error: the agent at '{agent.socket}' does not go by "
                      f"'{box.join('other.conf')}': repository.url is file:///nonexistent/other "
                      f"there and {sections['repository']['url']} with the agent\n"
                      f"hint: give its own file ({conf}), or --local to work by this one without "
                      "the agent\n", f"another repository: {args[0]}: says so")
    done = named("other.conf", "list", "--local", **other)
    is_status(done, "store", "--local: the file that was named")
    like(done.err, "/nonexistent/other", "--local: its repository")
    for what, changes in (("retention", {"retention": {"count": 1}}),
                          ("another cluster", {"tidemark": {"cluster": "other"}}),
                          ("a volume", {"volume pgdata": {"mount": "/nonexistent"}})):
        is_status(named("other.conf", "list", **changes), "refused", f"{what} differs")
    done = named("secret.conf", "list", postgresql={"connection": "host=/x password=open-sesame"})
    is_status(done, "refused", "another server differs")
    like(done.err, "postgresql.connection is host=/x there and not set", "without its password")
    is_status(named("same.conf", "list", tidemark={"lanes": 3}), 0, "another file, the same target")
    link = box.join("link.conf")
    os.symlink(conf, link)
    is_status(cli("list", f"--config={link}"), 0, "its own file by another name")


def test_ready(box, agent):
    """sd_notify(3), as a unit of Type=notify needs it."""
    agent.stop()
    for name in (box.join("notify"), "@" + os.path.basename(box.path)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(name.replace("@", "\0"))
            notify.settimeout(30)
            agent.start(NOTIFY_SOCKET=name)
            is_(notify.recv(100), b"READY=1", f"{name[0]}: systemd is told that the agent serves")
            agent.stop()
            is_(notify.recv(100), b"STOPPING=1", "and that it stops")
    agent.start()


def test_restart(box, agent, conf, sections):
    agent.kill()
    ok(os.path.exists(agent.socket), "kill -9 leaves the socket behind")
    done = run_program(os.path.join(programs(box), "tidemark"), "jobs", conf=conf, user=NOBODY)
    is_status(done, "auth", "that does not open it for others")
    is_status(cli("jobs", conf=conf), 0, "root does without")
    agent.start()
    is_(request(agent.socket, "GET", "/health")[0], 200, "a stale socket is replaced")
    other = {**sections, "tidemark": {**sections["tidemark"], "state_dir": box.mkdir("state2")}}
    second = run_program(agent.program, f"--config={box.write('second.conf', conf_text(other))}")
    is_status(second, "busy", "another state_dir, the same socket")
    like(second.err, "another agent answers on", "is refused")
    agent.stop()
    ok(not os.path.exists(agent.socket), "SIGTERM removes the socket")
    box.write("agent.sock", "x")
    done = run_program(agent.program, f"--config={conf}")
    is_status(done, "config", "a file where the socket should be")
    like(done.err, "is there and is not a socket", "is not removed")


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent")
    box = Sandbox("api")
    path = box.join("agent.sock")
    sections = {"tidemark": {"state_dir": box.mkdir("state"), "socket": path, "node": "n1"},
                "repository": {"url": make_repository(box)}}
    conf = box.write("agent.conf", conf_text(sections))
    is_status(cli("init", conf=conf), 0, "init")
    agent = Agent(box, conf, path, programs(box)).start()
    test_readers(agent)
    test_problems(agent)
    test_idempotency(agent)
    test_socket(box, agent, conf)
    test_hanging_repository(box, agent)
    test_other_configuration(box, agent, conf, sections)
    test_ready(box, agent)
    test_restart(box, agent, conf, sections)


run(main)
