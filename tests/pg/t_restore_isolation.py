#!/usr/bin/env python3
# check: build=asan timeout=300
"""A restored image whose links lead to files of another server: pg_wal, pg_tblspc, a directory, the
place of the pid file, the log; absolute, relative and through a second link. A snapshot would
refuse them, so they are put into the image once it is written: the restore's job dies there, and
resumes with every one of them in turn. It refuses, the other server's files are all there, and the
server cannot be started; with the right links it goes on to the rows of the tag."""
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story, job_log, journal_of  # noqa: E402
import tm  # noqa: E402

FILES = ("000000010000000000000001", "base/1/pgsql_tmp1.0", "archive_status/x", "pg_control",
         "PG_VERSION", "global/pg_control", "server.pid")
HOW = ("absolute", "relative", "chained")


class Image:
    """The written volume, and the other server's directory that links lead to."""

    def __init__(self, story):
        self.story, self.node, self.data = story, story.node, story.node.data
        self.other = story.box.mkdir("production", 0o700, "postgres")
        for name in FILES:
            path = os.path.join(self.other, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="ascii") as file:
                file.write(name)
        output("chown", "-R", "postgres:postgres", self.other)

    def untouched(self):
        found = []
        for top, _, names in os.walk(self.other):
            for name in names:
                path = os.path.join(top, name)
                with open(path, encoding="ascii", errors="replace") as file:
                    found.append((os.path.relpath(path, self.other), file.read()))
        return sorted(found) == sorted((name, name) for name in FILES)

    def put(self, name, how, to=None):
        """name in the data directory becomes a link to the other server's directory; what was there
        is put aside. Returns a function that mends it."""
        to = to or self.other
        path, hop = os.path.join(self.data, name), os.path.join(os.path.dirname(self.data), "hop")
        aside = path + "-aside"
        if os.path.lexists(path):
            os.rename(path, aside)
        relative = os.path.relpath(to, os.path.dirname(path))
        if how == "chained":
            os.symlink(os.path.relpath(to, os.path.dirname(hop)), hop)
        os.symlink({"absolute": to, "relative": relative, "chained": hop}[how], path)

        def mend():
            for link in (path, hop):
                if os.path.islink(link):
                    os.unlink(link)
            if os.path.lexists(aside):
                os.rename(aside, path)
        return mend


def stop_at(story, point):
    """A restore whose job kills itself at point; its volumes are mounted by hand."""
    node = story.node
    node.agent.stop()
    node.agent.start(TIDEMARK_TEST_STOP=point)
    isnt(node.cli("restore", "t1", "--yes").status, 0, f"the job dies at {point}")
    node.agent.stop()
    node.agent.start()
    for volume in node.volumes:
        if not tm.mounts_below(volume.mount):
            output("mount", volume.device, volume.mount)


def refused(story, image, what, message, start=True):
    done = story.node.cli("restore", "--resume", "--yes")
    is_status(done, "refused", f"{what}: refused")
    like(done.err, message, f"{what}: the message")
    like(done.err, r"hint: .*--resume", f"{what}: the hint says how to go on")
    ok(image.untouched(), f"{what}: nothing is written, moved or removed there")
    if start:
        isnt(story.server.start(check=False).returncode, 0, f"{what}: no start by hand either")
    ok(not story.server.running(), f"{what}: the server does not run")


def outside(image, what):
    return rf"{what} '.*' leads outside the restored volumes, to '{image.other}"


def test_configured(story, image):
    """Before pg_control is there."""
    always = [("pg_wal", how, r"(link|pg_wal)") for how in HOW]
    cases = [("pg_tblspc/77777", how, r"(link|tablespace link)") for how in HOW]
    cases += [("pg_tblspc", "relative", "directory"), ("base", "absolute", "directory"),
              ("global", "chained", "directory"), ("pg_xact", "relative", "directory")]
    cases += [("place/run", how, "external_pid_file") for how in HOW]
    cases += [("place/log", how, "log_directory") for how in HOW]
    for name, how, what in always + sample(cases, 6):
        mend = image.put(name, how)
        refused(story, image, f"{name}, {how}", outside(image, what))
        is_(journal_of(story.node)["step"], "configured", f"{name}, {how}: the step stays")
        mend()


def test_recovering(story, image):
    """Behind it: somebody changed the links of a volume that was ready to be started."""
    for name, how, what in (("pg_wal", "relative", "pg_wal"), ("base", "chained", "directory"),
                            ("pg_tblspc/77777", "chained", "tablespace link"),
                            ("place/run", "absolute", "external_pid_file")):
        mend = image.put(name, how)
        refused(story, image, f"recovering, {name}, {how}", outside(image, what), start=False)
        mend()


def finish(story, what):
    if not is_status(story.node.cli("restore", "--resume", "--yes"), 0, f"{what}: mended"):
        tm.diag(job_log(story.node))
    story.server.wait_ready()
    story.timeline = story.server.timeline() - 1
    story.check_tag(what)


def main():
    box = need_root() or Sandbox("restore-isolation")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    story = Story(box, "iso", wal=True, tablespace=True, resume="wait", settings={
        "external_pid_file": "place/run/server.pid", "log_directory": "place/log"})
    make = story.server.init

    def init(*args, **settings):
        make(*args, **settings)
        for name in ("place", "place/run", "place/log"):
            os.mkdir(os.path.join(story.node.data, name), 0o700)
            shutil.chown(os.path.join(story.node.data, name), "postgres", "postgres")
    story.server.init = init
    story.begin()
    image = Image(story)
    stop_at(story, "configured")
    test_configured(story, image)
    finish(story, "configured")
    story.server.psql("drop table orders")
    stop_at(story, "configured-control")
    test_recovering(story, image)
    finish(story, "recovering")
    story.end()


run(main)
