#!/usr/bin/env python3
"""A repository that fails in the middle of a recovery or of archiving, with PostgreSQL as the
judge: recovery must neither end early nor lose anything, the archive never holds half a segment."""
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from wal_lib import Archive, Copy, Primary  # noqa: E402

OUTAGE_S = 20


class Gate:
    """A restore_command that stops before one segment until the test lets it go on: so that the
    fault comes in the middle of the recovery, not by luck."""

    def __init__(self, box, archive, name, segment, **options):
        self.reached, self.go = box.join(name + ".reached"), box.join(name + ".go")
        os.chmod(box.path, 0o777)
        self.script = box.write(name + ".sh", f"""#!/bin/sh
if [ "$1" = {segment} ]; then
    touch {self.reached}
    while [ ! -e {self.go} ]; do sleep 0.05; done
fi
exec {archive.wal} get "$@"
""", 0o755)
        self.command = f"{self.script} %f %p {archive.options(**options)}"

    def wait(self):
        poll(lambda: os.path.exists(self.reached), 60, "the middle of the recovery")

    def open(self):
        with open(self.go, "w", encoding="ascii"):
            pass


class Outage:
    """One way to lose a repository, and the way back."""

    def __init__(self, archive, kind, victim):
        self.archive, self.kind = archive, kind
        self.aside = archive.path + ".aside"
        self.victim = victim  # path of the object that is wanted next

    def begin(self):
        path = self.archive.path
        if self.kind in ("renamed away", "empty"):
            os.rename(path, self.aside)
        if self.kind == "empty":
            os.mkdir(path, 0o755)
        if self.kind == "no permission":
            os.chmod(path, 0)
        if self.kind == "read errors":
            # A file of sysfs whose read fails (lo has no speed: EINVAL) instead of the object.
            output("mount", "--bind", "/sys/class/net/lo/speed", self.victim)

    def end(self):
        path = self.archive.path
        if self.kind == "empty":
            os.rmdir(path)
        if self.kind in ("renamed away", "empty"):
            os.rename(self.aside, path)
        if self.kind == "no permission":
            os.chmod(path, 0o2770)
        if self.kind == "read errors":
            output("umount", self.victim)


def clone_archive(box, archive, name):
    """The same repository at another place."""
    clone = object.__new__(Archive)
    clone.__dict__.update(archive.__dict__)
    clone.path = box.join(name)
    clone.url = "file://" + clone.path
    subprocess.run(["cp", "-a", archive.path, clone.path], check=True)
    return clone


def rows_of(server):
    return server.psql("select count(*), sum(hashtext(x)::bigint) from filler")


def object_path(archive, primary, name):
    return os.path.join(archive.path, "wal", archive.cluster, primary.system_id, name[:8], name)


def test_outages(box, archive, primary, base, middle, rows):
    """Four recoveries side by side, each with its own repository and outage."""
    cases = []
    for number, (kind, prefetch) in enumerate((("renamed away", 0), ("empty", 8),
                                               ("no permission", 0), ("read errors", 0))):
        own = clone_archive(box, archive, f"repo{number}")
        gate = Gate(box, own, f"gate{number}", middle, prefetch=prefetch)
        copy = Copy(box, base, f"outage{number}", gate.command)
        copy.start(check=False, timeout_s=1)
        cases.append((kind, own, gate, copy,
                      Outage(own, kind, object_path(own, primary, middle))))
    for kind, own, gate, copy, outage in cases:
        gate.wait()
        if kind == "empty":  # what was prefetched before the outage may be used, so remove it
            subprocess.run(["rm", "-rf", os.path.join(copy.data, "pg_wal/tidemark-spool")],
                           check=True)
        outage.begin()
        gate.open()
    begin = time.monotonic()
    for kind, own, gate, copy, outage in cases:
        poll(lambda c=copy: "trying again" in c.log_text(), OUTAGE_S, f"get notices: {kind}")
    while time.monotonic() - begin < OUTAGE_S:
        if not all(copy.running() for _, _, _, copy, _ in cases):
            break
        time.sleep(0.5)  # the outage lasts: this is the case under test, not a wait for something
    for kind, own, gate, copy, outage in cases:
        ok(copy.running(), f"{kind}: the server still recovers after {OUTAGE_S} s")
        outage.end()
    for kind, own, gate, copy, outage in cases:
        copy.wait_ready(60)
        is_(rows_of(copy), rows, f"{kind}: nothing is missing after the recovery")
        is_(copy.log_text().count("FATAL:  could not restore"), 0, f"{kind}: no failure in the log")
        copy.stop()


