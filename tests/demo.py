#!/usr/bin/env python3
"""`make demo`: a live PostgreSQL volume goes into a repository and comes back to its tag.

It makes its own world below one directory in /var/tmp: loop images as the server's disks, a private
server that listens on a Unix socket only, a repository, an agent. The snapshot is taken as the
default configuration takes it (provider precopy), while the server is written to; where `tidemark
check` says that this is not possible, the story says so and goes on with provider freeze. Three
chapters: one volume, two restores of the same tag, and snapshots that read only what was written
(track = yes); the WAL on a second volume; a tablespace on a third. With --tap it prints TAP (`make
check`), otherwise prose; the checks are the same.
TIDEMARK_DEMO_FS=xfs puts XFS on the server's volumes (default ext4);
TIDEMARK_DEMO_CHAPTERS=1 tells only the first chapter; TIDEMARK_DEMO_BREAK=1 deletes a row behind a
restore, so that a check fails. --store=s3 (`make demo STORE=s3`): the repositories are buckets of a
private Ceph instead of directories; --store=swift: of a private OpenStack Swift.
"""
import glob
import json
import os
import sys
import textwrap
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
import s3  # noqa: E402
import tm  # noqa: E402
from s3_node import Place  # noqa: E402
from tm import GIB, MIB, Ledger, Node, Sandbox, output, poll  # noqa: E402

TAG = "before-release"
ORDERS = "select count(*) || ' rows, sum ' || sum(amount) from orders"
FS = os.environ.get("TIDEMARK_DEMO_FS", "ext4")
START = time.monotonic()


class Story:
    """Prints what happens and counts what was checked."""

    def __init__(self, tap):
        self.tap, self.checks, self.wrong = tap, 0, 0

    def say(self, text="", indent=""):
        width = 96 - len(indent)
        for line in text.split("\n"):
            for part in textwrap.wrap(line, width, break_long_words=False,
                                      break_on_hyphens=False) or [""]:
                print((("# " if self.tap else "") + indent + part).rstrip(), flush=True)

    def step(self, text):
        self.say(f"[{time.monotonic() - START:5.1f} s] {text}")

    def check(self, good, text):
        self.checks += 1
        self.wrong += not good
        if self.tap:
            tm.ok(good, text)
        else:
            self.say(("found:  " if good else "WRONG:  ") + text, "    ")
        return good

    def tidemark(self, node, *args, show="all"):
        """Runs `tidemark ARGS`; show: "all", "brief" (phases and result), or "" (nothing). A
        failure ends the story."""
        shown = [a if " " not in a else f"'{a}'" for a in map(str, args)]
        if show:
            self.say("$ tidemark " + " ".join(shown), "    ")
        began = time.monotonic()
        done = node.cli(*args)
        lines = done.out.splitlines()
        if done.status != 0:
            self.say((done.err + done.out).rstrip(), "    | ")
        elif show:
            phases = list(dict.fromkeys(done.err.splitlines()))
            self.say(" → ".join(phases), "    | ")
            self.say("\n".join(lines if show == "all" else lines[-1:]), "    | ")
        seconds = time.monotonic() - began
        if done.status != 0:
            tm.diag(f"agent log:\n{tm.tail(node.agent.log)}\nserver log:\n"
                    f"{tm.tail(node.server.log)}")
            raise RuntimeError(f"tidemark {' '.join(shown)}: exit status {done.status}")
        return done, seconds

    def choose_provider(self, node):
        """The default one, or freeze when `tidemark check` knows that this host cannot do it."""
        if not self.tap:  # what an administrator gets; in a test no time may decide
            del node.sections["tidemark"]["freeze_max"]
            node.write_conf()
        rows = [json.loads(line) for line in node.cli("check", "--json").out.splitlines()]
        capture = [row for row in rows if row["check"] == "capture"]
        if not capture or capture[0]["ok"]:
            return
        self.say("This host cannot do what is the default:", "    ")
        self.say(f"{capture[0]['detail']}\nhint: {capture[0].get('hint')}", "    | ")
        self.say("So this demo goes on with provider = freeze: writes stand still while the volumes"
                 " are copied.", "    ")
        for name, options in node.sections.items():
            if name.startswith("volume "):
                options["provider"] = "freeze"
        node.sections["tidemark"]["freeze_deadline"] = "60s"
        node.write_conf()

    def say_stall(self, record):
        longest = f"Writes stood still for {record['freeze_ns'] / 1e6:.0f} ms"
        live = record.get("precopy")
        if not live:
            self.say(longest + ", the whole copy.", "    ")
            return
        self.say(f"{longest} at the longest, {live['freeze_sum_ns'] / 1e6:.0f} ms in all; after the"
                 " volumes what had been written meanwhile was copied, in passes of "
                 + ", ".join(f"{size / MIB:.1f}" for size in live["passes"])
                 + " MiB, the last of them frozen.", "    ")


