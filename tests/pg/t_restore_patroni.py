#!/usr/bin/env python3
# check: build=asan timeout=240
"""A restore is refused while a Patroni is in charge of the data directory, and only then: a table
of {how it runs, what its configuration says}. What runs here only looks like Patroni."""
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402

WAIT = "import signal; signal.pause()\n"


class Looks:
    """A directory with a program called patroni, a module of that name, and configurations."""

    def __init__(self, box, data):
        self.box, self.data = box, data
        for name in ("bin2", "modules", "conf.d"):
            box.mkdir(name)
        self.program = box.write("bin2/patroni", WAIT)
        box.write("modules/patroni.py", WAIT)
        self.ours = box.write("ours.yml", f"postgresql:\n  data_dir: '{data}'\n")
        self.flow = box.write("conf.d/20.yml", f"postgresql: {{data_dir: {data}/, listen: x}}\n")
        self.other = box.write("other.yml", f"postgresql:\n  data_dir: {data}2\n")
        self.silent = box.write("silent.yml", "scope: main\n")
        self.process = None

    def start(self, *args, **env):
        self.process = subprocess.Popen(
            [sys.executable, *args], env={**os.environ, **env}, stdin=subprocess.DEVNULL,
            cwd=self.box.path)
        poll(lambda: os.path.basename(os.readlink(f"/proc/{self.process.pid}/exe")).startswith(
            "python"), 20, "it to run")

    def stop(self):
        kill_pid(self.process.pid)
        self.process.wait()


def cases(node, looks):
    def dry():
        return node.cli("restore", "--dry-run", "t1")
    is_status(dry(), 0, "nothing looks like Patroni")
    data = {"PATRONI_POSTGRESQL_DATA_DIR": looks.data}
    for what, args, env in (
            ("a file", [looks.program, looks.ours], {}),
            ("a relative file", [looks.program, os.path.basename(looks.ours)], {}),
            ("unbuffered", ["-u", looks.program, looks.ours], {}),
            ("a directory of files", [looks.program, os.path.dirname(looks.flow)], {}),
            ("a module", ["-m", "patroni", looks.ours],
             {"PYTHONPATH": looks.box.join("modules")}),
            ("its environment", [looks.program, looks.silent], data)):
        looks.start(*args, **env)
        done = dry()
        is_status(done, "refused", f"{what}: refused")
        like(done.err, rf"Patroni is in charge of '{looks.data}' \(pid {looks.process.pid}",
             f"{what}: says which")
        looks.stop()
    for what, args in (("another data directory", [looks.program, looks.other]),
                       ("no data directory", [looks.program, looks.silent]),
                       ("another program", ["-c", WAIT, looks.program, looks.ours])):
        looks.start(*args)
        is_status(dry(), 0, f"{what}: not ours")
        looks.stop()


def in_between(node, looks):
    """It comes between the plan and the question's yes: the old server goes on."""
    status, answer = node.agent.api("POST", "/restores", {"snapshot": "t1"})
    is_(status, 202, "planned")
    node.agent.wait_job(answer["id"])
    looks.start(looks.program, looks.ours)
    node.agent.api("POST", f"/restores/{answer['id']}/execute", {})
    journal = node.agent.wait_job(answer["id"])
    is_((journal["state"], journal["error"]["code"]), ("failed", "refused"), "refused at the fence")
    looks.stop()
    ok(node.server.running(), "the server runs")
    is_(node.agent.api("GET", "/health")[1]["status"], "ok", "and health is ok")


def manager(node, looks):
    """Whoever says manager = patroni means a Patroni that names no directory, too."""
    node.agent.stop()
    node.sections["postgresql"]["manager"] = "patroni"
    node.write_conf()
    node.agent.start()
    for what, file, want in (("no data directory", looks.silent, "refused"),
                             ("another data directory", looks.other, 0)):
        looks.start(looks.program, file)
        is_status(node.cli("restore", "--dry-run", "t1"), want, f"manager = patroni, {what}")
        looks.stop()


def main():
    tm.need_root()
    tm.need_programs("tidemark", "tidemark-agent")
    box = tm.Sandbox("restore-patroni")
    node = Node(box, [box.volume("pgdata", 352 * MIB)],
                options={"tidemark": {"freeze_deadline": "60s"}}).start()
    is_status(node.cli("snapshot", "--tag", "t1"), 0, "a tag")
    looks = Looks(box, node.data)
    cases(node, looks)
    in_between(node, looks)
    manager(node, looks)
    node.agent.stop()
    node.server.stop()


if __name__ == "__main__":
    run(main)
