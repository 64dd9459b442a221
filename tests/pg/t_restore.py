#!/usr/bin/env python3
# check: build=asan timeout=400
"""The main path back: a snapshot under load, then restores of it onto ext4 and XFS, twice the same
tag, with WAL and tablespace on volumes of their own, to later targets. Every chapter counts
acknowledged commits (Ledger)."""
import glob
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402


def record_of(node, tag):
    done = node.cli("show", tag, "--json")
    if done.status != 0:
        raise RuntimeError(f"show {tag}: {done.err}")
    record = json.loads(done.out)
    return record.get("record", record)


def journal_of(node):
    """The newest restore job's journal."""
    paths = glob.glob(node.state_dir + "/jobs/*/journal.json")
    journals = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            journals.append(json.load(file))
    return max((j for j in journals if j["type"] == "restore"), key=lambda j: j["created_ms"])


def job_log(node):
    return tm.tail(f"{node.state_dir}/jobs/{journal_of(node)['id']}/log", 40)


class Story:
    """A node with load, a tag, and more load after it."""

    def __init__(self, box, name, fs="ext4", wal=False, tablespace=False, size=448 * MIB,
                 provider="freeze", settings=None, resume="auto"):
        self.box = box
        volumes = [self.data_disk("pgdata" + name, size, fs)]
        self.wal_volume = box.volume("pgwal" + name, 400 * MIB, fs) if wal else None
        volumes += [self.wal_volume] if wal else []
        self.tablespace = self.tablespace_disk("fast" + name, fs) if tablespace else None
        volumes += [self.tablespace] if tablespace else []
        self.node = Node(box, volumes, self.wal_volume, provider=provider, name="db" + name,
                         repository=make_repository(box, "repository" + name), settings=settings,
                         options={"tidemark": {"freeze_deadline": "60s", "resume": resume}})
        self.server = self.node.server
        self.timeline = 1

    def data_disk(self, name, size, fs):
        return self.box.volume(name, size, fs)

    def tablespace_disk(self, name, fs):
        return self.box.volume(name, 320 * MIB, fs)

    def begin(self, tag="t1"):
        node, server = self.node.start(), self.server
        server.pgbench_init(2)
        where = f" tablespace ts_{self.tablespace.name}" if self.tablespace else ""
        server.psql(f"create table orders (id int primary key, amount int){where};\n"
                    "insert into orders select i, i % 97 from generate_series(1, 5000) i")
        self.ledger = Ledger(server).create().start()
        self.ledger.wait(20)
        self.snapshot(tag)
        self.ledger.wait(20)
        server.psql("drop table orders")
        self.ledger.wait(20)
        self.ledger.stop()
        return node

    def snapshot(self, tag):
        done = self.node.cli("snapshot", "--tag", tag)
        is_status(done, 0, f"snapshot {tag}")
        self.bounds = self.ledger.bounds(record_of(self.node, tag)["postgresql"]["tag_lsn"])

    def restore(self, *args, tag="t1", want=0, **options):
        done = self.node.cli("restore", tag, "--yes", *args, **options)
        if not is_status(done, want, f"restore {' '.join((tag,) + args)} ends with {want}"):
            tm.diag(job_log(self.node))
            tm.diag(tm.tail(self.server.log, 30))
        return done

    def check_tag(self, what):
        """The rows of the tag, all of them and nothing else."""
        self.timeline += 1
        server = self.server
        server.wait_ready()
        is_(server.timeline(), self.timeline, f"{what}: timeline {self.timeline}")
        is_(server.psql("select count(*), sum(amount) from orders"),
            f"5000|{sum(i % 97 for i in range(1, 5001))}",
            f"{what}: the dropped table is back")
        count, last = self.ledger.present(server)
        least, most = self.bounds
        ok(count == last and least <= last <= most,
           f"{what}: commits 1 … {last}, the tag covers {least} to {most}")
        sums = server.pgbench_sums()
        is_(len(set(sums[:4])), 1, f"{what}: pgbench's sums agree")
        is_(server.amcheck()[0], 0, f"{what}: amcheck finds nothing")

    def end(self):
        self.node.agent.stop()
        self.server.stop("immediate", check=False)
        for volume in reversed(self.node.volumes):
            if tm.mounts_below(volume.mount):
                self.box.umount(volume.mount)
            self.box.unloop(volume.device)
            os.unlink(volume.image)


def test_twice(box, fs):
    """Restore, write, restore the same tag again: timeline 3; nothing of us is left behind."""
    story = Story(box, fs, fs)
    node = story.begin()
    acknowledged = story.ledger.acknowledged
    story.restore()
    story.check_tag(f"{fs}, first restore")
    data = node.data
    with open(data + "/postgresql.auto.conf", encoding="utf-8") as file:
        unlike(file.read(), "recovery_target|restore_command", f"{fs}: our settings are gone again")
    is_([n for n in ("backup_label", "recovery.signal", "standby.signal", "tablespace_map")
         if os.path.exists(f"{data}/{n}")], [], f"{fs}: no signal or label file is left")
    journal = journal_of(node)
    is_(journal["state"], "complete", f"{fs}: the job is complete")
    is_(journal["verification"]["ok"], True, f"{fs}: the verification is in the journal")
    is_(journal["archived"], True, f"{fs}: the new timeline is archived")
    ok(not os.path.exists(node.state_dir + "/fence"), f"{fs}: the fence is lifted")
    story.server.psql("insert into orders values (5001, 1)")
    story.restore()
    story.check_tag(f"{fs}, second restore")
    # What was acknowledged after the tag is still there for those who ask for it.
    done = story.restore("--target=latest", want="refused")
    like(done.err, r"several timelines contain the target: timeline 1 .*timeline 2 ",
         f"{fs}: latest is ambiguous after restores, and refused")
    like(done.err, r"--target-timeline=N", f"{fs}: with the hint")
    story.restore("--target=latest", "--target-timeline=1")
    story.timeline = story.server.timeline()
    is_(story.server.psql("select to_regclass('orders') is null"), "t",
        f"{fs}: latest on timeline 1 has the drop")
    is_(story.ledger.present(story.server), (acknowledged, acknowledged),
        f"{fs}: and every commit that was acknowledged after the tag (the fence pushed them)")
    story.end()


def test_volumes(box):
    """WAL on a second volume, a tablespace on a third, all destroyed."""
    story = Story(box, "three", "xfs", wal=True, tablespace=True)
    node = story.begin()
    story.restore()
    story.check_tag("three volumes")
    story.server.stop("immediate")
    for volume in node.volumes:
        node.destroy(volume)
    story.restore()
    story.check_tag("three volumes, destroyed before")
    story.end()


def main():
    box = need_root() or Sandbox("restore")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    test_twice(box, "ext4")
    test_twice(box, "xfs")
    test_volumes(box)


if __name__ == "__main__":
    run(main)
