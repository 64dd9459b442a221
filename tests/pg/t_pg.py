#!/usr/bin/env python3
"""agent/pg against a private server: sessions in a child under the server's user, start, stop and
state by every manager, pg_control."""
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from pg_lib import Tool  # noqa: E402


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(x) for x in file.read().split()]


def test_session(tool, server):
    done = tool("query", "", 0, "select 1, null, $1 || 'é'", "a b'c")
    is_status(done, 0, "a statement with a parameter")
    is_(json.loads(done.out), [["1", None, "a b'cé"]], "its row: text, null and UTF-8")
    done = tool("query", "template1", 0, "select current_database(), current_setting("
                "'application_name'), current_setting('synchronous_commit'), "
                "current_setting('search_path'), current_user")
    is_(done.out, '[["template1","tidemark","local","pg_catalog","postgres"]]',
        "database and settings of the session")
    done = tool("query", "", 0, "select nonsense", "--then", "select 2")
    like(done.out, r'^error: ERROR:  column "nonsense".*SQLSTATE 42703\)\n\[\["2"\]\]$',
         "an error leaves the session usable")
    is_status(tool("query", "", 0, "select 1; select 2"), "postgres", "one statement at a time")
    begin = time.monotonic()
    done = tool("query", "", 1, "select pg_sleep(60)", "--then", "select 3")
    like(done.out, r'^error: .*SQLSTATE 57014\)\n\[\["3"\]\]$', "a timeout cancels the statement")
    ok(time.monotonic() - begin < 10, "within its time")
    done = tool("query", "", 0, "select pg_terminate_backend(pg_backend_pid())", "--then",
                "select 4")
    is_status(done, "postgres", "a session that the server ended")
    like(done.err, "no connection|session was lost", "is an error, not a signal")
    done = tool("query", "", 0, "select repeat('x', 3000000), chr(10)")
    is_(len(json.loads(done.out)[0][0]), 3000000, "a long value")
    done = tool("query", "", 0, "select 1", postgresql__connection="host=/nonexistent")
    is_status(done, "postgres", "no server there")
    like(done.err, "connect to PostgreSQL: connection to server on socket", "says so")
    done = tool("query", "", 0, "select 1", postgresql__connection="nonsense")
    like(done.err, "missing .=. after", "a malformed connection string")
    done = tool("query", "", 0, "select 1", postgresql__os_user="nobody-here")
    like(done.err, "no account 'nobody-here'", "an unknown user")


def backends(server):
    return server.psql("select count(*) from pg_stat_activity where application_name = 'tidemark'")