class Directory:
    """The repository of a chapter as a directory."""

    def __init__(self, box, name):
        self.url = tm.make_repository(box, "repository" + name)

    def section(self):
        return {}

    def keys_below(self, prefix):
        top = self.url.removeprefix("file://") + "/"
        return [path.removeprefix(top) for path in glob.glob(top + prefix + "**", recursive=True)]


class Chapter:
    """One server with its volumes, from initdb to the end."""

    def __init__(self, story, box, store, name, wal=False, tablespace=False):
        self.story, self.box, self.name = story, box, name
        volumes = [box.volume("pgdata" + name, GIB, FS)]
        self.wal_volume = box.volume("pgwal" + name, 800 * MIB, FS) if wal else None
        volumes += [self.wal_volume] if wal else []
        self.tablespace = box.volume("fast" + name, 400 * MIB, FS) if tablespace else None
        volumes += [self.tablespace] if tablespace else []
        self.place = Place(box, store, "tidemark" + name, "demo") if store else \
            Directory(box, name)
        self.node = Node(box, volumes, self.wal_volume, provider=None, name="db" + name,
                         repository=self.place.url, options={"repository": self.place.section()})
        self.server, self.volumes = self.node.server, volumes
        self.ledger = self.load = None
        self.bounds = None
        self.before = None   # what orders held at the tag
        self.first = None    # what the first restore brought
        self.timeline = 1

    def make(self):
        story, node = self.story, self.node
        node.start(agent=False)
        story.choose_provider(node)
        node.agent.start()
        story.say("Volumes: " + ", ".join(
            f"{v.name} ({FS} on {v.device}, an image file)" for v in self.volumes)
            + f". Repository: {node.repository}.", "    ")
        server = self.server
        where = f" tablespace ts_{self.tablespace.name}" if self.tablespace else ""
        server.pgbench_init(5)
        server.psql(f"create table orders (id int primary key, amount int not null){where};\n"
                    "insert into orders select i, (i * 7919) % 1000 from"
                    " generate_series(1, 20000) i;\n"
                    f"create index on orders (amount){where};")
        self.before = server.psql(ORDERS)
        self.ledger = Ledger(server).create().start()
        self.load = server.pgbench()
        self.load.wait_transactions(200)
        story.say(f"Server on port {server.port} of a Unix socket; pgbench and a writer of numbered"
                  f" commits are running; table orders holds {self.before}.", "    ")

    def snapshot(self):
        self.story.step(f"tidemark snapshot: the volumes as of one instant, under the tag {TAG}")
        self.ledger.wait(20)
        before = self.ledger.acknowledged
        _, seconds = self.story.tidemark(self.node, "snapshot", "--tag", TAG)
        meanwhile = self.ledger.acknowledged - before
        done, _ = self.story.tidemark(self.node, "show", TAG, "--json", show="")
        record = json.loads(done.out)
        record = record.get("record", record)
        self.bounds = self.ledger.bounds(record["postgresql"]["tag_lsn"])
        self.story.check(self.bounds[0] >= before, f"commits up to {self.bounds[0]} were "
                         f"acknowledged before the tag, {before} of them before the command")
        sizes = [(v["name"], v["bytes_read"], v["bytes_stored"]) for v in record["volumes"]]
        text = ", ".join(f"{n}: read {r / MIB:.0f} MiB, stored {s / MIB:.0f} MiB"
                         for n, r, s in sizes)
        self.story.say(f"{seconds:.1f} s, in which {meanwhile} commits were acknowledged; {text}.",
                       "    ")
        self.story.say_stall(record)

    def go_on(self, drop):
        """Load after the tag, and the mistake that makes people restore."""
        self.story.step("Life goes on: more load" + (", and a table is dropped" if drop else ""))
        if not self.ledger.alive():
            self.ledger = Ledger(self.server).start()
            self.load = self.server.pgbench()
        self.ledger.wait(50)
        self.load.wait_transactions(200)
        if drop:
            self.server.psql("drop table orders")
        self.ledger.wait(20)
        gone = self.server.psql("select to_regclass('orders') is null") == "t"
        self.story.check(gone == drop, f"orders is {'gone' if gone else 'there'}; "
                         f"{self.ledger.acknowledged} commits are acknowledged now")

    def restore(self):
        self.timeline += 1
        self.story.step(f"tidemark restore {TAG}: blocks in parallel, then WAL, then verification")
        # The plan is worth reading once.
        plan = "all" if self.timeline == 2 and self.name == "1" else "brief"
        _, seconds = self.story.tidemark(self.node, "restore", TAG, show=plan)
        # The restore has stopped the server under the load.
        self.ledger.stop()
        self.load.stop()
        self.story.say(f"{seconds:.1f} s from the command to a verified server.", "    ")
        self.verify()

    def verify(self):
        check, server = self.story.check, self.server
        server.wait_ready()
        if os.environ.get("TIDEMARK_DEMO_BREAK"):
            server.psql("delete from orders where id = 1")
        check(server.timeline() == self.timeline,
              f"the server is up, promoted, and writes timeline {server.timeline()}")
        orders = server.psql(ORDERS)
        check(orders == self.before, f"orders is back with {orders}")
        sums = server.pgbench_sums()
        check(len(set(sums[:4])) == 1, f"pgbench's four sums agree: {sums[0]} after {sums[4]} "
              "transactions")
        count, last = self.ledger.present(server)
        least, most = self.bounds
        check(count == last and least <= last <= most,
              f"commits 1 … {last} are there, nothing is missing between and nothing after: the "
              f"tag covers {least}" + (f" or {most}" if most > least else ""))
        status, text = server.amcheck()
        check(status == 0, "pg_amcheck finds no damage" if status == 0 else f"pg_amcheck: {text}")
        if self.first is None:
            self.first = (sums, last)
        else:
            check(self.first == (sums, last), "the same tag gave the same rows again")
        self.archived()

    def archived(self):
        """The new timeline is safe in the repository: its history file and a segment."""
        segment = self.server.switch_wal()
        self.node.wait_archived(segment)
        name = f"{self.timeline:08X}.history"
        history = poll(lambda: [key for key in self.place.keys_below("wal/") if key.endswith(name)],
                       30, "history file in the repository")
        self.story.check(segment.startswith(name[:8]) and len(history) == 1,
                         f"timeline {self.timeline} is archived: {name} and {segment}")

    def track(self):
        """Option track: the second snapshot reads what was written since the first."""
        story, node = self.story, self.node
        section = node.sections["volume " + self.volumes[0].name]
        if section["provider"] is not None:
            return  # the story has said why
        story.step("track = yes: the kernel notes what is written from one snapshot to the next")
        # In our own mount namespace: the trackers end with it.
        output("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")
        section["track"] = "yes"
        node.write_conf()
        node.agent.stop()
        node.agent.start()
        volumes = []
        for tag in ("tracked", "tracked-again"):
            self.server.psql("update orders set amount = amount where id <= 100")
            story.tidemark(node, "snapshot", "--tag", tag)
            done, _ = story.tidemark(node, "show", tag, "--json", show="")
            volumes.append(json.loads(done.out)["volumes"][0])
        first, second = (volume["bytes_read"] for volume in volumes)
        story.check("track_read" in volumes[1] and 2 * second < first,
                    f"the first read {first / MIB:.0f} MiB, the second {second / MIB:.1f} MiB")

    def end(self):
        for part in (self.ledger, self.load):
            if part:
                part.stop()
        self.node.agent.stop()
        self.server.stop("immediate", check=False)
        for volume in reversed(self.volumes):
            self.box.umount(volume.mount)
            self.box.unloop(volume.device)
            os.unlink(volume.image)


