#!/usr/bin/env python3
# check: build=asan timeout=240
"""What a restore refuses before it touches anything: a table of {case, arguments, exit status,
message}. The intact case passes before and after each of them, and the server runs all the time."""
import glob
import os
import re
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story, journal_of, record_of  # noqa: E402
import tm  # noqa: E402


class Refusals:
    def __init__(self, box):
        self.box = box
        self.story = Story(box, "r", "xfs")
        self.node = self.story.begin()
        self.server = self.story.server
        self.volume = self.node.volumes[0]
        self.repository = self.node.repository.removeprefix("file://")
        self.count = 0

    def dry(self, *args, tag="t1"):
        return self.node.cli("restore", tag, "--dry-run", *args)

    def intact(self, what, *args):
        is_status(self.dry(*args), 0, f"{what}: the intact case passes")

    def refused(self, what, want, message, *args, tag="t1"):
        done = self.dry(*args, tag=tag)
        is_status(done, want, f"{what}: exit status {want}")
        like(done.err, message, f"{what}: the message")
        return done

    def device(self, size=600 * MIB, *options):
        self.count += 1
        return self.box.loop(self.box.image(f"extra{self.count}.img", size), *options)

    def to(self, device):
        return f"--device={self.volume.name}:{device}"

    def restart_agent(self, **changes):
        for key, value in changes.items():
            self.node.sections["postgresql"][key] = value
        self.node.agent.stop()
        self.node.write_conf()
        self.node.agent.start()


def test_names(case):
    case.refused("unknown tag", "missing", r"no snapshot .*nonsense|nonsense", tag="nonsense")
    case.refused("unknown volume", "usage", r"the snapshot has no volume 'nope'",
                 "--device=nope:/dev/null")
    other = Node(case.box, [case.volume], name="other", repository=case.node.repository,
                 options={"tidemark": {"freeze_deadline": "60s"}})
    for key in ("data_directory", "connection", "log_file"):
        other.sections["postgresql"][key] = case.node.sections["postgresql"][key]
    other.write_conf()
    other.agent.start()
    is_status(other.cli("snapshot", "--tag", "t1"), 0, "another node takes the same tag")
    other.agent.stop()
    blank = case.device()
    done = run_program(os.path.join(case.node.programs, "tidemark"), "restore", "--dry-run",
                       f"--repository={case.node.repository}", case.to(blank), "t1",
                       TIDEMARK_TIDEMARK_STATE_DIR=case.box.join("state-ambiguous"))
    is_status(done, "usage", "ambiguous tag: exit status usage")
    like(done.err, r"several|ambiguous|more than one", "ambiguous tag: the message")
    case.box.unloop(blank)


def test_devices(case):
    big = case.device()
    case.intact("blank device", case.to(case.volume.device))
    small = case.device(300 * MIB)
    case.refused("too small", "device", r"too small for volume .*314572800 of 469762048 bytes",
                 case.to(small))
    case.box.mkfs(big, "ext4")
    point = case.box.mount(big, "elsewhere")
    case.refused("mounted elsewhere", "busy", rf"is mounted on '{point}'", case.to(big))
    case.box.umount(point)
    done = case.refused("foreign filesystem", "refused",
                        r"is not blank and not the one of the snapshot: it holds ext4",
                        case.to(big))
    flag = re.search(r"--overwrite=\S+", done.err)
    ok(flag is not None, "foreign filesystem: the hint has the flag")
    if flag:
        like(flag.group(0), rf"={big}:629145600:\d+$", "foreign filesystem: path, size, diskseq")
        case.intact("named", case.to(big), flag.group(0))
        case.refused("named wrongly", "refused", "is not blank", case.to(big),
                     flag.group(0)[:-1] + "x")
    holder = os.open(big, os.O_RDWR | os.O_EXCL)
    case.refused("in use", "busy", r"is in use \(swap, device-mapper", case.to(big))
    os.close(holder)
    coarse = case.device(600 * MIB, "--sector-size", "4096")
    case.refused("sector size", "refused", r"has sectors of 4096 bytes; the xfs .* made for 512",
                 case.to(coarse))
    case.refused("a file", "refused", r"is not a block device", case.to(case.node.conf))


def test_other_data(case):
    path = os.path.join(case.volume.mount, "second")
    os.makedirs(path + "/global")
    for name in ("PG_VERSION", "global/pg_control"):
        shutil.copy2(os.path.join(case.node.data, name), os.path.join(path, name))
    case.refused("second data directory", "refused", rf"holds another data directory, '{path}'")
    shutil.rmtree(path)
    case.intact("second data directory removed")


def test_version(case):
    fake = case.box.mkdir("fake-bin")
    for name in os.listdir(tm.PG_BIN):
        os.symlink(os.path.join(tm.PG_BIN, name), os.path.join(fake, name))
    os.unlink(fake + "/postgres")
    case.box.write("fake-bin/postgres", "#!/bin/sh\necho 'postgres (PostgreSQL) 14.9'\n", 0o755)
    case.restart_agent(bin_directory=fake)
    case.refused("wrong version", "refused",
                 r"the snapshot is of PostgreSQL 15, but '.*fake-bin' holds PostgreSQL 14")
    case.restart_agent(bin_directory=tm.PG_BIN)
    case.intact("right version")


def write_in_place(path, data):
    mode = os.stat(path).st_mode
    os.chmod(path, mode | 0o200)
    with open(path, "r+b") as file:
        file.write(data)
    os.chmod(path, mode)


