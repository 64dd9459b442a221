#!/usr/bin/env python3
# check: build=asan timeout=300
"""`tidemark export`: the file has the bytes of the device at the captured instant, a filesystem
that mounts and a server that starts; FILE is whole or not there, whatever happens meanwhile."""
import json
import os
import shutil
import stat
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402
import snapshots as snap  # noqa: E402

CHUNK = 32 * KIB


def export(node, tag, path, *args, want=0, what=None):
    done = node.cli("export", tag, path, *args)
    is_status(done, want, what or f"export {tag}")
    return done


def is_sound(node, tag, path, volume, what):
    """Chunk by chunk with the device of a volume that nobody has written since; free ones are
    zeros."""
    entries = snap.chunk_map(node, tag, volume.name)
    is_(os.stat(path).st_size, os.stat(volume.image).st_size, f"{what}: the volume's length")
    device = node.box.join("device.copy")
    snap.copy_device(volume.device, device)  # not by way of the page cache
    is_(snap.differences(path, device, entries, CHUNK), [], f"{what}: the device's bytes")
    os.unlink(device)
    stray = 0
    with open(path, "rb") as file:
        for index, entry in enumerate(entries):
            if entry in ("free", "zero"):
                file.seek(index * CHUNK)
                stray += any(file.read(CHUNK))
    is_(stray, 0, f"{what}: zeros where nothing is")
    ok(sum(entry == "free" for entry in entries) > 100, f"{what}: there is free space")
    found = os.stat(path)
    ok(found.st_blocks * 512 < found.st_size / 2, f"{what}: sparse ({found.st_blocks * 512})")
    is_(stat.S_IMODE(found.st_mode), 0o600, f"{what}: nobody else may read it")


def test_cold(node, box):
    """Offline: the device is what it was."""
    volumes = node.volumes
    path = box.join("out", "cold.img")
    done = export(node, "cold", path, want="usage", what="which of two volumes?")
    like(done.err, r"hint: choose one with --volume=NAME: pgdata, \w+", "they are named")
    export(node, "cold", path, "--volume=nix", want="usage", what="a volume that is not there")
    for volume in volumes:
        path = box.join("out", f"cold-{volume.name}.img")
        done = export(node, "cold", path, f"--volume={volume.name}")
        like(done.out, f"volume {volume.name} of snapshot cold is in {path}: ",
             "says what is where")
        is_sound(node, "cold", path, volume, f"cold {volume.name}")
    is_(sorted(os.listdir(box.join("out"))),
        sorted(f"cold-{volume.name}.img" for volume in volumes), "nothing else is left")


def test_start(node, box):
    """Of a running server, with its WAL: mounted where the volumes were, a server starts."""
    for volume in node.volumes:
        path = box.join("out", f"warm-{volume.name}.img")
        done = export(node, "warm", path, f"--volume={volume.name}", "--json")
        result = json.loads(done.out)["result"]
        is_(result["wal_in_image"], True, "the WAL is in it")
        output("mount", box.loop(path), volume.mount)
    with open(node.data + "/postgresql.auto.conf", "a", encoding="utf-8") as file:
        file.write("archive_mode = off\n")
    node.server.start()
    node.server.wait_ready()
    is_(node.server.psql("select count(*), sum(i) from kept"), "1000|500500", "the rows are there")
    is_(node.server.psql("select to_regclass('later') is null"), "t", "and no later ones")
    is_(node.server.amcheck()[0], 0, "amcheck finds nothing")
    node.server.stop()
    for volume in reversed(node.volumes):
        box.umount(volume.mount)


def test_no_wal(node, box):
    done = export(node, "archived", box.join("out", "archived.img"), "--volume=pgdata")
    like(done.out, "note: without its WAL: PostgreSQL does not start from it alone", "it says so")


def test_names(node, box):
    """Refusals, replacing, relative names."""
    path = box.join("out", "taken.img")
    with open(path, "w", encoding="ascii") as file:
        file.write("precious")
    done = export(node, "cold", path, "--volume=pgdata", want="refused", what="a taken name")
    like(done.err, "hint: choose another name, or say --force", "with a hint")
    with open(path, encoding="ascii") as file:
        is_(file.read(), "precious", "the file is untouched")
    export(node, "cold", path, "--volume=pgdata", "--force", what="--force replaces it")
    is_(os.stat(path).st_size, os.stat(node.volumes[0].image).st_size, "by the image")
    os.unlink(path)
    os.symlink("/etc/passwd", path)
    export(node, "cold", path, "--volume=pgdata", "--force", want="refused", what="a link")
    export(node, "cold", node.volumes[0].device, "--volume=pgdata", "--force", want="refused",
           what="a device")
    export(node, "cold", "/", "--volume=pgdata", want="usage", what="a directory")
    export(node, "cold", box.join("no", "such", "x"), "--volume=pgdata", want="device",
           what="a directory that is not there")
    done = subprocess.run([os.path.join(node.programs, "tidemark"), "export", "cold", "here.img",
                           "--volume=pgdata"], cwd=box.join("out"), check=False,
                          env={**os.environ, "TIDEMARK_CONFIG": node.conf}, capture_output=True)
    is_(done.returncode, 0, "a name below the working directory")
    ok(os.path.exists(box.join("out", "here.img")), "is there")
    small = box.mkdir("small")
    output("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", small)
    done = export(node, "cold", small + "/x", "--volume=pgdata", want="device", what="no space")
    like(done.err, "is too small: .* bytes free, the image has up to", "said before it is written")
    is_(os.listdir(small), [], "nothing is left there")
    box.umount(small)
    status, body = node.agent.api("POST", "/exports", {"snapshot": "cold", "file": "x"})
    is_(status, 202, "the API makes a job of it")
    is_(node.agent.wait_job(body["id"])["error"]["code"], "usage", "that wants an absolute path")


