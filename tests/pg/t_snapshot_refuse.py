#!/usr/bin/env python3
"""What a snapshot refuses, with the exact message and status, and that nothing is visible then."""
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import snapshots as snap  # noqa: E402

NO_ARCHIVE = ("--no-archive: it keeps the WAL in the image and offers only target `snapshot`")


def refused(node, why, status, pattern, hint=None, tag="refused", args=()):
    before = snap.tags(node)
    done = node.cli("snapshot", "--tag", tag, *args)
    is_status(done, status, f"{why}: exit status")
    like(done.err, pattern, f"{why}: message")
    if hint:
        ok("hint: " in done.err and hint in done.err, f"{why}: hint") or diag(done.err)
    is_(snap.tags(node), before, f"{why}: nothing is visible")


def setting(node, **values):
    for name, value in values.items():
        node.server.psql(f"alter system set {name} = '{value}'")
    node.server.psql("select pg_reload_conf()")


def test_tags(node):
    is_status(node.cli("snapshot", "--tag", "first"), 0, "the intact case: a snapshot is taken")
    refused(node, "tag in use", "busy", "tag 'first' is taken by snapshot [0-9a-f]{32}",
            "choose another tag", tag="first")
    for tag in ("latest", "a/b", "-x", "x" * 31, "0123456789abcdef" * 2):
        refused(node, f"tag '{tag[:12]}'", "usage", "cannot be a tag", tag=tag)


def test_archiving(node):
    setting(node, archive_command="")
    refused(node, "archive_command empty", "refused",
            "the server does not archive: archive_command is empty", NO_ARCHIVE)
    setting(node, archive_command="true")
    refused(node, "archives to another place", "refused",
            "does not archive to this repository: [0-9A-F]{24} was archived, but is not here",
            NO_ARCHIVE)
    setting(node, archive_command="false")
    refused(node, "archive_command fails", "refused",
            "does not archive to this repository: [0-9A-F]{24} cannot be archived .*last failed: "
            "[0-9A-F]{24}", NO_ARCHIVE)
    done = node.cli("snapshot", "--tag", "no-archive", "--no-archive")
    is_status(done, 0, "--no-archive takes it all the same")
    record = snap.record(node, "no-archive")
    is_((record["postgresql"]["archived"], record["wal_in_image"],
         record["postgresql"]["restore_point"]), (False, True, ""),
        "with the WAL in the image and no restore point")
    node.server.psql("alter system reset archive_command")
    node.server.stop()
    node.server.configure(archive_mode="off")
    node.server.start()
    refused(node, "archive_mode off", "refused", "the server does not archive: archive_mode is off",
            NO_ARCHIVE)
    node.server.configure(archive_mode="on")
    node.server.stop()
    node.server.configure(wal_level="minimal", max_wal_senders="0", archive_mode="off")
    node.server.start()
    refused(node, "wal_level minimal", "refused", "wal_level is minimal", "wal_level = replica",
            args=("--no-archive",))
    node.server.stop()
    node.server.configure(wal_level="replica", max_wal_senders="4", archive_mode="on")
    node.server.start()


def test_layout(node, box):
    other = os.path.join(node.volumes[0].mount, "other", "cluster")
    stranger = Server(box, other)
    stranger.init()
    refused(node, "second data directory", "refused",
            f"volume 'pgdata' also holds the data directory '{other}'",
            "give every server a volume of its own")
    output("rm", "-rf", os.path.dirname(other))
    outside = box.mkdir("outside", 0o700, "postgres")
    node.server.psql(f"create tablespace outside location '{outside}'")
    refused(node, "tablespace elsewhere", "refused",
            f"tablespace '{outside}' is not on a configured volume", "add a [volume NAME] section")
    node.server.psql("drop tablespace outside")
    real = os.path.join(node.data, "pg_stat")
    node.server.stop()
    shutil.move(real, box.join("pg_stat"))
    os.symlink(box.join("pg_stat"), real)
    output("chown", "-R", "postgres:", box.join("pg_stat"))
    node.server.start()
    refused(node, "a directory of the cluster elsewhere", "refused",
            f"directory '{real}' is not on a configured volume")
    node.server.stop()
    os.unlink(real)
    shutil.move(box.join("pg_stat"), real)
    output("chown", "-R", "postgres:", real)
    node.server.start()


def link(target, path):
    os.symlink(target, path)
    output("chown", "-h", "postgres:", path)
    return path


