#!/usr/bin/env python3
"""manager = systemd:UNIT against a real systemd, which boots in namespaces of its own (pid, mount,
ipc, net, cgroup): start, stop, a unit that fails, one that does not stop, one that is stopped
while systemd would restart it."""
import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from pg_lib import Tool  # noqa: E402
from systemd import UNIT, boot, unit_text  # noqa: E402

class InsideTool(Tool):
    """tool_pg in systemd's namespaces, where pids are other numbers."""

    systemd = None

    def args(self, *args, **options):
        return self.systemd.enter(*super().args(*args, **options))


def test_start_stop(systemd, tool, server):
    systemd.unit(unit_text(server))
    is_(tool("state").out, "stopped 0", "stopped at first")
    done = tool("start")
    is_status(done, 0, "start")
    server.wait_ready()
    like(tool("state").out, r"^running \d+$", "the server runs")
    is_(systemd.state(), "active", "as a unit of systemd")
    is_status(tool("start"), "busy", "a second start is refused")
    is_status(tool("start", "work_mem=1MB"), "busy", "with settings too")
    is_status(tool("stop"), 0, "stop")
    is_(tool("state").out, "stopped 0", "the server is gone")
    poll(lambda: systemd.state() == "inactive", 10, "the unit's end")
    is_status(tool("stop"), 0, "stop of a stopped unit")
    is_status(tool("start", "work_mem=1MB"), "config", "settings cannot be passed")


def test_restart_always(systemd, tool, server):
    """A server that died and that systemd is about to restart: stop has to reach systemd."""
    systemd.unit(unit_text(server, Restart="always", RestartSec="3"))
    is_status(tool("start"), 0, "start of a unit with Restart=always")
    server.wait_ready()
    kill_pid(server_pid_outside(server))
    poll(lambda: systemd.state() == "activating", 10, "systemd's wish to restart it")
    is_status(tool("stop"), 0, "stop between death and restart")
    poll(lambda: systemd.state() in ("inactive", "failed"), 10, "the unit's end")
    poll(lambda: systemd.ctl("show", "-p", "Job", "--value", UNIT).out.strip() in ("", "0"), 10,
         "no job left")
    is_(tool("state").out, "stopped 0", "it stays stopped")


def server_pid_outside(server):
    """pid of the postmaster as this namespace sees it: postmaster.pid holds another number."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"/postgres") and os.fsencode(server.data) in words:
            return int(pid)
    raise RuntimeError("no postmaster")


def test_failures(systemd, tool, server):
    systemd.unit(unit_text(server, ExecStart=f"{tm.PG_BIN}/postgres -D {server.data} -c port=x"))
    done = tool("start")
    is_status(done, "postgres", "a unit that fails")
    like(done.err, rf"unit {UNIT} (failed|did not start)", "says which unit")
    like(done.err, r"hint: journalctl -u", "and where to look")
    done = tool("start", postgresql__manager="systemd:no-such-unit.service")
    is_status(done, "postgres", "a unit that does not exist")
    like(done.err, "no-such-unit.service", "is named")
    # A smart shutdown waits for its clients; SIGSTOP would not do: systemd sends SIGCONT.
    systemd.unit(unit_text(server, KillSignal="SIGTERM"))
    is_status(tool("start"), 0, "start after a failure (the start limit is reset)")
    server.wait_ready()
    pid = server_pid_outside(server)
    with subprocess.Popen([os.path.join(tm.PG_BIN, "psql"), "-X", "-h", server.socket, "-p",
                           str(server.port), "-U", "postgres", "-c", "select pg_sleep(300)"],
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as client:
        poll(lambda: server.psql("select count(*) from pg_stat_activity "
                                 "where query ~ '^select pg_sleep'") == "1", 10, "a busy client")
        done = tool("stop", postgresql__start_timeout="5s")
        is_status(done, "postgres", "a server that does not stop is an error")
        like(done.err, "did not stop within 5 s", "that says so")
        ok(not process_gone(pid), "and it is not killed")
        os.kill(pid, signal.SIGINT)  # fast: ends the client's session
        poll(lambda: process_gone(pid), 30, "the end after a fast shutdown")
        client.wait()
    is_(tool("state").out, "stopped 0", "once it can, it stops")


def main():
    need_root()
    need_tools("unshare", "nsenter", "systemctl")
    box = Sandbox("pgsystemd")
    server = Server(box, box.join("data"))
    server.init()
    systemd = boot(box)
    tool = InsideTool(box, server, **{"postgresql.manager": f"systemd:{UNIT}"})
    tool.systemd = systemd
    test_start_stop(systemd, tool, server)
    test_restart_always(systemd, tool, server)
    test_failures(systemd, tool, server)


run(main)