def test_damage(node, box):
    """A pack is lost: no FILE, no FILE.partial."""
    path = box.join("out", "damaged.img")
    lost = sorted(snap.repository(node) + "/" + name
                  for name in snap_packs(node, "cold", "pgdata"))[0]
    os.rename(lost, lost + "-away")
    done = export(node, "cold", path, "--volume=pgdata", want="missing", what="a pack is lost")
    os.rename(lost + "-away", lost)
    like(done.err, "region .* chunk", "where")
    is_([name for name in os.listdir(box.join("out")) if name.startswith("damaged")], [],
        "nothing is left")


def snap_packs(node, tag, volume):
    import tidemark_reader as reader  # pylint: disable=import-outside-toplevel
    source = reader.Repository(snap.repository(node))
    found = reader.Volume(source, reader.find_record(source, tag), volume)
    for index in range(len(found.places)):
        references, entries, _ = found.region(index)
        for _, pack, _, word, _ in entries:
            if word >> 24 in (0, reader.RAW):
                owner, number, _ = references[pack]
                yield f"pack/{found.id_text}/{owner.hex()}/{number:08x}"


def test_kill(node, box):
    path = box.join("out", "killed.img")
    node.agent.stop()
    node.agent.start(TIDEMARK_TEST_STOP="exported-blocks")
    done = node.cli("export", "cold", path, "--volume=pgdata")
    is_status(done, "internal", "the job is killed at its end")
    hint = f"hint: '{path}.partial' is not finished: remove it, or export again with --force"
    ok(hint in done.err, "the hint names the file")
    ok(os.path.exists(path + ".partial") and not os.path.exists(path), "there is no FILE")
    node.agent.stop()
    node.agent.start()
    job = node.agent.api("GET", "/jobs")[1]["jobs"][-1]
    ok(job["state"] == "failed" and hint[6:] == job["error"]["hint"], "so does the job")
    done = export(node, "cold", path, "--volume=pgdata", want="refused", what="again")
    like(done.err, "partial' is there: another export runs, or was killed", "is refused")
    export(node, "cold", path, "--volume=pgdata", "--force", what="with --force")
    is_sound(node, "cold", path, node.volumes[0], "after the kill")
    ok(not os.path.exists(path + ".partial"), "nothing is left")


def test_alone(node, box):
    """No agent, no configuration, no root: the repository alone."""
    node.agent.stop()
    directory = box.mkdir("theirs", 0o777)
    done = run_program(os.path.join(node.programs, "tidemark"), "export", "cold",
                       directory + "/x.img", "--volume=pgdata", f"--repository={node.repository}",
                       user="postgres", HOME=directory)
    is_status(done, 0, "export by the server's user")
    is_sound(node, "cold", directory + "/x.img", node.volumes[0], "by the server's user")
    shutil.rmtree(directory)


def main():
    box = need_root() or Sandbox("export")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    box.mkdir("out")
    node = Node(box, [box.volume("pgdata", 400 * MIB), box.volume("ts", 96 * MIB)],
                options={"tidemark": {"freeze_deadline": "60s"}})
    node.start()
    node.server.psql("create table kept tablespace ts_ts as "
                     "select i from generate_series(1, 1000) i")
    is_status(node.cli("snapshot", "--tag", "archived"), 0, "a snapshot without its WAL")
    is_status(node.cli("snapshot", "--tag", "warm", "--with-wal"), 0, "a snapshot with its WAL")
    node.server.psql("create table later as select 1")
    node.server.stop()
    for volume in node.volumes:
        box.umount(volume.mount)
    node.agent.stop()
    text = open(node.conf, encoding="utf-8").read()
    with open(node.conf, "w", encoding="utf-8") as file:
        file.write(text.replace("provider = freeze", "provider = offline"))
    node.agent.start()
    is_status(node.cli("snapshot", "--tag", "cold"), 0, "one of a stopped server, not mounted")
    test_cold(node, box)
    test_no_wal(node, box)
    test_names(node, box)
    test_damage(node, box)
    test_kill(node, box)
    test_alone(node, box)
    node.agent.start()
    test_start(node, box)
    node.agent.stop()


run(main)
