#!/usr/bin/env python3
"""make install into an empty tree: all is there, and the installed programs find each other."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
from node import conf_text, make_repository, run_program  # noqa: E402

FILES = ["usr/bin/tidemark", "usr/bin/tidemark-agent", "usr/bin/tidemark-wal",
         "usr/bin/tidemark-inspect", "usr/lib/tidemark/tidemark-guardian",
         "usr/lib/systemd/system/tidemark-agent.service", "usr/lib/sysusers.d/tidemark.conf",
         "usr/lib/systemd/system/tidemark-expire.service",
         "usr/lib/systemd/system/tidemark-expire.timer",
         "usr/share/man/man1/tidemark.1", "usr/share/man/man1/tidemark-wal.1",
         "usr/share/man/man5/tidemark.conf.5", "usr/share/man/man8/tidemark-agent.8",
         "usr/share/man/man8/tidemark-coordinator.8",
         "usr/share/tidemark/openapi.yaml", "usr/share/tidemark/schema/check.json",
         "etc/tidemark/tidemark.conf"]


def install(root, *variables):
    """The programs of this build as they are: DESTDIR only copies."""
    variant = os.path.basename(BUILD)
    san = [] if variant == "release" else [f"SAN={variant}"]
    return subprocess.run(["make", "-s", "-C", SOURCE, *san, "install", f"DESTDIR={root}",
                           *variables],
                          check=False, capture_output=True, text=True)


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-inspect",
                  "tidemark-guardian")
    box = Sandbox("install")
    root = box.mkdir("root")
    done = install(root)
    is_(done.returncode, 0, "make install") or diag(done.stderr[-2000:])
    for name in FILES:
        ok(os.path.isfile(os.path.join(root, name)), f"/{name}")
    with open(os.path.join(root, FILES[5]), encoding="utf-8") as file:
        unit = file.read()
    like(unit, r"(?m)^ExecStart=/usr/bin/tidemark-agent$", "the unit starts the installed agent")
    like(unit, r"(?m)^KillMode=process$", "and leaves jobs alone when it stops")
    like(unit, r"(?m)^OOMPolicy=continue$", "or when one of them is killed for memory")
    conf = box.write("t.conf", conf_text({
        "tidemark": {"state_dir": box.mkdir("state"), "socket": box.join("sock")},
        "repository": {"url": make_repository(box)}}))
    tidemark = os.path.join(root, "usr/bin/tidemark")
    is_status(run_program(tidemark, "init", conf=conf), 0, "installed: init")
    done = run_program(tidemark, "verify", "nothing", conf=conf)
    is_status(done, "missing", "installed: a job is started and says what is missing")
    with open(os.path.join(root, "etc/tidemark/tidemark.conf"), "a", encoding="utf-8") as file:
        file.write("# mine\n")
    is_(install(root).returncode, 0, "make install again")
    with open(os.path.join(root, "etc/tidemark/tidemark.conf"), encoding="utf-8") as file:
        ok(file.read().endswith("# mine\n"), "keeps a configuration that is there")
    unlike(unit, "TIDEMARK_CONFIG", "the unit leaves the configuration where programs look")
    test_elsewhere(box)


def test_elsewhere(box):
    """Nothing outside of PREFIX and SYSCONFDIR."""
    root = box.mkdir("elsewhere")
    is_(install(root, "PREFIX=/opt/t", "SYSCONFDIR=/opt/t/etc").returncode, 0, "make install "
        "PREFIX=/opt/t SYSCONFDIR=/opt/t/etc")
    is_((os.listdir(root), os.listdir(f"{root}/opt")), (["opt"], ["t"]), "all of it is in /opt/t")
    ok(os.path.isfile(f"{root}/opt/t/etc/tidemark/tidemark.conf"), "the sample file too")
    with open(f"{root}/opt/t/lib/systemd/system/tidemark-agent.service", encoding="utf-8") as file:
        like(file.read(), "(?m)^Environment=TIDEMARK_CONFIG=/opt/t/etc/tidemark/tidemark.conf$",
             "and the unit names it")


run(main)
