#!/usr/bin/env python3
"""tools/install-deps on a machine without PostgreSQL: create_main_cluster = false is there before
postgresql-15 comes, so that nothing listens on 5432.

Real are the script, dpkg-query with a copy of the package database that lacks some packages, and
/etc/postgresql-common, all in this test's mount namespace. Recorded is apt-get: a script in PATH
that notes how it was called and what createcluster.conf said at that moment. A campaign does it
with nothing recorded: a Debian made by debootstrap, real packages, a network namespace in which
anything that listened on 5432 would be seen.

check: build=release timeout=400"""
import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import tm  # noqa: E402

CONF = "/etc/postgresql-common/createcluster.conf"
SCRIPT = os.path.join(SOURCE, "tools/install-deps")
SETTING = "create_main_cluster = false\n"
RECORDER = """#!/bin/sh
{{ echo "$DEBIAN_FRONTEND|$*|$(cat {conf} 2>/dev/null | tr '\\n' ';')"; }} >>{log}
"""


class Machine:
    """A database without `missing`, an /etc/postgresql-common that holds `conf` (None: nothing)."""

    def __init__(self, box):
        self.box, self.log = box, box.join("apt.log")
        box.mkdir("bin")
        box.write("bin/apt-get", RECORDER.format(conf=CONF, log=self.log), 0o755)
        with open("/var/lib/dpkg/status", encoding="utf-8") as file:
            self.stanzas = file.read().split("\n\n")
        self.database = box.join("dpkg")
        shutil.copytree("/var/lib/dpkg", self.database, ignore=lambda *_: ["info", "lock"])
        os.makedirs(self.database + "/info", exist_ok=True)
        output("mount", "--bind", self.database, "/var/lib/dpkg")
        os.makedirs(os.path.dirname(CONF), exist_ok=True)
        output("mount", "-t", "tmpfs", "tmpfs", os.path.dirname(CONF))

    def set(self, missing=(), conf=None):
        with open(self.database + "/status", "w", encoding="utf-8") as file:
            file.write("\n\n".join(part for part in self.stanzas if not any(
                re.match(rf"Package: {re.escape(name)}\n", part) for name in missing)))
        for path in (self.log, CONF):
            if os.path.exists(path):
                os.unlink(path)
        if conf is not None:
            with open(CONF, "w", encoding="utf-8") as file:
                file.write(conf)

    def run(self, *args):
        """(exit status, calls of apt-get as (frontend, arguments, createcluster.conf))."""
        environ = {**os.environ, "PATH": self.box.join("bin") + ":" + os.environ["PATH"]}
        environ.pop("DEBIAN_FRONTEND", None)
        done = subprocess.run([SCRIPT, *args], env=environ, check=False, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        calls = []
        if os.path.exists(self.log):
            with open(self.log, encoding="utf-8") as file:
                calls = [line.rstrip("\n").split("|") for line in file]
        return done.returncode, calls

    def conf(self):
        try:
            with open(CONF, encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return None


GONE = ("postgresql-15", "liburing-dev")
COMMENTED = "# Default values for pg_createcluster(8)\n#create_main_cluster = true\n"
MINE = "create_main_cluster = true\n"
# What is missing, createcluster.conf before, and when postgresql-15 comes (None: it does not).
CASES = [
    ("without PostgreSQL", GONE, None, SETTING),
    ("with the package's own file", GONE, COMMENTED, COMMENTED + SETTING),
    ("with a setting of the user", GONE, MINE, MINE),
    ("PostgreSQL is there, the rest not", ("liburing-dev",), None, ""),
]


def test_order(machine):
    for name, missing, before, want in CASES:
        machine.set(missing, before)
        status, calls = machine.run()
        is_(status, 0, f"{name}: exit status")
        verbs = [arguments.split()[0] for _, arguments, _ in calls]
        is_(verbs, ["update", "install"], f"{name}: one update, one installation")
        frontend, arguments, conf = calls[-1]
        is_(conf, want.replace("\n", ";"), f"{name}: what pg_createcluster would have read")
        words = arguments.split()
        is_([word for word in GONE if word in words], [word for word in GONE if word in missing],
            f"{name}: exactly what is missing is installed")
        ok("--no-install-recommends" in words and "-y" in words and frontend == "noninteractive",
           f"{name}: and nobody is asked")


def test_nothing_to_do(machine):
    machine.set()
    is_(machine.run(), (0, []), "all is there: apt-get is not called")
    is_(machine.conf(), None, "all is there: nothing is written")
    machine.set(GONE)
    is_(machine.run("--check"), (1, []), "--check: says that something is missing")
    is_(machine.conf(), None, "--check: and nothing is written")


def test_stores(machine):
    """What only tests on object stores need: never without being asked for, never a must."""
    machine.set(("memcached", *GONE))
    status, calls = machine.run("--ceph", "--swift")
    words = calls[-1][1].split()
    is_((status, [w for w in ("memcached", *GONE) if w in words]), (0, ["memcached"]),
        "--ceph --swift: what is missing of the stores, and nothing else")
    machine.set(("memcached",))
    is_(machine.run(), (0, []), "without being asked for, stores are not installed")
    machine.box.write("bin/apt-get", "#!/bin/sh\nexit 100\n", 0o755)
    is_(machine.run("--swift")[0], 1, "an installation that fails is an error")
    is_(machine.run("--optional", "--swift")[0], 0, "--optional: it is not")


# --- a Debian of its own --------------------------------------------------------------------------
INSIDE = """set -e
ip link set lo up 2>/dev/null || true
mount -t proc proc /proc
/install-deps --runtime --optional
dpkg-query -W -f '${db:Status-Status} postgresql-15\\n' postgresql-15
cat /etc/postgresql-common/createcluster.conf
ls /etc/postgresql/15 2>/dev/null || true
awk '$4 == "0A" {print "listens " $2}' /proc/net/tcp /proc/net/tcp6
pgrep -a postgres || echo no server
"""


def test_debian(box):
    """Packages are fetched first; then the script runs with the real apt-get without a network."""
    root = box.mkdir("debian")
    done = subprocess.run(["debootstrap", "--variant=minbase", "--include=procps,iproute2",
                           "bookworm", root], check=False, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        skip(f"debootstrap cannot reach a mirror: {done.stdout.splitlines()[-1:]}")
        return
    shutil.copy2(SCRIPT, root)
    # Without an init system invoke-rc.d(8) starts no service unless this says that it may.
    box.write("debian/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 0\n", 0o755)
    with open(SCRIPT, encoding="utf-8") as file:
        packages = re.search(r'(?m)^packages="([^"]*)"', file.read()).group(1).split()
    chroot = ["chroot", root, "env", "DEBIAN_FRONTEND=noninteractive", "PATH=/usr/sbin:/usr/bin"]
    output(*chroot, "apt-get", "install", "-y", "-q", "--no-install-recommends", "--download-only",
           *packages)
    done = subprocess.run(["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount",
                           *chroot, "sh", "-c", INSIDE], check=False, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if not is_(done.returncode, 0, "a new Debian: the script installs everything"):
        tm.diag(done.stdout[-3000:])
    like(done.stdout, r"(?m)^installed postgresql-15$", "a new Debian: PostgreSQL is installed")
    like(done.stdout, r"(?m)^create_main_cluster = false$", "a new Debian: the setting is there")
    unlike(done.stdout, r"(?m)^main$", "a new Debian: there is no cluster")
    unlike(done.stdout, r"(?m)^listens ", "a new Debian: nothing listens, on 5432 or elsewhere")
    like(done.stdout, r"(?m)^no server$", "a new Debian: no server runs")


def main():
    need_root()
    need_tools("dpkg-query")
    box = Sandbox("install-deps")
    if tm.CAMPAIGN and shutil.which("debootstrap"):
        test_debian(box)
    machine = Machine(box)
    test_order(machine)
    test_nothing_to_do(machine)
    test_stores(machine)


run(main)