def in_outage(box, archive, base, middle, name, **options):
    """A copy whose recovery meets an outage at the segment `middle`: (copy, outage)."""
    own = clone_archive(box, archive, "repo-" + name)
    gate = Gate(box, own, "gate-" + name, middle, prefetch=0, **options)
    copy = Copy(box, base, name, gate.command)
    outage = Outage(own, "renamed away", None)
    copy.start(check=False, timeout_s=1)
    gate.wait()
    outage.begin()
    gate.open()
    return copy, outage


def goes_on(copy, outage, rows):
    outage.end()
    copy.start()
    copy.wait_ready()
    is_(rows_of(copy), rows, "after the next start nothing is missing")
    copy.stop()


def test_give_up(box, archive, primary, base, middle, rows):
    """get gives up with 126: the server stops, and goes on at its next start."""
    copy, outage = in_outage(box, archive, base, middle, "giveup", **{"get-timeout": "2s"})
    poll(lambda: not copy.running(), 30, "the server's end")
    like(copy.log_text(), rf"FATAL:  could not restore file \"{middle}\" from archive: "
         r"command not found|FATAL:  could not restore file.*(126|not executable)",
         "the server stops when get gives up")
    unlike(copy.log_text(), "selected new timeline", "and does not promote")
    goes_on(copy, outage, rows)


def test_shutdown(box, archive, primary, base, middle, rows):
    """pg_ctl stop while get retries: SIGTERM reaches get, the server ends without a complaint."""
    copy, outage = in_outage(box, archive, base, middle, "stopped")
    poll(lambda: "trying again" in copy.log_text(), 20, "get notices")
    begin = time.monotonic()
    copy.stop()
    ok(time.monotonic() - begin < 10, "a fast stop in the middle of a retry is fast")
    unlike(copy.log_text(), "FATAL:  could not restore", "and no failure of the archive")
    like(copy.log_text(), "stopped by a signal, nothing was delivered", "get says why it ended")
    goes_on(copy, outage, rows)


def test_standby(box, archive, primary, base):
    """A standby that polls the archive outlives an outage longer than get-timeout."""
    own = clone_archive(box, archive, "repo-standby")
    command = own.restore_command(**{"get-timeout": "1s", "on-error": "retry"})
    copy = Copy(box, base, "standby", command, "standby.signal",
                wal_retrieve_retry_interval="200ms")
    copy.start()
    outage = Outage(own, "empty", None)
    poll(lambda: copy.psql("select count(*) from filler") == primary.psql(
        "select count(*) from filler"), 60, "the standby's catching up")
    outage.begin()
    poll(lambda: copy.log_text().count("error: tidemark-wal get") >= 2, 30, "two failed gets")
    ok(copy.running(), "the standby runs on while the repository is empty")
    outage.end()
    primary.fill(20)
    primary.switch_and_wait()
    rows = rows_of(primary)
    subprocess.run(["cp", "-an", archive.path + "/wal", own.path], check=True)
    poll(lambda: rows_of(copy) == rows, 60, "the new rows")
    ok(True, "and goes on with new segments afterwards")
    is_(copy.psql("select pg_is_in_recovery()"), "t", "still a standby")
    copy.stop()