def tell(story, box, store, title, name, again=False, **kind):
    story.say(f"\n=== {title}")
    story.step("A server of its own: initdb with checksums, archive_command = tidemark-wal push")
    chapter = Chapter(story, box, store, name, **kind)
    chapter.make()
    chapter.snapshot()
    chapter.go_on(drop=True)
    chapter.restore()
    if again:
        chapter.go_on(drop=False)
        chapter.restore()
        chapter.track()
    chapter.end()


def listening():
    """Local TCP listeners on PostgreSQL's usual port."""
    lines = []
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        if os.path.exists(name):
            with open(name, encoding="ascii") as file:
                lines += [x.split() for x in file.readlines()[1:]]
    return sum(x[1].endswith(f":{5432:04X}") and x[3] == "0A" for x in lines)


STORES = {"s3": ("ceph", "Ceph with one monitor, one OSD in memory, a gateway"),
          "swift": ("swift", "OpenStack Swift with its S3 interface")}


def object_store(story, box, name):
    kind, what = STORES[name]
    if s3.missing(kind) and story.tap:
        tm.skip_all(s3.missing(kind))
    if s3.missing(kind):
        raise RuntimeError(s3.missing(kind))
    story.step(f"A private object store: {what}")
    store = s3.ceph(box) if kind == "ceph" else s3.swift(box)
    story.say(f"It answers at {store.endpoint}; every chapter has a bucket of its own.", "    ")
    return store


