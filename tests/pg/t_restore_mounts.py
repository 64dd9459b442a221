#!/usr/bin/env python3
# check: build=asan timeout=300
"""restore --mount: WAL and two tablespaces come back in each other's places (every one of them gets
the mount point of the next), so no link and no line of tablespace_map may be taken for one that has
been moved already; also when the job dies between moving the links and starting the server. From an
encrypted repository."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import journal_of, job_log  # noqa: E402
import tm  # noqa: E402

ROWS = 2000


def start_node(box):
    volumes = [box.volume("pgdata", 320 * MIB), box.volume("pgwal", 320 * MIB),
               box.volume("hot", 64 * MIB), box.volume("cold", 64 * MIB)]
    node = Node(box, volumes, volumes[1],
                options={"tidemark": {"freeze_deadline": "60s", "resume": "wait"}})
    node.encrypt()
    node.start()
    for name in ("hot", "cold"):
        node.server.psql(f"create table {name} tablespace ts_{name} as "
                         f"select i, '{name}' as t from generate_series(1, {ROWS}) i")
    is_status(node.cli("snapshot", "--tag", "t1"), 0, "a snapshot of four volumes")
    node.server.psql("drop table hot; drop table cold")
    return node


def wrong_wishes(node):
    for wish, want, text in (
            ("hot:relative", "usage", "cannot be the mount point of volume 'hot'"),
            ("hot:/a/../b", "usage", "cannot be the mount point of volume 'hot'"),
            ("warm:/srv/warm", "usage", "--mount: the snapshot has no volume 'warm'"),
            (f"hot:{node.volumes[3].mount}", "refused", "would share mount point"),
            (f"pgdata:{node.box.join('else')}", "refused", "the configuration says data_directory"),
            ("hot:/srv/elsewhere", "busy", "is mounted on")):
        done = node.cli("restore", "t1", "--dry-run", f"--mount={wish}")
        is_status(done, want, f"--mount={wish}")
        like(done.err, text, f"--mount={wish}: why not")


def check(node, places, what):
    server = node.server
    server.wait_ready()
    for name in ("hot", "cold"):
        is_(server.psql(f"select count(*), min(t) from {name}"), f"{ROWS}|{name}",
            f"{what}: the rows of {name}")
        is_(server.psql(f"select pg_tablespace_location(oid) from pg_tablespace "
                        f"where spcname = 'ts_{name}'"), places[name] + "/ts",
            f"{what}: its tablespace lies where the volume is mounted")
    ok(os.readlink(node.data + "/pg_wal").startswith(places["pgwal"] + "/"),
       f"{what}: pg_wal leads to its volume")
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounted = {line.split()[4]: line.split(" - ")[1].split()[1] for line in file}
    for volume in node.volumes[1:]:
        is_(mounted.get(places[volume.name]), volume.device, f"{what}: device of {volume.name}")
    is_(server.amcheck()[0], 0, f"{what}: amcheck finds nothing")
    server.psql("create table later as select 1; checkpoint")


def unmount(node):
    node.server.stop("immediate", check=False)
    for volume in reversed(node.volumes):
        for mount in tm.mounts_below(volume.mount):
            node.box.umount(mount)


def main():
    box = need_root() or Sandbox("restore-mounts")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    node = start_node(box)
    wrong_wishes(node)
    node.agent.stop()
    node.agent.start(TIDEMARK_TEST_STOP="configured-files")
    unmount(node)
    moved = node.volumes[1:]
    places = {a.name: b.mount for a, b in zip(moved, moved[1:] + moved[:1])}
    wishes = [f"--mount={name}:{place}" for name, place in places.items()]
    done = node.cli("restore", "t1", "--yes", *wishes)
    isnt(done.status, 0, "the job dies when the links are moved")
    is_(journal_of(node)["step"], "configured", "in its step configured")
    like("\n".join(journal_of(node)["plan"]["warnings"]),
         "volume 'hot' will be mounted at .*, the configuration says",
         "the plan warns of what the configuration says")
    node.agent.stop()
    node.agent.start()
    done = node.cli("restore", "--resume")
    if not is_status(done, 0, "it is resumed"):
        tm.diag(job_log(node))
    check(node, places, "changed places")
    node.agent.stop()
    node.server.stop("immediate", check=False)
    for volume in reversed(node.volumes):
        box.umount(volume.mount)


run(main)