def test_wal(case):
    record = record_of(case.node, "t1")["postgresql"]
    segments = sorted(glob.glob(f"{case.repository}/wal/main/*/00000001/" + "0" * 7 + "1*"))
    start = int(record["start_lsn"].split("/")[1], 16) >> 24
    wanted = [s for s in segments if s.endswith(f"{start:08X}")]
    is_(len(wanted), 1, "the start segment is in the repository")
    os.rename(wanted[0], wanted[0] + "-away")
    case.refused("missing WAL segment", "missing", os.path.basename(wanted[0]))
    os.rename(wanted[0] + "-away", wanted[0])
    case.intact("WAL segment back")
    with open(wanted[0], "rb") as file:
        good = file.read()
    write_in_place(wanted[0], good[:-100] + bytes([good[-100] ^ 1]) + good[-99:])
    case.refused("damaged WAL segment", "corrupt", f"WAL of the snapshot: object '.*{start:08X}'")
    write_in_place(wanted[0], good)
    case.intact("WAL segment mended")


def time_text(time_us):
    seconds = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_us // 1000000))
    return f"{seconds}.{time_us % 1000000:06d}+00"


def test_targets(case):
    case.refused("LSN before the end", "refused", r"lies before the end of the snapshot",
                 "--target-lsn=0/1000000")
    case.refused("time before the end", "refused", r"lies before the end of the snapshot",
                 "--target-time=2020-01-01 00:00:00+00")
    stopped = record_of(case.node, "t1")["postgresql"]["stopped_us"]
    case.refused("time before the backup's end", "refused", "lies before the end of the snapshot",
                 f"--target-time={time_text(stopped - 1)}")
    is_status(case.dry(f"--target-time={time_text(stopped)}"), 0, "the backup's end is a target")
    case.refused("no such timeline", "missing", r"timeline 7 cannot be followed.*00000007\.history",
                 "--target=latest", "--target-timeline=7")
    case.refused("not a time", "usage", r"'soon' is not a time", "--target-time=soon")
    case.refused("LSN in the future", "missing", r"", "--target-lsn=FF/0")
    case.refused("target snapshot without WAL", "refused", r"taken without its WAL",
                 "--target=snapshot")


def test_settings(case):
    conf = os.path.join(case.node.data, "postgresql.conf")
    with open(conf, encoding="utf-8") as file:
        saved = file.read()

    def put(text):
        with open(conf, "w", encoding="utf-8") as to:  # in place: the owner stays
            to.write(saved + text)

    put("max_connections = 20\n")
    case.refused("lower setting", "refused",
                 r"max_connections = 20 here is lower than the snapshot's 100")
    case.intact("lower setting, --server-config=image", "--server-config=image")
    put(f"external_pid_file = '{case.box.join('outside.pid')}'\n")
    case.refused("pid file outside", "refused", r"external_pid_file '.*' leads outside")
    put(f"logging_collector = on\nlog_directory = '{case.box.join('logs')}'\n")
    case.refused("log outside", "refused", r"log_directory '.*' leads outside")
    put("")
    case.intact("settings back")


def test_unarchived(case):
    """Commits that cannot be saved: refused, the server runs again; then accepted."""
    server, node = case.server, case.node
    server.psql("alter system set archive_command = 'false'")
    server.reload()
    segment = server.psql("create table late (); select pg_walfile_name(pg_current_wal_lsn())")
    server.switch_wal()
    later = server.psql("create table later (); select pg_walfile_name(pg_current_wal_lsn())")
    server.switch_wal()
    good = sorted(glob.glob(f"{case.repository}/wal/main/*/00000001/" + "0" * 7 + "1*"))[-1]
    fake = os.path.join(os.path.dirname(good), segment)
    if os.path.exists(fake):
        skip("the segment was archived before archiving was switched off")
        return
    shutil.copy2(good, fake)
    done = node.cli("restore", "t1", "--yes")
    is_status(done, "refused", "unarchived WAL: exit status refused")
    like(done.err, r"may hold commits that were never archived", "unarchived WAL: the message")
    like(done.err, r"--discard-unarchived-wal", "unarchived WAL: the hint")
    server.wait_ready()
    is_(server.psql("select to_regclass('late') is not null"), "t",
        "unarchived WAL: the old server runs again, untouched")
    is_status(node.cli("restore", "t1", "--yes", "--discard-unarchived-wal",
                       "--server-config=image"), 0,
              "unarchived WAL: accepted when asked for")
    like(journal_of(node)["wal_lost"], rf"^1 of .* cannot be saved \({segment}\)",
         "unarchived WAL: what is lost is named")
    is_(len(glob.glob(f"{case.repository}/wal/main/*/*/{later}")), 1,
        "unarchived WAL: a later segment is saved all the same")
    os.unlink(fake)
    case.story.check_tag("after all that")
    server.psql("alter system set archive_command = 'false'")
    server.reload()
    segment = server.psql("create table late (); select pg_walfile_name(pg_current_wal_lsn())")
    server.switch_wal()
    is_status(node.cli("restore", "t1", "--yes", "--discard-unarchived-wal",
                       "--server-config=image"), 0, "unarchived WAL that can be saved")
    is_(len(glob.glob(f"{case.repository}/wal/main/*/*/{segment}")), 1, "is saved all the same")


def main():
    box = need_root() or Sandbox("restore-refuse")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    case = Refusals(box)
    pid = case.server.pid()
    for test in (test_names, test_devices, test_other_data, test_version, test_wal, test_targets,
                 test_settings):
        test(case)
    is_(case.server.pid(), pid, "the server ran all the time")
    is_(case.server.psql("select to_regclass('orders') is null"), "t", "and nothing was restored")
    test_unarchived(case)
    case.story.end()


run(main)
