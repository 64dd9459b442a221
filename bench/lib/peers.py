"""The two tools: how each backs the cluster up, and the command that brings it back. Whatever one
of them needs once (stanza, repository) is outside of what is timed."""
import glob
import json
import os
import re
import shutil
import subprocess
import time

import measure
import tm

PGBACKREST = os.environ.get("PGBACKREST") or shutil.which("pgbackrest") or "pgbackrest"
STANZA = "bench"


def run_logged(args, log):
    process = measure.start(args, log)
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(args)}: exit {process.returncode}:\n{tm.tail(log)}")


class PgBackRest:
    """Debian's package, or what PGBACKREST= names. lz4 at level 1 and one process a core are the
    fastest of what was tried (gz, 1, 2 and 4 processes); bundling is its answer to small files.
    archive-async helps when every fetch waits for a network, and costs when it does not."""

    name = "pgbackrest"

    def __init__(self, box, cluster, store, processes):
        self.box, self.cluster, self.store, self.processes = box, cluster, store, processes
        self.log = box.join("log", "pgbackrest.log")
        lines = ["[global]", *store.pgbackrest_options(), "repo1-bundle=y", "compress-type=lz4",
                 "compress-level=1", "start-fast=y", "expire-auto=n", "repo1-retention-full=9",
                 "archive-timeout=600",
                 f"lock-path={box.mkdir('pgbackrest-lock', user='postgres')}",
                 f"spool-path={box.mkdir('pgbackrest-spool', user='postgres')}",
                 f"process-max={processes}", "log-level-console=warn", "log-level-file=off"]
        if store.remote:
            lines.append("archive-async=y")
        lines += [f"[{STANZA}]", f"pg1-path={cluster.data}", f"pg1-port={cluster.server.port}",
                  f"pg1-socket-path={cluster.server.socket}", "pg1-user=postgres"]
        self.conf = box.write(f"pgbackrest-{store.name}.conf", "\n".join(lines) + "\n", 0o640)
        shutil.chown(self.conf, "root", "postgres")
        self.archive_command = (f"{PGBACKREST} --config={self.conf} --stanza={STANZA}"
                                " --no-archive-async archive-push %p")

    def command(self, *args):
        return [PGBACKREST, f"--config={self.conf}", f"--stanza={STANZA}", *args]

    def version(self):
        return tm.output(PGBACKREST, "version").strip()

    def prepare(self):
        tm.output(*self.command("stanza-create"), **tm.as_user("postgres"))

    def backup(self, group, kind):
        run_logged(group.command(self.command(f"--type={kind}", "backup"), "postgres"), self.log)

    def label(self):
        """Of the newest backup."""
        text = tm.output(*self.command("info", "--output=json"), **tm.as_user("postgres"))
        return json.loads(text)[0]["backup"][-1]["label"]

    def prepare_target(self, device, size):
        """An empty filesystem: its making is not timed."""
        tm.output("mkfs.ext4", "-q", "-F", "-E",
                  "lazy_itable_init=0,lazy_journal_init=0,nodiscard", device, f"{size >> 10}k")
        tm.output("mount", device, self.cluster.mount)
        os.mkdir(self.cluster.data, 0o700)
        for path in (self.cluster.mount, self.cluster.data):
            shutil.chown(path, "postgres", "postgres")
        shutil.rmtree(self.box.join("pgbackrest-spool"))
        self.box.mkdir("pgbackrest-spool", user="postgres")

    def released(self, point):
        del point
        return 0

    def restore(self, group, device, point):
        """point: (backup label, restore point). A generator of (what, time) as things happen; it
        ends with the command."""
        del device
        label, target = point
        args = self.command(f"--set={label}", "--type=name", f"--target={target}",
                            "--target-action=promote", "restore")
        process = measure.start(group.command(args, "postgres"), self.log)
        while process.poll() is None:
            yield None
            time.sleep(0.003)
        if process.returncode != 0:
            raise RuntimeError(f"pgbackrest restore: exit {process.returncode}:"
                               f"\n{tm.tail(self.log)}")
        yield "copied", time.monotonic()
        server = self.cluster.server
        run_logged(group.command([os.path.join(tm.PG_BIN, "pg_ctl"), "-D", server.data, "-l",
                                  server.log, "-W", "start"], "postgres"), self.log)


class Tidemark:
    """The host is empty for it, as for the other: no configuration, no agent, a blank device."""

    name = "tidemark"
    steps = re.compile(r"restore: job=\w+ step=(\w+)")

    def __init__(self, box, cluster, store):
        self.box, self.cluster, self.store = box, cluster, store
        self.log = box.join("log", "tidemark.log")
        self.archive_command = cluster.node.archive_command
        self.runs, self.free = 0, {}

    def version(self):
        return tm.output(os.path.join(tm.BUILD, "tidemark"), "--version").split()[-1]

    def prepare(self):
        pass  # Cluster.make() has made the repository

    def backup(self, group, tag):
        node = self.cluster.node
        run_logged(group.command(["env", f"TIDEMARK_CONFIG={node.conf}", *self.store.environment(),
                                  os.path.join(node.programs, "tidemark"), "snapshot", "--local",
                                  "--tag", tag]), self.log)

    def prepare_target(self, device, size):
        pass  # blank since measure.fill()

    def released(self, point):
        """Bytes of free space, which a restore onto a blank device gives back instead of writing.
        Block devices count that as written."""
        if point[0] not in self.free:
            text = tm.output("env", *self.store.environment(), os.path.join(tm.BUILD, "tidemark"),
                             "show", point[0], "--json", f"--repository={self.store.url}")
            record = json.loads(text)
            volumes = record.get("record", record)["volumes"]
            self.free[point[0]] = sum(x["bytes_free"] for x in volumes)
        return self.free[point[0]]

    def restore(self, group, device, point):
        """point: (tag, options). See PgBackRest.restore()."""
        tag, options = point
        self.runs += 1
        state = self.box.join(f"state-{self.runs}")
        args = ["env", f"TIDEMARK_TIDEMARK_STATE_DIR={state}", *self.store.environment(),
                os.path.join(self.cluster.node.programs, "tidemark"), "restore", "--yes",
                f"--repository={self.store.url}", f"--device=pgdata:{device}", *options, tag]
        process = measure.start(group.command(args), self.log)
        text, log = "", None
        seen = 0
        while True:
            ended = process.poll() is not None
            log = log or next(iter(glob.glob(state + "/jobs/*/log")), None)
            if log and os.stat(log).st_size > len(text):
                with open(log, encoding="utf-8", errors="replace") as file:
                    text = file.read()
            found = self.steps.findall(text)
            for step in found[seen:]:
                yield step, time.monotonic()
                if step == "recovering":
                    yield "copied", time.monotonic()
            seen = len(found)
            if ended:
                break
            yield None
            time.sleep(0.003)
        if process.returncode != 0:
            raise RuntimeError(f"tidemark restore: exit {process.returncode}:\n{tm.tail(self.log)}"
                               f"\n{tm.tail(log) if log else ''}")
        shutil.rmtree(state)


def missing():
    """What the benchmark starts and this host has not got."""
    return [name for name in (PGBACKREST, "fio", "gnuplot", "setpriv") if not shutil.which(name)]


def install_missing():
    """As `make bench` does it."""
    if missing():
        subprocess.run([os.path.join(tm.SOURCE, "tools/install-deps"), "--bench"], check=True)
    if missing():
        raise RuntimeError(f"{', '.join(missing())}: not found\nhint: PGBACKREST= names pgbackrest")


def processors():
    return int(subprocess.run(["nproc"], stdout=subprocess.PIPE, check=True).stdout)
