#!/usr/bin/env python3
"""manager = systemd:UNIT against a real systemd, which boots in namespaces of its own (pid, mount,
ipc, net, cgroup): start, stop, a unit that fails, one that does not stop, one that is stopped
while systemd would restart it.
A mount namespace holds copies of other tests' mounts for its time.
check: alone
"""
import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from pg_lib import Tool  # noqa: E402

SYSTEMD = "/lib/systemd/systemd"
UNIT = "tidemark-test-postgresql.service"
BOOT = f"""#!/bin/sh
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
umount -R /sys/fs/cgroup 2>/dev/null || true
mkdir -p /sys/fs/cgroup /run/systemd/system
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export container=tidemark
exec {SYSTEMD} --system --unit=basic.target --log-target=console --show-status=false
"""


class Systemd:
    """PID 1 of its own namespaces; ends with all below it when it is killed."""

    def __init__(self, box):
        self.box = box
        self.log = box.join("log", "systemd.log")
        box.mkdir("log", 0o777)
        tm.on_fail(lambda: tm.diag(f"systemd log:\n{tm.tail(self.log)}"))
        boot = box.write("boot.sh", BOOT, 0o755)
        with open(self.log, "wb") as log:
            self.parent = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--ipc",
                 "--net", "--cgroup", boot], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True)
        self.pid = None
        box.before_clean.append(self.stop)

    def wait_running(self):
        def child():
            path = f"/proc/{self.parent.pid}/task/{self.parent.pid}/children"
            with open(path, encoding="ascii") as file:
                pids = file.read().split()
            return int(pids[0]) if pids else None

        def running():
            try:
                self.pid = child()
            except OSError:
                return False
            return self.pid and self.ctl("is-system-running").out.strip() in ("running", "degraded")
        try:
            return poll(running, 40, "systemd to run")
        except TimeoutError:
            return False

    def enter(self, *args):
        return ["nsenter", "-t", str(self.pid), "-a", *args]

    def ctl(self, *args):
        done = subprocess.run(self.enter("systemctl", *args), text=True, check=False, timeout=60,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
        return Result(done.returncode, done.stdout, done.stderr)

    def unit(self, text):
        """Installs the unit's text (in /run of the namespace)."""
        subprocess.run(self.enter("sh", "-c", f"cat >/run/systemd/system/{UNIT}"), input=text,
                       text=True, check=True)
        self.ctl("daemon-reload")

    def state(self):
        return self.ctl("is-active", UNIT).out.strip()

    def stop(self):
        if self.pid:
            kill_pid(self.pid)
        self.parent.kill()
        self.parent.wait()


class InsideTool(Tool):
    """tool_pg in systemd's namespaces, where pids are other numbers."""

    systemd = None

    def args(self, *args, **options):
        return self.systemd.enter(*super().args(*args, **options))


def unit_text(server, **service):
    lines = {"Type": "exec", "User": "postgres",
             "ExecStart": f"{tm.PG_BIN}/postgres -D {server.data}", "KillSignal": "SIGINT",
             "TimeoutStopSec": "60", "KillMode": "mixed", **service}
    return "[Service]\n" + "".join(f"{k}={v}\n" for k, v in lines.items())


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
    if not os.access(SYSTEMD, os.X_OK):
        skip_all(f"{SYSTEMD} is not installed")
    box = Sandbox("pgsystemd")
    server = Server(box, box.join("data"))
    server.init()
    systemd = Systemd(box)
    if not systemd.wait_running():
        skip_all(f"systemd does not boot in namespaces here: {tm.tail(systemd.log, 3).strip()}")
    tool = InsideTool(box, server, **{"postgresql.manager": f"systemd:{UNIT}"})
    tool.systemd = systemd
    test_start_stop(systemd, tool, server)
    test_restart_always(systemd, tool, server)
    test_failures(systemd, tool, server)


run(main)
