#!/usr/bin/env python3
# check: build=asan timeout=300
"""A restore for Patroni, without one: the volumes are handed over with the server stopped, and only
when the data directory is empty. Once with the data directory in the volume (ext4), once as its
root (XFS). What Patroni does with it is in cluster/t_patroni.py."""
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402

COUNT = "select count(*) from orders"


class Story:
    """A node that Patroni could have, with 100 rows at the tag and more behind it."""

    def __init__(self, box, fs, name, whole_volume):
        volume = box.volume(name, 352 * MIB, fs)
        self.node = Node(box, [volume], name=name, repository=make_repository(box, "repo" + name),
                         options={"tidemark": {"freeze_deadline": "60s"},
                                  "postgresql": {"manager": "patroni"},
                                  "patroni": {"socket": box.join(name + "-patroni.sock")}})
        if whole_volume:
            self.node.data = self.node.server.data = volume.mount
            self.node.sections["postgresql"]["data_directory"] = volume.mount
            self.node.write_conf()
        node, server = self.node.start(), self.node.server
        server.psql("create table orders as select generate_series(1, 100) i")
        is_status(node.cli("snapshot", "--tag", "t1"), 0, f"{fs}: a tag")
        server.psql("insert into orders select generate_series(1, 100)")
        node.wait_archived(server.switch_wal())
        self.box, self.volume, self.fs, self.whole = box, volume, fs, whole_volume

    def ask(self, role="primary", **more):
        """The journal of a handover that has ended."""
        handover = {"role": role, "data_directory": self.node.data, **more}
        status, answer = self.node.agent.api("POST", "/restores", {
            "snapshot": "t1", "execute": True, "handover": handover})
        return self.node.agent.wait_job(answer["id"]) if status == 202 else {"error": answer}

    def refused(self, what, message, code="refused", **more):
        error = self.ask(**more).get("error") or {}
        is_(error.get("code"), code, f"{self.fs}: {what}: {code}")
        like(error.get("text") or error.get("detail"), message, f"{self.fs}: {what}: says why")

    def empty(self):
        """As Patroni does it."""
        if self.whole:
            for name in os.listdir(self.node.data):
                subprocess.run(["rm", "-rf", os.path.join(self.node.data, name)], check=True)
        else:
            shutil.rmtree(self.node.data)

    def signals(self):
        return [name for name in ("recovery.signal", "standby.signal", "backup_label")
                if os.path.exists(os.path.join(self.node.data, name))]

    def settings(self):
        path = os.path.join(self.node.data, "postgresql.auto.conf")
        with open(path, encoding="utf-8") as file:
            return [line.split(" = ")[0] for line in file if line[0] not in "#\n"]


def refusals(story):
    server, data = story.node.server, story.node.data
    story.refused("a running server", "PostgreSQL runs in")
    server.stop()
    story.refused("a stopped one", "is not empty: it holds '")
    story.empty()
    if not story.whole:
        os.symlink("/root", data)
        story.refused("a link to what is not the server's", "Permission denied")
        os.unlink(data)
        os.mkdir(data)
        shutil.chown(data, "postgres", "postgres")
    path = os.path.join(data, "left")
    with open(path, "w", encoding="ascii"):
        pass
    story.refused("one file", "it holds 'left'")
    os.rename(path, os.path.join(data, ".left"))  # which Patroni does not mind
    story.refused("another directory", "is not this node's data_directory", data_directory="/srv/x")
    story.refused("another cluster", "of another database cluster", role="replica", system_id="77")
    ok(not server.running(), f"{story.fs}: nothing was started")


def handed_over(story):
    """A replica, then a primary, of the same snapshot."""
    node, server = story.node, story.node.server
    journal = story.ask(role="replica")
    is_((journal["state"], journal["step"]), ("complete", "complete"), f"{story.fs}: a replica")
    is_(story.signals(), ["standby.signal", "backup_label"], f"{story.fs}: it would follow")
    is_(story.settings(), [], f"{story.fs}: no setting that would win over Patroni's")
    ok(not server.running(), f"{story.fs}: it is left stopped")
    health = node.agent.api("GET", "/health")[1]
    is_((health["status"], health["job"], health["cause"]),
        ("failed", None, "PostgreSQL does not run"), f"{story.fs}: nothing else is missing")
    story.empty()
    journal = story.ask()
    is_(journal["state"], "complete", f"{story.fs}: a primary")
    is_(story.signals(), ["recovery.signal", "backup_label"], f"{story.fs}: it would recover")
    ok(not server.running(), f"{story.fs}: it is left stopped, too")
    server.start()
    server.wait_ready()
    is_((server.psql(COUNT), server.timeline()), ("100", 2), f"{story.fs}: started, it is the tag")
    server.stop("immediate")


def other_filesystem(story):
    """A new disk in the volume's place: Patroni's by right while it is mounted, else nobody's."""
    story.box.umount(story.volume.mount)
    story.box.mkfs(story.volume.device, story.fs)
    story.refused("a foreign device that is not mounted", "is not blank and not the one")
    story.box.mount(story.volume.device, story.volume.mount)
    shutil.chown(story.volume.mount, "postgres", "postgres")
    is_(story.ask()["state"], "complete", f"{story.fs}: onto a new filesystem")


def main():
    tm.need_root()
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-wal")
    box = tm.Sandbox("handover")
    for fs, name, whole in (("ext4", "inside", False), ("xfs", "whole", True)):
        story = Story(box, fs, name, whole)
        refusals(story)
        handed_over(story)
        other_filesystem(story)
        story.node.agent.stop()


if __name__ == "__main__":
    run(main)