def wanted_store():
    """Of --store=NAME: a key of STORES, None for a directory; anything else is refused."""
    names = [arg.removeprefix("--store=") for arg in sys.argv if arg.startswith("--store=")]
    if names and names[-1] not in (*STORES, "directory"):
        sys.exit(f"demo: unknown store '{names[-1]}' ({', '.join(STORES)}, directory)")
    return names[-1] if names and names[-1] != "directory" else None


def main(tap):
    tm.need_root()
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    story, before = Story(tap), listening()
    box = Sandbox("demo")
    story.say(f"Tidemark demo. Everything is made below {box.path} and removed at the end.")
    name = wanted_store()
    store = object_store(story, box, name) if name else None
    chapters = int(os.environ.get("TIDEMARK_DEMO_CHAPTERS", "3"))
    tell(story, box, store, "Chapter 1: one volume, two restores of the same tag", "1",
         again=True)
    if chapters > 1:
        tell(story, box, store, "Chapter 2: the WAL on a second volume", "2", wal=True)
    if chapters > 2:
        tell(story, box, store, "Chapter 3: and a tablespace on a third", "3", wal=True,
             tablespace=True)
    story.check(listening() == before, "nothing of this has listened on port 5432")
    path = box.path
    box.close()
    left = len(tm.loops_below(path)) + output("mount").count(path)
    story.check(not left and not os.path.exists(path), f"{path} is gone, with its loop devices, "
                "mounts and servers")
    story.say(f"\n{story.checks} checks, {story.wrong} wrong, {time.monotonic() - START:.0f} s.")
    if tap:
        tm.done()
    sys.exit(1 if story.wrong else 0)


def start():
    tap = "--tap" in sys.argv
    if tap:
        tm.run(lambda: main(True))
    try:
        main(False)
    except (RuntimeError, TimeoutError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    start()