def test_links(node, box):
    """Every link that a restore would refuse, or could not follow, is refused here."""
    mount, data = node.volumes[0].mount, node.data
    hint = "remove it when nothing needs it, or add a [volume NAME]"
    outside = box.mkdir("stray", 0o700, "postgres")
    inside = os.path.join(mount, "stray")
    os.mkdir(inside)
    shutil.chown(inside, "postgres", "postgres")
    detour = link(mount, box.join("detour"))
    stray = os.path.join(data, "pg_tblspc", "4711")
    for why, target, leads in (("to somewhere else", outside, outside),
                               ("to nothing elsewhere", outside + "/gone", outside + "/gone"),
                               ("relative", os.path.relpath(outside, data + "/pg_tblspc"), outside),
                               ("by a detour", detour + "/stray", detour + "/stray"),
                               ("with ..", mount + "/../stray", mount + "/../stray")):
        link(target, stray)
        refused(node, f"a tablespace link that no catalogue names, {why}", "refused",
                f"link '{stray}' leads outside the volumes, to '{leads}'", hint)
        os.unlink(stray)
    logs = link(os.path.relpath(outside, data), os.path.join(data, "log"))
    refused(node, "log_directory as a link", "refused", f"directory '{logs}' is not on a conf")
    os.unlink(logs)
    link(os.path.relpath(box.join("gone"), data), logs)
    refused(node, "log_directory as a link to nothing", "refused",
            f"link '{logs}' leads outside the volumes, to '{box.join('gone')}'", hint)
    os.unlink(logs)
    node.server.psql(f"create tablespace detour location '{detour}/stray'")
    refused(node, "a tablespace by a detour", "refused",
            f"tablespace '{detour}/stray' does not lie below the mount point of its volume",
            "name it by a path without links")
    node.server.psql("drop tablespace detour")
    node.server.stop()
    slots = os.path.join(data, "pg_replslot")
    shutil.move(slots, inside + "/slots")
    link(inside + "/slots", slots)
    node.server.start()
    refused(node, "pg_replslot as a link", "refused",
            f"'{slots}' is a link: a restore empties it and follows no link", "move the directory")
    node.server.stop()
    os.unlink(slots)
    shutil.move(inside + "/slots", slots)
    node.server.start()
    link(inside, stray)
    link("/etc/hostname", os.path.join(data, "server.crt"))
    is_status(node.cli("snapshot", "--tag", "links"), 0, "links inside and to files are fine")
    os.unlink(stray)


def test_server(node, box):
    node.server.stop()
    refused(node, "server stopped", "postgres", "")
    signal_file = os.path.join(node.data, "standby.signal")
    with open(signal_file, "w", encoding="ascii"):
        pass
    output("chown", "postgres:", signal_file)
    node.server.start()
    refused(node, "a standby that follows nobody", "refused",
            "the server is in recovery.*its primary", "primary_connection, or take")
    node.server.stop()
    os.unlink(signal_file)
    node.server.start()
    volume = box.volume("second", 256 * MIB)
    wrong = Server(box, os.path.join(volume.mount, "data"))
    wrong.init()
    wrong.start()
    node.sections["postgresql"]["connection"] = wrong.conninfo
    apply_conf(node)
    refused(node, "connection to another server", "config",
            "`connection` leads to a server with data directory")
    wrong.stop()
    node.sections["postgresql"]["connection"] = node.server.conninfo
    apply_conf(node)


def test_repository(node):
    url = node.sections["repository"]["url"]
    node.sections["repository"]["url"] = "file://" + node.box.mkdir("empty")
    apply_conf(node)
    done = node.cli("snapshot", "--tag", "refused")
    is_status(done, "missing", "no repository there: exit status")
    like(done.err, "tidemark init", "no repository there: hint")
    node.sections["repository"]["url"] = url
    apply_conf(node)
    shutil.move(snap.repository(node) + "/tidemark.repo", node.box.join("tidemark.repo"))
    is_status(node.cli("snapshot", "--tag", "from-copy"), 0, "tidemark.repo lost: its copy serves")
    shutil.move(node.box.join("tidemark.repo"), snap.repository(node) + "/tidemark.repo")


def test_providers(node, box):
    """One way for all volumes: said before anything is begun."""
    small = box.volume("small", 128 * MIB)
    node.sections["volume small"] = {"mount": small.mount, "provider": "freeze"}
    node.sections["volume pgdata"]["provider"], was = "precopy", \
        node.sections["volume pgdata"].get("provider")
    apply_conf(node)
    refused(node, "two providers", "config",
            "volumes (pgdata and small|small and pgdata) have different providers",
            "captured at one instant, in one way")
    job = json.loads(node.cli("jobs", "--json").out.splitlines()[-1])
    is_(job["phase"], "checking", "two providers: nothing had begun")
    del node.sections["volume small"]
    node.sections["volume pgdata"]["provider"] = was
    apply_conf(node)


def apply_conf(node):
    node.write_conf()
    node.agent.stop()
    node.agent.start()


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    box = Sandbox("t_snapshot_refuse")
    node = Node(box, [box.volume("pgdata", 512 * MIB)],
                options={"wal": {"archive_timeout": "30s"},
                         "tidemark": {"freeze_deadline": "20s"}})
    node.start()
    test_tags(node)
    test_archiving(node)
    test_layout(node, box)
    test_links(node, box)
    test_server(node, box)
    test_repository(node)
    test_providers(node, box)
    node.server.stop()


run(main)
