#!/usr/bin/env python3
# check: build=asan campaign=release timeout=200
"""1 GiB of archived, recycled segments in pg_wal: neither the snapshot reads it nor the restore
writes it, as the kernel counts the sectors of the volume."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story, record_of  # noqa: E402


def written(volume):
    with open(f"/sys/block/{os.path.basename(volume.device)}/stat", encoding="ascii") as file:
        return int(file.read().split()[6]) * 512


def wal_bytes(node):
    path = os.path.join(node.data, "pg_wal")
    return sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path)
               if len(name) == 24)


def main():
    box = need_root() or Sandbox("restore-recycled")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    story = Story(box, "recycled", size=2 * GIB,
                  settings={"min_wal_size": "1GB", "max_wal_size": "2GB"})
    node, server, volume = story.node.start(), story.server, story.node.volumes[0]
    server.psql("create table kept as select generate_series(1, 100000) as n")
    for _ in range(70):
        last = server.psql("select pg_logical_emit_message(false, 'test', 'x')\n;"
                           "select pg_walfile_name(pg_switch_wal());").split("\n")[-1]
    node.wait_archived(last)
    server.psql("checkpoint")
    ok(wal_bytes(node) >= GIB, f"pg_wal holds {wal_bytes(node) >> 20} MiB")
    is_status(node.cli("snapshot", "--tag", "t1"), 0, "snapshot")
    read = record_of(node, "t1")["volumes"][0]["bytes_read"]
    ok(read < 400 * MIB, f"the snapshot read {read >> 20} MiB")
    server.psql("drop table kept")
    before = written(volume)
    story.restore("--verify=quick")
    server.wait_ready()
    wrote = written(volume) - before
    ok(8 * MIB < wrote < 400 * MIB, f"the restore wrote {wrote >> 20} MiB")
    is_(server.psql("select count(*) from kept"), "100000", "the rows are back")
    story.end()


run(main)
