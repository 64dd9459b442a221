"""The whole benchmark: cluster, backups, rounds, report. bench/restore-vs-pgbackrest restores
onto a loop device, bench/nvme onto a device of the user's."""
import os
import subprocess
import sys
import time

import measure
import peers
import report
import stores
import tm
from cluster import Cluster, volume_size
from rounds import Case, Rounds
from target import Refused
from tm import GIB

OUT = os.path.join(tm.SOURCE, "bench/out")


class Settings:
    def __init__(self, environ):
        self.size_gib = float(environ.get("SIZE") or 3)
        self.rounds = int(environ.get("ROUNDS") or 5)
        self.segments = int(environ.get("SEGMENTS") or 80)
        self.stores = (environ.get("STORE") or "directory").replace(",", " ").split()
        if not set(self.stores) <= {"directory", "s3"}:
            raise RuntimeError(f"STORE={environ['STORE']}: it can be directory, s3, or both")
        self.extra = environ.get("EXTRA") != "0"
        self.out = os.path.abspath(environ.get("OUT") or OUT)


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def build():
    """A fresh clone has no binaries yet."""
    if not all(os.access(os.path.join(tm.BUILD, name), os.X_OK)
               for name in ("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")):
        subprocess.run(["make", "-s", "-C", tm.SOURCE, f"-j{os.cpu_count()}", "all"], check=True)


class Backups:
    """Takes them, counts what they cost, and knows the cases that can be restored from them."""

    def __init__(self, box, settings, store, group):
        self.box, self.settings, self.store, self.group = box, settings, store, group
        self.cluster = Cluster(box, settings.size_gib, store.node_options())
        self.pgbackrest = peers.PgBackRest(box, self.cluster, store, peers.processors())
        self.tidemark = peers.Tidemark(box, self.cluster, store)
        self.costs, self.cases = {}, []

    def timed(self, name, tool, *args):
        before = self.store.stored(tool.name)
        meter = measure.Meter(self.group, self.cluster.volume.device, self.store.device,
                              self.store.servers)
        tool.backup(self.group, *args)
        self.costs[name] = {**meter.read(), "stored": self.store.stored(tool.name) - before}
        say(f"{name}: {self.costs[name]['s']:.1f} s, {self.costs[name]['cpu_s']:.1f} CPU-s, "
            f"{self.costs[name]['stored'] / 1e6:.0f} MB stored")

    def first(self):
        """Both tools' full backups of the same rows; pgBackRest's restore point right behind its
        own, so that neither replays the other's."""
        self.timed("pgbackrest full", self.pgbackrest, "full")
        truth = self.cluster.mark("bench-now")
        self.full = self.pgbackrest.label()
        self.timed("tidemark first snapshot", self.tidemark, "now")
        self.cases += [Case("now", self.tidemark, ("now", ()), truth),
                       Case("now", self.pgbackrest, (self.full, "bench-now"), truth)]

    def later(self):
        """After the load. Tidemark takes its snapshot at the tag; the rows that replay, or take an
        incremental as well, show what that choice is worth."""
        self.cluster.load(self.settings.segments)
        truth = self.cluster.mark("bench-later")
        self.timed("tidemark snapshot at the tag", self.tidemark, "later")
        self.cases += [Case("later", self.tidemark, ("later", ()), truth),
                       Case("later", self.pgbackrest, (self.full, "bench-later"), truth)]
        if self.settings.extra:
            self.later_as_well(truth)

    def later_as_well(self, truth):
        self.timed("pgbackrest incremental at the tag", self.pgbackrest, "incr")
        if self.cluster.mark("bench-after") != truth:
            raise RuntimeError("the rows changed while the backups at the tag were taken")
        replay = ("now", ("--target-name=bench-later",))
        self.cases += [Case("later", self.tidemark, replay, truth, "replaying as well"),
                       Case("later", self.pgbackrest, (self.pgbackrest.label(), "bench-after"),
                            truth, "incremental as well")]

    def take(self):
        cluster = self.cluster
        cluster.make(say, self.tidemark.archive_command, self.pgbackrest.archive_command)
        self.pgbackrest.prepare()
        cluster.mark("bench-begin")
        self.first()
        self.later()
        cluster.archive_with()
        cluster.remove()


def measure_store(box, store, settings, target):
    backups = Backups(box, settings, store, measure.Group(box, store.name))
    backups.take()
    device = target.open(box)
    warm = measure.warm_bytes(int(settings.size_gib * 1.5 * GIB))
    rounds = Rounds(box, backups.cluster, store, backups.group, device, warm)
    results, references = rounds.run(backups.cases, settings.rounds, say)
    result = report.store_result(results, references, backups.costs)
    result["target"] = target.figures()
    result["versions"] = {"pgbackrest": backups.pgbackrest.version(),
                          "pgbackrest_processes": backups.pgbackrest.processes,
                          "tidemark": backups.tidemark.version()}
    return result


def run(name, make_target):
    """make_target(size) gives the target. Results go to <OUT>/<name>.json and .svg."""
    if not tm.become_root():
        raise RuntimeError("it needs root, for volumes\nhint: run it as root, or with sudo")
    settings = Settings(os.environ)
    target = make_target(volume_size(settings.size_gib))
    target.check()
    tm.need_root()  # a mount namespace of our own, in which mounts of others may be missing
    peers.install_missing()
    build()
    where = target.describe()
    data = {"title": f"Restore, Tidemark and pgBackRest: {settings.size_gib:g} GiB, "
                     f"{settings.rounds} rounds, {where}",
            "where": where, "date": time.strftime("%Y-%m-%d"), "size_gib": settings.size_gib,
            "rounds": settings.rounds, "segments": settings.segments,
            "machine": report.machine(), "stores": {}}
    print(data["title"])
    print(", ".join(f"{key} {value}" for key, value in data["machine"].items()), flush=True)
    for name_of_store in settings.stores:
        box = tm.Sandbox(f"bench-{name_of_store}")
        store = stores.make(name_of_store, box, settings.size_gib)
        data["stores"][store.name] = measure_store(box, store, settings, target)
        report.print_store(store.name, data["stores"][store.name], settings.segments)
        box.close()
    report.write(data, settings.out, name)


def start(name, make_target):
    program = os.path.basename(sys.argv[0])
    try:
        run(name, make_target)
    except Refused as error:
        print(f"{program}: {error}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(tm.EXIT["refused"])
    except (RuntimeError, TimeoutError, subprocess.CalledProcessError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(1)
