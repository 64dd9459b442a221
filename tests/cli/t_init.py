#!/usr/bin/env python3
"""tidemark init where a directory is already there, as an empty mount point is: the server's user
has to be able to write to wal/, or archiving fails, and to nothing that it could remove."""
import grp
import os
import stat
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import schemas  # noqa: E402


def init(box, path):
    conf = box.write("init.conf", f"[tidemark]\nstate_dir = {box.join('state')}\n"
                     f"[repository]\nurl = file://{path}\ngroup = postgres\n")
    return cli("init", conf=conf)


def rights(path):
    found = os.stat(path)
    return grp.getgrgid(found.st_gid).gr_name, f"{stat.S_IMODE(found.st_mode):o}"


def main():
    box = need_root() or Sandbox("init")
    need_programs("tidemark")
    for what, inside in (("a new directory", None), ("an empty one", []),
                         ("a mount point", ["lost+found"])):
        path = box.join(what.replace(" ", "-"))
        for name in [""] + inside if inside is not None else []:
            os.mkdir(os.path.join(path, name), 0o755)
        done = init(box, path)
        is_status(done, 0, f"{what}: init")
        is_(done.err, "", f"{what}: no warning")
        is_(rights(path), ("postgres", "2750"), f"{what}: the group reads it, setgid")
        is_(rights(os.path.join(path, "wal")), ("postgres", "2770"), f"{what}: and writes WAL")

    key = box.join("repository.key")
    conf = box.write("sealed.conf", f"[tidemark]\nstate_dir = {box.join('state')}\n[repository]\n"
                     f"url = file://{box.join('sealed')}\nkey_file = {key}\n")
    for args in (("key", "generate", key), ("init", "--cipher=aes-256-gcm"), ("key", "status"),
                 ("key", "rotate")):
        schemas.conform(lambda *a: cli(*a, conf=conf), "sealed", *args, want=1)

    done = init(box, box.join("not/mounted/repo"))
    is_status(done, "store", "no parent: init makes the last part only")
    like(done.err, "hint: is the filesystem mounted", "no parent: hint")

    for mode, warns in ((0o755, False), (0o700, True)):
        path = box.mkdir(f"used-{mode:o}", mode)
        os.mkdir(os.path.join(path, "somebody's"))
        done = init(box, path)
        is_status(done, 0, f"a directory that others use, {mode:o}: init")
        is_(rights(path), ("root", f"{mode:o}"), "its owner and mode are left alone")
        is_(rights(os.path.join(path, "wal")), ("postgres", "2770"), "the group writes WAL")
        if warns:
            like(done.err, f"chgrp postgres '{path}' && chmod g\\+rx '{path}'",
                 "init says what to do")
        else:
            is_(done.err, "", "and reaches it: no warning")


run(main)
