#!/usr/bin/env python3
# check: build=asan campaign=release timeout=300
"""What must not happen between the plan and the end of a restore, although every single file looks
right: another disk under the planned name, a pg_control that was never withheld, a second server on
a volume that was not mounted, WAL missing below a fork, a pause that is not the target."""
import base64
import glob
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story, journal_of, record_of  # noqa: E402
import snapshots  # noqa: E402
import tm  # noqa: E402


def stop_at(node, point, *args):
    """A restore whose job kills itself at point."""
    node.agent.stop()
    node.agent.start(TIDEMARK_TEST_STOP=point)
    isnt(node.cli("restore", "t1", "--yes", *args).status, 0, f"the job dies at {point}")
    node.agent.stop()
    node.agent.start()


def unmount(story, volume):
    """And waits until no mount namespace of another test holds it any more."""
    story.box.umount(volume.mount)

    def free():
        try:
            os.close(os.open(volume.device, os.O_RDONLY | os.O_EXCL))
            return True
        except OSError:
            return False
    poll(free, 30, f"{volume.device} to be free")


def test_fork(story):
    """Timeline 9 left timeline 1 behind the tag. Without WAL of its own replay would follow its
    parent; with it, no segment below the fork may be missing."""
    node, server = story.node, story.server
    segment = server.psql("select pg_walfile_name(pg_current_wal_lsn())")
    server.switch_wal()
    server.psql("create table more ()")
    fork = server.psql("select pg_current_wal_lsn()")
    last = server.psql("select pg_walfile_name(pg_current_wal_lsn())")
    server.switch_wal()
    node.wait_archived(last)
    path = story.box.write("00000009.history", f"1\t{fork}\ttest\n")
    is_status(node.wal("push", path, user=None), 0, "the history of timeline 9")
    want = ("restore", "t1", "--dry-run", "--target=latest", "--target-timeline=9")
    done = node.cli(*want)
    is_status(done, "missing", "a timeline that has a history and no WAL is refused")
    like(done.err, rf"timeline 9 begins at {fork}, and the repository has no WAL of it", "and said")
    shutil.copy(os.path.join(node.data, "pg_wal", last), story.box.join("00000009" + last[8:]))
    is_status(node.wal("push", story.box.join("00000009" + last[8:]), user=None), 0, "its WAL")
    is_status(node.cli(*want), 0, "with all WAL the plan passes")
    found = glob.glob(f"{snapshots.repository(node)}/wal/main/*/00000001/{segment}")
    os.rename(found[0], found[0] + "-away")
    done = node.cli(*want)
    is_status(done, "missing", "a gap below the fork is refused")
    like(done.err, segment, "and named")
    os.rename(found[0] + "-away", found[0])
    for found in glob.glob(f"{snapshots.repository(node)}/wal/main/*/00000009/*"):
        os.unlink(found)


def test_access(story):
    """The server's user cannot read the repository: found before anything is touched."""
    node = story.node
    path = snapshots.repository(node)
    os.chmod(path, 0o700)
    done = node.cli("restore", "t1", "--dry-run")
    is_status(done, "refused", "the server's user cannot fetch WAL")
    like(done.err, r"'postgres' cannot fetch WAL \(status 126\)", "is said")
    os.chmod(path, 0o2770)
    is_status(node.cli("restore", "t1", "--dry-run"), 0, "the intact case passes")


def test_bad_names(story):
    node = story.node
    done = node.cli("restore", "t1", "--dry-run", "--target-name=a\nport = 1",
                    "--target-timeline=1")
    is_status(done, "usage", "a name that would break postgresql.auto.conf")
    like(done.err, "control character", "says why")
    is_status(node.cli("restore", "t1", "--dry-run", "--target-xid=" + "9" * 30,
                       "--target-timeline=1"), "usage", "a transaction id of 30 digits")


def test_second_server(story):
    """Not mounted, so that the plan cannot see it: the fence does, and gives the volume back."""
    node, volume = story.node, story.node.volumes[0]
    path = os.path.join(volume.mount, "second")
    os.makedirs(path + "/global")
    for name in ("PG_VERSION", "global/pg_control"):
        shutil.copy2(os.path.join(node.data, name), os.path.join(path, name))
    story.server.stop()
    unmount(story, volume)
    done = node.cli("restore", "t1", "--yes")
    is_status(done, "refused", "a second data directory on an unmounted volume")
    like(done.err, rf"holds another data directory, '{path}'", "is named")
    ok(not tm.mounts_below(volume.mount), "and the volume is unmounted again")
    output("mount", volume.device, volume.mount)
    shutil.rmtree(path)
    story.server.start()


