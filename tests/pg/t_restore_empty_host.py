#!/usr/bin/env python3
# check: build=asan timeout=300
"""A new host: PostgreSQL's programs, the repository, three blank devices (data, WAL, tablespace),
and nothing else. No configuration, no state_dir (so the default one, /var/lib/tidemark), no fstab
entry, no mount point, none of the directories where the old server had its socket and its log; WAL
and tablespace get other mount points than they had, and their links follow. The
test has a mount namespace of its own with /etc, /run and /var/lib that nobody else sees."""
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story, journal_of  # noqa: E402
import tm  # noqa: E402

STATE = "/var/lib/tidemark"
PRIVATE = ("/etc", "/run", "/var/lib")


class Real:
    """The host's own directories, held open since before others were mounted on them."""

    def __init__(self):
        self.fds = {name: os.open(name, os.O_PATH | os.O_DIRECTORY) for name in PRIVATE}
        self.before = self.look()

    def look(self):
        found = {}
        for name, fd in self.fds.items():
            for entry in ("tidemark", "fstab", "."):
                try:
                    stat = os.stat(entry, dir_fd=fd)
                    # /run belongs to everybody: there only what is ours counts.
                    found[name, entry] = entry == "." and name == "/run" or (stat.st_ino,
                                                                             stat.st_mtime_ns)
                except FileNotFoundError:
                    found[name, entry] = None
        return found


def private_directories(box):
    """Another /etc (the accounts are needed), an empty /run, an empty /var/lib."""
    copy = box.join("etc")
    shutil.copytree("/etc", copy, symlinks=True, ignore=lambda top, names: [
        name for name in names if name == "tidemark" or not os.path.lexists(f"{top}/{name}")])
    for path in PRIVATE:
        output("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", path)
    output("cp", "-a", copy + "/.", "/etc/")
    with open("/etc/fstab", "w", encoding="ascii"):
        pass


def lose_host(story):
    """All that the old host had is gone but the repository."""
    node = story.node
    node.agent.stop()
    story.server.stop()
    for volume in reversed(node.volumes):
        story.box.umount(volume.mount)
        story.box.unloop(volume.device)
        os.unlink(volume.image)
        os.rmdir(volume.mount)
    shutil.rmtree(node.state_dir)
    shutil.rmtree(story.server.socket)
    shutil.rmtree(story.box.join("log"))
    os.unlink(node.conf)


def restore(story):
    """One command; new disks are a little larger."""
    node, box = story.node, story.box
    devices = []
    for volume in node.volumes:
        size = (500 if volume.mount.endswith("pgdatanew") else 420) * MIB
        device = box.loop(box.image(f"blank-{volume.name}.img", size))
        devices.append(f"--device={volume.name}:{device}")
        if volume is not node.volumes[0]:
            volume.mount = box.join("elsewhere-" + volume.name)
            devices.append(f"--mount={volume.name}:{volume.mount}")
    done = run_program(os.path.join(node.programs, "tidemark"), "restore", "--yes",
                       f"--repository={node.repository}", *devices, "t1",
                       TIDEMARK_WAL_ARCHIVE_TIMEOUT="3s")
    if not is_status(done, 0, "restored from the repository alone"):
        for top, _, names in os.walk(STATE):
            for name in names:
                if name in ("log", "postgresql.log"):
                    tm.diag(tm.tail(os.path.join(top, name), 40))
    return done


def check(story):
    node = story.node
    node.state_dir = STATE
    story.check_tag("empty host")
    journal = journal_of(node)
    is_(journal["state"], "complete", "the job in the default state_dir is complete")
    ok(os.path.isfile(STATE + "/postgresql.log"), "the server's log is in the default place")
    for volume in node.volumes:
        ok(volume.mount in tm.mounts_below(volume.mount), f"{volume.name} is mounted at its place")
    link = os.readlink(node.data + "/pg_wal")
    ok(link.startswith(story.wal_volume.mount + "/"), "pg_wal leads to the WAL's device")
    ok(os.listdir(os.path.join(story.tablespace.mount, "ts")), "the tablespace is on its device")
    is_(story.server.psql("select pg_tablespace_location(oid) from pg_tablespace"
                          f" where spcname = 'ts_{story.tablespace.name}'"),
        story.tablespace.mount + "/ts", "the server finds it there")
    ok(os.path.isdir(story.server.socket), "the socket's directory is made")


def main():
    box = need_root() or Sandbox("empty-host")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    real = Real()
    private_directories(box)
    story = Story(box, "new", wal=True, tablespace=True)
    story.begin()
    lose_host(story)
    is_(os.path.exists(STATE), False, "there is no state_dir")
    restore(story)
    check(story)
    is_(real.look(), real.before, "the real /etc, /run and /var/lib are as they were")
    story.server.stop("immediate", check=False)
    for volume in reversed(story.node.volumes):
        box.umount(volume.mount)


if __name__ == "__main__":
    run(main)
