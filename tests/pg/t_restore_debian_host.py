#!/usr/bin/env python3
# check: build=release timeout=300
"""A new host for a cluster as pg_createcluster makes it: the configuration lies in /etc, and one of
its directories, conf.d, is empty or holds a file. Nothing is configured there, so the server cannot
archive: the restore does not wait for that, and says so in the plan and at the end."""
import os
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story, journal_of  # noqa: E402
from t_restore_empty_host import STATE, lose_host, private_directories  # noqa: E402
import tm  # noqa: E402

FILES = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf")


class DebianServer:
    """Moves the configuration of a server out of its data directory."""

    def __init__(self, server, etc, extra):
        self.server, self.etc, self.extra, self.init = server, etc, extra, server.init
        server.init, start = self.make, server.program
        server.program = lambda name, *args, **options: start(
            name, *args, *(["-o", f"-c config_file={etc}/postgresql.conf"]
                           if name == "pg_ctl" and args[-1] == "start" else []), **options)

    def make(self, *args, **settings):
        self.init(*args, **settings)
        for name in FILES:
            shutil.move(os.path.join(self.server.data, name), os.path.join(self.etc, name))
        os.mkdir(self.etc + "/conf.d", 0o755)
        if self.extra:
            with open(self.etc + "/conf.d/extra.conf", "w", encoding="ascii") as file:
                file.write(self.extra)
        with open(self.etc + "/postgresql.conf", "a", encoding="utf-8") as file:
            file.write(f"data_directory = '{self.server.data}'\nhba_file = '{self.etc}/pg_hba.conf'"
                       f"\nident_file = '{self.etc}/pg_ident.conf'\n"
                       "include_dir = 'conf.d'\t\t# as pg_createcluster writes it\n")
        output("chown", "-R", "postgres:", self.etc)


def restore(story, what):
    node, box = story.node, story.box
    blank = box.loop(box.image(f"blank-{node.name}.img", 500 * MIB))
    begun_s = time.monotonic()
    device = f"--device={node.volumes[0].name}:{blank}"
    done = run_program(os.path.join(node.programs, "tidemark"), "restore", "--yes",
                       f"--repository={node.repository}", device,
                       "t1", TIDEMARK_WAL_ARCHIVE_TIMEOUT="10min")
    if not is_status(done, 0, f"{what}: restored from the repository alone"):
        for top, _, names in os.walk(STATE):
            for name in names:
                if name in ("log", "postgresql.log"):
                    tm.diag(tm.tail(os.path.join(top, name), 40))
    ok(time.monotonic() - begun_s < 300, f"{what}: it did not wait for archive_timeout")
    return done


def check_warnings(story, done):
    """The plan says it before, the last lines after."""
    plan, _, end = done.out.partition("is complete")
    for where, text in (("the plan", plan), ("the end", end)):
        like(text, r"warning.* archive", f"{where} says that the server does not archive")
        like(text, r"`\[tidemark\]`, `cluster = prod`, `\[repository\]`.*`url = "
             + story.node.repository, f"{where} says what to write")
        ok("/etc/tidemark/tidemark.conf" in text, f"{where} says where")
    is_(journal_of(story.node)["archived"], False, "so says the journal")


def configure(text):
    os.makedirs("/etc/tidemark", exist_ok=True)
    with open("/etc/tidemark/tidemark.conf", "w", encoding="utf-8") as file:
        file.write(text)


def new_host(box, name, extra):
    story = Story(box, name)
    node = story.node
    node.settings["archive_command"] = f"{node.programs}/tidemark-wal push %p"
    node.sections["tidemark"]["cluster"] = "prod"
    node.write_conf()
    configure(conf_text(node.sections))
    etc = box.mkdir(f"etc-{name}", 0o755)
    DebianServer(story.server, etc, extra)
    story.begin()
    shutil.rmtree(etc)
    shutil.rmtree("/etc/tidemark")
    lose_host(story)
    node.state_dir = STATE
    done = restore(story, name)
    story.check_tag(name)
    ok(os.path.isdir(etc + "/conf.d"), f"{name}: conf.d is there")
    is_(os.path.exists(etc + "/conf.d/extra.conf"), bool(extra), f"{name}: with its file")
    if extra:
        is_(story.server.psql("show work_mem"), "5MB", f"{name}: whose setting holds")
    check_warnings(story, done)
    configure(f"[tidemark]\ncluster = prod\n[repository]\nurl = {node.repository}\n")
    node.wait_archived(story.server.switch_wal())
    ok(True, f"{name}: archiving catches up once that is written")
    story.server.stop("immediate", check=False)
    box.umount(node.volumes[0].mount)


def main():
    box = need_root() or Sandbox("debian-host")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    private_directories(box)
    new_host(box, "empty", None)
    new_host(box, "filled", "work_mem = 5MB\n")


run(main)