def test_links(story):
    """The server's user cannot have root read a file for it through a link."""
    node, path = story.node, story.node.data + "/postgresql.auto.conf"
    secret = story.box.write("secret", "root's own\n", 0o600)
    os.rename(path, path + "-away")
    os.symlink(secret, path)
    done = node.cli("snapshot", "--tag", "linked")
    is_status(done, "device", "a configuration file that the server's user may not read")
    like(done.err, r"postgresql.auto.conf': Permission denied", "says why")
    os.unlink(path)
    os.rename(path + "-away", path)
    is_status(node.cli("snapshot", "--tag", "plain"), 0, "the intact case passes")


def test_never_withheld(story):
    """pg_control present before recovery is prepared: a start would fork the old timeline."""
    node, volume = story.node, story.node.volumes[0]
    stop_at(node, "configured")
    output("mount", volume.device, volume.mount)
    control = base64.b64decode(snapshots.record(node, "t1")["postgresql"]["control"]["bytes"])
    with open(node.data + "/global/pg_control", "r+b") as file:
        is_(file.read(), bytes(8192), "pg_control is withheld")
        file.seek(0)
        file.write(control)
    done = node.cli("restore", "--resume", "--yes")
    is_status(done, "corrupt", "pg_control that is there too early ends the restore")
    ok(not story.server.running(), "and the server is not started")
    with open(node.data + "/global/pg_control", "r+b") as file:
        file.write(bytes(8192))
    is_status(node.cli("restore", "--resume", "--yes"), 0, "withheld again, it goes on")


def attach(device, image):
    """The kernel gives a free name to whoever asks: a test beside us may have it for a while."""
    poll(lambda: subprocess.run(["losetup", device, image], check=False,
                                stderr=subprocess.DEVNULL).returncode == 0,
         300, f"{device} to be free again")


def test_swapped(story):
    """The restore goes to a blank disk; after a crash the name leads to another one, which has the
    snapshot's filesystem: somebody's old disk, never offered."""
    node, volume, box = story.node, story.node.volumes[0], story.box
    blank = box.loop(box.image("blank.img", os.stat(volume.image).st_size))
    story.server.stop()
    unmount(story, volume)
    stop_at(node, "pulling", f"--device={volume.name}:{blank}")
    box.unloop(blank)
    attach(blank, volume.image)
    done = node.cli("restore", "--resume", "--yes")
    is_status(done, "refused", "the disk that was not offered is refused")
    like(done.err, r"is not the device that was planned", "says why")
    output("mount", volume.device, volume.mount)
    story.server.start()
    is_(story.server.psql("select to_regclass('more') is not null"), "t", "and is untouched")
    story.server.stop()
    unmount(story, volume)
    box.unloop(blank)
    attach(blank, box.join("blank.img"))
    is_status(node.cli("restore", "--resume", "--yes"), 0, "with the right disk it goes on")
    story.server.stop("immediate")
    box.umount(volume.mount)
    output("mount", volume.device, volume.mount)
    story.server.start()


def test_paused_early(story):
    """A setting that is too low pauses recovery too, and a name has no LSN to compare with."""
    server = story.server
    server.configure(max_connections=200)
    server.stop()
    server.start()
    server.psql("select pg_create_restore_point('later')")
    line = f"--target-timeline={server.timeline()}"
    done = story.restore("--target-name=later", "--action=pause", "--server-config=image", line,
                         want="postgres")
    like(done.err, r"max_connections = 100 is a lower setting", "the setting is named")


def main():
    box = need_root() or Sandbox("restore-guard")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    story = Story(box, "guard", "xfs", resume="wait")
    story.begin()
    for test in (test_fork, test_access, test_bad_names, test_links, test_second_server,
                 test_swapped, test_never_withheld, test_paused_early):
        test(story)
    story.end()


if __name__ == "__main__":
    run(main)
