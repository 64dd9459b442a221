"""A real systemd that boots in namespaces of its own (pid, mount, ipc, net, cgroup)."""
import os
import subprocess

import tm
from node import Result
from sandbox import kill_pid, poll

SYSTEMD = "/lib/systemd/systemd"
UNIT = "tidemark-test-postgresql.service"
UNITS = "/run/systemd/system"
BOOT = f"""#!/bin/sh
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount @etc@ /etc/systemd/system
umount -R /sys/fs/cgroup 2>/dev/null || true
mkdir -p /sys/fs/cgroup /run/systemd/system
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export container=tidemark
exec {SYSTEMD} --system --unit=basic.target --log-target=console --show-status=false
"""


class Systemd:
    """PID 1 of its own namespaces; ends with all below it when it is killed. Its /run, /tmp and
    /etc/systemd/system are its own and empty; mounts of the host at its start are there as copies,
    later ones are not. Files, sockets among them, are the same on both sides. etc: a directory that
    is its /etc/systemd/system instead, for a host that boots again."""

    def __init__(self, box, etc=None):
        self.box = box
        self.log = box.join("log", "systemd.log")
        box.mkdir("log", 0o777)
        tm.on_fail(lambda: tm.diag(f"systemd log:\n{tm.tail(self.log)}"))
        text = BOOT.replace("@etc@", f"--bind '{etc}'" if etc else "-t tmpfs tmpfs")
        boot = box.write("boot.sh", text, 0o755)
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

    def ctl(self, *args, timeout_s=60):
        done = subprocess.run(self.enter("systemctl", *args), text=True, check=False,
                              timeout=timeout_s, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
        return Result(done.returncode, done.stdout, done.stderr)

    def run(self, *args, check=True, **options):
        return subprocess.run(self.enter(*args), text=True, check=check, timeout=60, **options)

    def exists(self, path):
        return self.run("test", "-e", path, check=False).returncode == 0

    def unit(self, text, name=UNIT):
        """Installs the unit's text (in /run of the namespace)."""
        self.run("sh", "-c", f"cat >{UNITS}/{name}", input=text)
        self.ctl("daemon-reload")

    def state(self, name=UNIT):
        return self.ctl("is-active", name).out.strip()

    def stop(self):
        """What a power cut does; nothing when it is stopped already."""
        if self.parent.poll() is not None:
            return
        if self.pid:
            kill_pid(self.pid)
        self.parent.kill()
        self.parent.wait()


def unit_text(server, **service):
    lines = {"Type": "exec", "User": "postgres",
             "ExecStart": f"{tm.PG_BIN}/postgres -D {server.data}", "KillSignal": "SIGINT",
             "TimeoutStopSec": "60", "KillMode": "mixed", **service}
    return "[Service]\n" + "".join(f"{k}={v}\n" for k, v in lines.items())


def boot(box, etc=None):
    """A Systemd that runs, or the test is skipped."""
    if not os.access(SYSTEMD, os.X_OK):
        tm.skip_all(f"{SYSTEMD} is not installed")
    systemd = Systemd(box, etc)
    if not systemd.wait_running():
        tm.skip_all(f"systemd does not boot in namespaces here: {tm.tail(systemd.log, 3).strip()}")
    return systemd
