"""What the tests of `tidemark expire` share: objects and their ages, snapshots that reach all they
need, jobs that sleep. Ages are made by setting the times of objects."""
import glob
import json
import os
import signal
import subprocess

from tm import *  # noqa: F403
import snapshots as snap
import tidemark_reader as stranger

GRACE_S = 24 * 3600
DATA = ("pack", "table", "volume", "snapshot", "withdrawn", "pin")  # all but WAL, which goes on
IDENTITIES = {}  # tag -> id of the last snapshot that had it
REACHED = {}  # repository and id -> what that snapshot needs: none of it is ever replaced


def objects(node, *kinds):
    top = snap.repository(node)
    return {os.path.relpath(os.path.join(base, name), top)
            for kind in kinds or ("",) for base, _, names in os.walk(os.path.join(top, kind))
            for name in names}


def age(node, names, seconds=GRACE_S + 60):
    """Makes these objects older."""
    for name in names:
        path = os.path.join(snap.repository(node), name)
        then = os.stat(path).st_mtime - seconds
        os.utime(path, (then, then))


def mark(node, tag_or_id):
    """Of a snapshot that is or was visible, or of any id."""
    return f"withdrawn/{IDENTITIES.get(tag_or_id, tag_or_id)}"


def visible(node):
    done = node.cli("list", "--json")
    is_status(done, 0, "the snapshots can be listed")
    records = [json.loads(line) for line in done.out.splitlines()]
    IDENTITIES.update({record["tag"]: record["id"] for record in records})
    return [record["tag"] for record in records]


def reached(node, tag):
    """What a snapshot needs, by the reader that shares no code with expire."""
    source = stranger.Repository(snap.repository(node), getattr(node, "key", None))
    record = stranger.find_record(source, tag)
    key, found = source.path(record["id"]), set()
    if key in REACHED:
        return REACHED[key]
    for entry in record["volumes"]:
        volume = stranger.Volume(source, record, entry["name"])
        found.add(f"volume/{volume.id_text}/{record['id']}")
        found |= {f"pack/{volume.id_text}/{s.hex()}/{n:08x}" for s, n in volume.packs}
        found |= {f"table/{volume.id_text}/{p[0].hex()}/{p[1]:08x}" for p in volume.places}
    REACHED[key] = found
    return found


def whole(node, why, *tags):
    """Every visible snapshot has all that it reaches, and reads back."""
    names = visible(node)
    is_(names, list(tags), f"{why}: what is visible")
    there = objects(node, "pack", "table", "volume")
    for tag in names:
        is_(sorted(reached(node, tag) - there), [], f"{why}: {tag} has all its objects")
        is_status(node.cli("verify", tag), 0, f"{why}: {tag} verifies")


def expire(node, *args, **env):
    return node.cli("expire", "--json", "--local", *args, **env)


def result(done):
    return json.loads(done.out.splitlines()[-1])["result"]


def actions(done):
    return {s.get("tag", s["id"]): s["action"] for s in result(done)["snapshots"]}


def take(node, tag, rows=3000):
    """A snapshot with packs of its own."""
    node.server.psql("insert into noise select md5(random()::text) "
                     f"from generate_series(1, {rows})")
    is_status(node.cli("snapshot", "--tag", tag), 0, f"snapshot {tag}")
    visible(node)


def retention(node, **options):
    node.sections["retention"] = options
    node.write_conf()


class Sleeper:
    """A job that is stopped (SIGSTOP) at a point of its code."""

    def __init__(self, node, point, *words, **env):
        self.node = node
        self.log = node.box.join("log", f"sleeper-{point}-{os.path.basename(words[-1])}.log")
        before = set(snap.job_directories(node))
        environ = {k: v for k, v in os.environ.items() if not k.startswith("TIDEMARK_")}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [os.path.join(node.programs, "tidemark"), *words, "--local"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**environ, **env, "TIDEMARK_CONFIG": node.conf,
                     "TIDEMARK_TEST_PAUSE": point})
        self.pid = poll(lambda: self.find(before), 120, f"{words[0]} to stop at {point}")

    def find(self, before):
        for path in set(snap.job_directories(self.node)) - before:
            for stat in glob.glob("/proc/[0-9]*/stat"):
                try:
                    with open(os.path.dirname(stat) + "/cmdline", "rb") as file:
                        words = file.read().split(b"\0")
                    with open(stat, encoding="ascii", errors="replace") as file:
                        state = file.read().rsplit(")", 1)[1].split()[0]
                except OSError:
                    continue
                if path.encode() in words and state == "T":
                    return int(stat.split("/")[2])
        return None

    def ended(self):
        try:
            os.kill(self.pid, signal.SIGCONT)  # a point that is passed often stops it again
        except ProcessLookupError:
            pass
        return self.process.poll() is not None

    def wake(self):
        poll(self.ended, 120, "the sleeper to end")
        with open(self.log, encoding="utf-8", errors="replace") as file:
            text = file.read()
        return Result(self.process.returncode, text, text)


def sleeping_snapshot(node, tag, point):
    node.server.psql("insert into noise select md5(random()::text) from generate_series(1, 3000)")
    return Sleeper(node, point, "snapshot", "--tag", tag)


def forget(node, *tags):
    """Both phases for these snapshots, by hand of the clock."""
    marks = [mark(node, tag) for tag in tags]
    is_status(expire(node, "--confirm", *tags), 0, f"{' '.join(tags)} withdrawn")
    age(node, marks)
    is_status(expire(node), 0, "and removed")