def test_session_process(tool, server):
    with subprocess.Popen(tool.args("query", "", 0, "select pg_sleep(100)"),
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        poll(lambda: backends(server) == "1", 10, "the session")
        child = children(parent.pid)[0]
        with open(f"/proc/{child}/status", encoding="ascii") as file:
            status = dict(line.split(":\t", 1) for line in file.read().splitlines()
                          if ":\t" in line)
        want = pwd.getpwnam("postgres").pw_uid
        is_(status["Uid"].split(), [str(want)] * 4, "the child is the server's user in all ids")
        ok("0" not in status["Groups"].split(), "and not in root's group")
        with open(f"/proc/{child}/cmdline", "rb") as file:
            is_(file.read().split(b"\0")[1:], [b"pg-session", b""], "argv holds no parameters")
        links = [os.readlink(f"/proc/{child}/fd/{fd}") for fd in os.listdir(f"/proc/{child}/fd")]
        is_(sum(x.startswith("socket:") for x in links), 3,
            "descriptors: the parent's socket twice and the server's")
        parent.kill()
        parent.wait()
        poll(lambda: process_gone(child), 10, "the child's end")
        poll(lambda: backends(server) == "0", 10, "the backend's end")
        ok(True, "killing the parent ends child and statement")
    with subprocess.Popen(tool.args("query", "", 0, "select pg_sleep(100)"),
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as parent:
        poll(lambda: backends(server) == "1", 10, "the session")
        kill_pid(children(parent.pid)[0], wait_s=0)
        is_(parent.wait(10), tm.EXIT["postgres"], "killing the child is an error of the parent")
        like(parent.stderr.read(), "process ended", "with a text")
        poll(lambda: backends(server) == "0", 10, "the backend's end")
        ok(True, "and the server ends the statement")
    with subprocess.Popen(tool.args("query", "", 0, "select pg_sleep(100)"),
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as parent:
        poll(lambda: backends(server) == "1", 10, "the session")
        parent.send_signal(signal.SIGINT)
        is_(parent.wait(10), tm.EXIT["cancelled"], "cancel ends a running statement")
        poll(lambda: backends(server) == "0", 10, "the backend's end")


def test_servers(tool, server, box):
    """Who answers where a connection string, or what it names in a service file, leads to."""
    with socket.socket() as nobody:  # bound, but nobody listens: the port stays ours
        nobody.bind(("127.0.0.1", 0))
        free = nobody.getsockname()[1]
        path = box.write("services", f"""
[here]
host={server.socket}
port={server.port}
user=postgres
[nobody]
host=127.0.0.1
port={free}
[both]
host=127.0.0.1,{server.socket}
port={free},{server.port}
user=postgres
target_session_attrs=standby
""")
        os.chmod(path, 0o644)
        os.environ["PGSERVICEFILE"] = path
        here, gone = (server.socket, str(server.port)), ("127.0.0.1", str(free))
        for conninfos, want in (
                ((server.conninfo,), [(*here, "own")]),
                (("service=here",), [(*here, "own")]),
                (("service=nobody",), [(*gone, "nobody")]),
                (("service=nobody", "service=here"), [(*gone, "nobody"), (*here, "own")]),
                (("service=both",), [(*gone, "nobody"), (*here, "own")]),
                ((f"service=here host=127.0.0.1 port={free}",), [(*gone, "nobody")]),
                (("service=here", server.conninfo), [(*here, "own")])):
            done = tool("servers", *conninfos)
            found = json.loads(done.out) if is_status(done, 0, " and ".join(conninfos)) else []
            is_([(s["host"], s["port"], s["answer"]) for s in found], want, "who answers there")
        done = tool("servers", "service=lost")
        is_([s["answer"] for s in json.loads(done.out)], ["unclear"], "a service that is not there")
        like(done.out, "definition of service .*lost.* not found", "says so")
        del os.environ["PGSERVICEFILE"]


def test_control(tool, server):
    done = tool("control", server.data)
    is_status(done, 0, "pg_control is read")
    system_id = server.psql("select system_identifier from pg_control_system()")
    like(done.out, rf"^{system_id}\|1\|in production\|[0-9A-F]+/[0-9A-F]+\|16777216\|8192\|1\|100$",
         "its values")
    is_status(tool("control", "/nonexistent"), "postgres", "no such directory")
    copy = os.path.join(os.path.dirname(server.data), "broken")
    os.makedirs(os.path.join(copy, "global"))
    shutil.copy2(os.path.join(server.data, "PG_VERSION"), copy)
    with open(os.path.join(server.data, "global/pg_control"), "rb") as file:
        data = bytearray(file.read())
    data[40] ^= 1
    with open(os.path.join(copy, "global/pg_control"), "wb") as file:
        file.write(data)
    subprocess.run(["chown", "-R", "postgres", copy], check=True)
    done = tool("control", copy)
    is_status(done, "corrupt", "a damaged pg_control, about which pg_controldata only warns")


def open_files_of(pid):
    return {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}


def test_start_stop(tool, server, box):
    like(tool("state").out, rf"^running {server.pid()}$", "state of a running server")
    done = tool("start")
    is_status(done, "busy", "start of a running server")
    is_status(tool("stop"), 0, "stop")
    is_(tool("state").out, "stopped 0", "state of a stopped server")
    is_status(tool("stop"), 0, "stop of a stopped server")
    # Something of ours is open and not close-on-exec: the postmaster must not get it.
    with open(box.join("secret"), "w", encoding="ascii") as secret:
        os.set_inheritable(secret.fileno(), True)
        done = subprocess.run(tool.args("start", "work_mem=5MB", "cluster_name=it's \"me\" $HOME"),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=False, close_fds=False, text=True)
    is_(done.returncode, 0, f"start with settings {done.stderr}")
    server.wait_ready()
    is_(server.psql("select current_setting('work_mem') || current_setting('cluster_name')"),
        "5MBit's \"me\" $HOME", "the settings arrive unchanged")
    pid = server.pid()
    files = open_files_of(pid)
    ok(not any("secret" in x for x in files), "no descriptor of ours is inherited")
    log = os.path.join(tool.options["tidemark.state_dir"], "postgresql.log")
    ok(log in files, "the log in state_dir is, which postgres could not open itself")
    is_(os.getsid(pid), pid, "the postmaster leads a session of its own")
    with open(f"/proc/{pid}/environ", "rb") as file:
        ok(not any(x.startswith(b"TIDEMARK") for x in file.read().split(b"\0")),
           "its environment is clean")
    is_status(tool("stop"), 0, "stop again")
    begin = time.monotonic()
    with open(server.data + "/postgresql.conf", "a", encoding="ascii") as file:
        file.write("include_dir 'lost'\n")
    done = tool("start")
    is_status(done, "postgres", "start with a lost include_dir")
    like(done.err, r'"[^"]*/lost".*\| .*contains errors', "the line that names it is told, too")
    os.mkdir(server.data + "/lost")
    done = tool("start", "work_mem=nonsense")
    is_status(done, "postgres", "a setting that the server refuses")
    like(done.err, "invalid value for parameter \"work_mem\"", "its own words are in the error")
    ok(time.monotonic() - begin < 10, "without waiting for the time-out")


def test_stale_pid_file(tool, server):
    is_(tool("state").out, "stopped 0", "stopped before")
    path = os.path.join(server.data, "postmaster.pid")
    with subprocess.Popen(["sleep", "100"], cwd="/") as other:
        for pid, what in ((other.pid, "a process that is no postmaster"), (999999, "nobody")):
            with open(path, "w", encoding="ascii") as file:
                file.write(f"{pid}\n{server.data}\n0\n{server.port}\n/x\n\n0 0\nready   \n")
            is_(tool("state").out, "stopped 0", f"a pid file that names {what}")
        other.kill()
    with open(path, "w", encoding="ascii"):
        pass
    is_(tool("state").out, "stopped 0", "an empty pid file")
    os.unlink(path)


def test_stop_timeout(tool, server):
    is_status(tool("start"), 0, "start")
    server.wait_ready()
    pid = server.pid()
    os.kill(pid, signal.SIGSTOP)
    done = tool("stop", postgresql__start_timeout="5s")
    is_status(done, "postgres", "a server that does not stop is an error")
    like(done.err, "did not stop within 5 s", "that says so")
    ok(not process_gone(pid), "and it is not killed")
    os.kill(pid, signal.SIGCONT)
    poll(lambda: process_gone(pid), 20, "the end after SIGCONT")
    is_(tool("state").out, "stopped 0", "once it goes on, it stops")


def test_command(tool, server, box):
    script = box.write("manage", f"""#!/bin/sh
exec runuser -u postgres -- {tm.PG_BIN}/pg_ctl -D "$TIDEMARK_DATA_DIRECTORY" -l {server.log} -w "$@"
""", 0o755)
    by = {"postgresql__manager": f"command:{script} -t 60"}
    is_status(tool("start", **by), 0, "manager = command starts")
    like(tool("state").out, "^(starting|running) ", "the server is there")
    is_status(tool("start", "a=b", **by), "busy", "twice is refused")
    server.wait_ready()
    is_status(tool("stop", **by), 0, "and stops it")
    is_status(tool("start", "work_mem=1MB", **by), "config", "settings need pg_ctl")
    done = tool("start", postgresql__manager="command:/bin/echo no >&2; exit 3; :")
    is_status(done, "postgres", "a command that fails")
    like(done.err, "ended with status 3: no", "says why")


def main():
    need_root()
    box = Sandbox("pg")
    server = Server(box, box.join("data"))
    server.init()
    server.start()
    tool = Tool(box, server)
    test_session(tool, server)
    test_session_process(tool, server)
    test_servers(tool, server, box)
    test_control(tool, server)
    test_start_stop(tool, server, box)
    test_stale_pid_file(tool, server)
    test_stop_timeout(tool, server)
    test_command(tool, server, box)


run(main)