def test_full(box):
    """A full repository: the server keeps its segments and archives them later."""
    point = box.mkdir("full")
    box.mount("tmpfs", point, "-t", "tmpfs", "-o", "size=24m,mode=0777")
    archive = Archive(box, "full/repo")
    primary = Primary(box, archive, name="full-data")
    ballast = os.path.join(point, "ballast")
    with open(ballast, "wb") as file:
        try:
            while True:
                file.write(bytes(65536))
                file.flush()
        except OSError:
            pass
    primary.fill(1)
    name = primary.switch_wal()

    def failed():
        return int(primary.psql("select failed_count from pg_stat_archiver"))
    poll(lambda: failed() >= 1, 60, "a failed push")
    like(primary_log(primary), r"error: tidemark-wal push .*the repository '.*' is full.*\n"
         "(.*hint: )?.*free space", "the error says that the repository is full, with a hint")
    ok(os.path.exists(os.path.join(primary.data, "pg_wal", name)), "the segment stays in pg_wal")
    ok(os.path.exists(os.path.join(primary.data, "pg_wal/archive_status", name + ".ready")),
       "waiting for its archiving")
    is_(name in archive.objects(primary.system_id), False, "no half object in the archive")
    os.unlink(ballast)
    poll(lambda: primary.archived() >= name, 90, "the segment's archiving")
    is_status(archive.tool_wal("check", primary.system_id, name), 0,
              "it is archived once there is space")
    primary.stop()
    box.umount(point)


def primary_log(server):
    with open(server.log, encoding="utf-8", errors="replace") as file:
        return file.read()


def test_killed_pushes(box, primary):
    """kill -9 of push at random moments: the archive has the whole object or none."""
    rng, _seed = seeded()
    archive = Archive(box, "killed")
    names = sorted(x for x in os.listdir(os.path.join(primary.data, "pg_wal")) if len(x) == 24)
    name = names[0]
    path = os.path.join(primary.data, "pg_wal", name)
    with open(path, "rb") as file:
        content = file.read()
    command = [archive.wal, "push", path, *archive.options().split(),
               f"--system-id={primary.system_id}"]
    begin = time.monotonic()
    subprocess.run(command, check=True, **tm.as_user("postgres"))
    whole = time.monotonic() - begin
    os.unlink(object_path(archive, primary, name))
    least, most = (400, 2000) if CAMPAIGN else (60, 400)
    rounds = killed = torn = complete = 0
    window = whole * 1.5  # adapts, so that about half of the kills come too late
    while rounds < least or (min(killed, complete) < 6 and rounds < most):
        rounds += 1
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **tm.as_user("postgres"))
        try:
            process.wait(rng.random() * window)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        if name not in archive.objects(primary.system_id):
            window *= 1.05
            continue
        window *= 0.95
        done = subprocess.run([archive.tool, "read", archive.url, "main", primary.system_id, name],
                              stdout=subprocess.PIPE, check=False)
        good = done.returncode == 0 and done.stdout == content
        torn += not good
        complete += good
        os.unlink(object_path(archive, primary, name))
    diag(f"a push takes {whole * 1000:.0f} ms; {rounds} pushes, {killed} killed, "
         f"{complete} objects complete")
    is_(torn, 0, "no object was torn")
    ok(killed > 5 and complete > 5, "kills before and after the object's appearance")
    done = subprocess.run(command, check=False, **tm.as_user("postgres"))
    is_(done.returncode, 0, "a last push")
    is_(sorted(name for name in os.listdir(archive.path) if name not in ("reading", "tmp")),
        ["tidemark.repo", "tidemark.repo.copy", "wal"], "no temporary object is left")
    is_(os.listdir(os.path.join(archive.path, "tmp")), [], "in tmp/ neither")


def main():
    need_root()
    box = Sandbox("walfaults")
    archive = Archive(box)
    primary = Primary(box, archive, max_wal_size="1GB", wal_keep_size="200MB")
    base = primary.base_backup("base")
    primary.fill(100)
    last = primary.switch_and_wait()
    middle = last[:16] + f"{int(last[16:], 16) - 2:08X}"
    rows = rows_of(primary)
    test_outages(box, archive, primary, base, middle, rows)
    test_give_up(box, archive, primary, base, middle, rows)
    test_shutdown(box, archive, primary, base, middle, rows)
    test_standby(box, archive, primary, base)
    test_killed_pushes(box, primary)
    primary.stop()
    test_full(box)


run(main)
