#!/usr/bin/env python3
"""Snapshots of a running server: what is in the repository is what the volume held at the instant,
an incremental stores what changed and nothing else, caches are only caches, WAL that is archived is
not moved."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import snapshots as snap  # noqa: E402

CHUNK = 32 * KIB


def take(node, tag, *options):
    done = node.cli("snapshot", "--tag", tag, *options)
    is_status(done, 0, f"snapshot '{tag}' is taken")
    return snap.record(node, tag)


def test_freeze_oracle(node, volume):
    """The image equals a copy of the device that was made while the volume was frozen for it."""
    heart = snap.Heartbeat(volume.mount)
    copy = node.box.join("frozen.img")
    running = snap.Running(node, "snapshot", "--tag", "oracle")
    running.wait_phase("copying")
    number = heart.wait_frozen()
    snap.copy_device(volume.device, copy)
    ok(heart.still(number), "the volume was frozen while the test copied it")
    is_status(running.wait(), 0, "the snapshot under load is taken")
    heart.stop()
    record = snap.record(node, "oracle")
    image, chunks = snap.image(node, "oracle", check="20")
    is_(len(chunks), record["volumes"][0]["size"] // CHUNK, "the map has every chunk")
    data = [c for c in chunks if c not in ("zero", "free")]
    ok(len(data) > 500, f"{len(data)} chunks hold data")
    is_(snap.differences(image, copy, chunks, CHUNK), [], "image and frozen device are the same")
    is_(record["volumes"][0]["chunks_stored"], len(data), "a first snapshot stores every chunk")
    ok(record["freeze_ns"] > 1e9, "the record says how long the freeze was")
    return record


def check_record(node, record):
    server = record["postgresql"]
    is_(server["system_id"], node.server.psql("select system_identifier from pg_control_system()"),
        "the record has the system identifier")
    ok(lsn(server["start_lsn"]) < lsn(server["stop_lsn"]) < lsn(server["tag_lsn"]),
       "start < stop < tag")
    is_(server["restore_point"], "oracle@" + record["id"], "the restore point is tag@id")
    is_(server["settings"]["max_connections"], node.server.psql("show max_connections"),
        "settings are recorded")
    names = [os.path.basename(f["path"]) for f in server["config_files"]]
    ok({"postgresql.conf", "pg_hba.conf", "pg_ident.conf", "postgresql.auto.conf",
        "included.conf"} <= set(names), "config files are recorded, includes too")
    is_(record["wal_in_image"], False, "WAL is not in the image")
    missing = [name for name in wal_names(record) if not wal_object(node, record, name)]
    is_(missing, [], "every segment from start to tag is in the repository")
    label = node.server.psql("select pg_is_in_recovery()")
    is_(label, "f", "the server goes on")
    is_(node.server.psql("select count(*) from pg_stat_activity where application_name = "
                         "'tidemark'"), "0", "and no session of ours is left")


def lsn(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def wal_names(record):
    server = record["postgresql"]
    size = server["segment_size"]
    per_id = (1 << 32) // size
    first, last = lsn(server["start_lsn"]) // size, (lsn(server["tag_lsn"]) - 1) // size
    return ["%08X%08X%08X" % (server["timeline"], n // per_id, n % per_id)
            for n in range(first, last + 1)]


def wal_object(node, record, name):
    server = record["postgresql"]
    path = (f"{snap.repository(node)}/wal/{record['cluster']}/{server['system_id']}/"
            f"{server['timeline']:08X}/{name}")
    return os.path.exists(path)


def test_incremental(node, load):
    load.wait_transactions(300)
    before = snap.chunk_map(node, "oracle")
    record = take(node, "second")
    after = snap.chunk_map(node, "second")
    changed = snap.changed_chunks(before, after)
    volume = record["volumes"][0]
    is_(record["parent"], snap.record(node, "oracle")["id"], "the parent is the one before")
    is_(volume["chunks_stored"], len(changed), "an incremental stores the chunks that changed")
    ok(0 < len(changed) < 0.7 * volume["bytes_read"] / CHUNK,
       f"{len(changed)} of {volume['bytes_read'] // CHUNK} chunks")
    ok(volume["chunks_same"] > 0, "and keeps the others")
    load.stop()
    node.server.psql("checkpoint")
    quiet = take(node, "quiet")
    again = take(node, "again")
    ok(again["volumes"][0]["chunks_stored"] < 200,
       f"a quiet server costs {again['volumes'][0]['chunks_stored']} chunks")
    is_(again["parent"], quiet["id"], "its parent is the newest")


def table_cache(node):
    directory = os.path.join(node.state_dir, "tables")
    names = os.listdir(directory)
    is_(len(names), 1, f"one table cache and no working table: {names}")
    return os.path.join(directory, names[0])


def rebuilt(node, tag, why):
    """The next snapshot has the same result as with an intact cache."""
    before = snap.chunk_map(node, snap.record_by_age(node)[-1]["tag"])
    record = take(node, tag)
    after = snap.chunk_map(node, tag)
    is_(record["volumes"][0]["chunks_stored"], len(snap.changed_chunks(before, after)),
        f"{why}: the snapshot stores what changed")
    table_cache(node)


def test_cache(node):
    """Deleted, damaged, forgotten: the result is the same. Every chunk of the last one is read and
    its digest compared, so no table names a chunk that is not there."""
    os.unlink(table_cache(node))
    rebuilt(node, "cache-gone", "cache deleted")
    path = table_cache(node)
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    rebuilt(node, "cache-damaged", "one bit of the cache flipped")
    os.unlink(os.path.join(node.state_dir, "volumes.json"))
    record = take(node, "ids-gone")
    ok(record["parent"] is not None and int(record["parent"], 16) != 0,
       "volumes.json deleted: the id is found again in the parent's record")
    snap.image(node, "ids-gone", check="4")
    ok(True, "every chunk can be read, a quarter of the digests was compared")


def test_parent(node):
    records = snap.record_by_age(node)
    newest = snap.record_path(node, records[-1]["tag"])
    os.rename(newest, node.box.join("aside.json"))
    older = take(node, "older-parent")
    is_(older["parent"], records[-2]["id"], "the newest record removed: the one before is parent")
    for path in snap.record_paths(node):
        os.unlink(path)
    full = take(node, "no-parent")
    is_(int(full["parent"], 16), 0, "all records removed: a full snapshot")
    is_(full["volumes"][0]["chunks_same"], 0, "that shares nothing")
    chunks = snap.chunk_map(node, "no-parent")
    is_(full["volumes"][0]["chunks_stored"], sum(c not in ("zero", "free") for c in chunks),
        "and stores everything")
    forced = take(node, "forced", "--full")
    is_(int(forced["parent"], 16), 0, "--full has no parent")


def directory_bytes(path):
    return sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path)
               if len(name) == 24)


def test_recycled_wal(node):
    """1 GiB of old and recycled segments costs nothing; with --with-wal it does."""
    node.server.psql("alter system set archive_command = 'true'")
    node.server.psql("alter system set min_wal_size = '1GB'")
    node.server.psql("alter system set max_wal_size = '2GB'")
    node.server.psql("select pg_reload_conf()")
    for _ in range(66):
        node.server.psql("select pg_logical_emit_message(false, 'test', 'x')\n;"
                         "select pg_switch_wal();")
    poll(lambda: node.server.psql("select count(*) from pg_ls_archive_statusdir() "
                                  "where name like '%.ready'") == "0", 60, "archive")
    node.server.psql("alter system reset archive_command")
    node.server.psql("select pg_reload_conf()")
    node.server.psql("checkpoint")
    pg_wal = os.path.join(node.data, "pg_wal")
    ok(directory_bytes(pg_wal) >= GIB, f"pg_wal holds {directory_bytes(pg_wal) >> 20} MiB")
    lean = take(node, "lean", "--full")
    ok(lean["volumes"][0]["bytes_read"] < 400 * MIB,
       f"{lean['volumes'][0]['bytes_read'] >> 20} MiB were read")
    whole = take(node, "with-wal", "--full", "--with-wal")
    extra = whole["volumes"][0]["bytes_read"] - lean["volumes"][0]["bytes_read"]
    ok(extra >= GIB - 64 * MIB, f"--with-wal reads {extra >> 20} MiB more")
    is_(whole["wal_in_image"], True, "and says so in the record")
    is_(snap.record(node, "lean")["wal_in_image"], False, "which the other does not")


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    box = Sandbox("t_snapshot")
    volume = box.volume("pgdata", 2 * GIB)
    node = Node(box, [volume], provider="freeze",
                options={"tidemark": {"freeze_deadline": "30s", "rate_limit": "16MiB"},
                         "repository": {"rewrite_budget": "0%"}})  # chunks are counted
    node.start()
    box.write("included.conf", "work_mem = '5MB'\n", 0o644)
    node.server.configure(include=box.join("included.conf"))
    node.server.reload()
    node.server.pgbench_init(3)
    load = node.server.pgbench()
    load.wait_transactions(50)
    record = test_freeze_oracle(node, volume)
    node.sections["tidemark"]["rate_limit"] = None
    node.write_conf()
    restart_agent(node)
    check_record(node, record)
    test_incremental(node, load)
    test_cache(node)
    test_parent(node)
    test_recycled_wal(node)
    node.server.stop()


def restart_agent(node):
    if node.agent.running():
        node.agent.stop()
        node.agent.start()


run(main)
