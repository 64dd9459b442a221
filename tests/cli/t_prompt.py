#!/usr/bin/env python3
# check: build=asan timeout=200
"""The question of a restore, on a terminal: what is not a yes is a no, also Ctrl-C, the end of the
input and a terminal that is closed. And nobody else executes what was not confirmed: --resume takes
only restores that have begun."""
import os
import pty
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403

QUESTION = "Type yes: "


class Terminal:
    """`tidemark ARGS` as the foreground process of a terminal of its own."""

    def __init__(self, node, *args):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TIDEMARK_CONFIG"] = node.conf
            program = os.path.join(node.programs, "tidemark")
            os.execv(program, [program, *args])
        self.text = ""

    def read(self, until=None):
        """Until the text ends so, or the other side is closed."""
        while until is None or not self.text.endswith(until):
            try:
                part = os.read(self.fd, 65536)
            except OSError:  # EIO: the other side is closed
                part = b""
            if not part:
                break
            self.text += part.decode(errors="replace").replace("\r", "")
        return self

    def write(self, text):
        os.write(self.fd, text.encode())
        return self

    def close(self):
        os.close(self.fd)
        self.fd = None
        return self

    def end(self):
        """The exit status, or a negative signal."""
        if self.fd is not None:
            self.read().close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def newest(node):
    return node.agent.api("GET", "/jobs")[1]["jobs"][-1]


def ask(node, *args):
    terminal = Terminal(node, "restore", "first", *args).read(QUESTION)
    ok(terminal.text.endswith(QUESTION), f"restore {' '.join(args)} on a terminal asks")
    return terminal


def test_no(node):
    answers = {"n": lambda t: t.write("n\n"), "Ctrl-C": lambda t: t.write("\x03"),
               "Ctrl-D": lambda t: t.write("\x04"), "a hangup": Terminal.close,
               "SIGTERM": lambda t: os.kill(t.pid, signal.SIGTERM)}
    for how, answer in answers.items():
        terminal = ask(node)
        answer(terminal)
        is_(terminal.end(), EXIT["cancelled"], f"{how}: exit status cancelled")
        if how != "a hangup":
            like(terminal.text, "(?m)^error: nothing was touched$", f"{how}: and says so")
        is_(newest(node)["state"], "cancelled", f"{how}: the job is cancelled")
    terminal = ask(node, "--local").write("\x03")
    is_(terminal.end(), EXIT["cancelled"], "Ctrl-C without the agent: the same")
    is_(newest(node)["state"], "cancelled", "and its job is cancelled")


def test_resume(node):
    """Whoever asked is gone: the plan stays, and is nothing that could be gone on with."""
    done = node.cli("restore", "--resume")
    is_status(done, "missing", "--resume: nothing to resume")
    like(done.err, "^error: there is no restore to resume\nhint: ", "and says so")
    terminal = ask(node)
    kill_pid(terminal.pid)
    terminal.end()
    job = newest(node)
    is_(job["state"], "prepared", "kill -9 at the question: the plan stays")
    node.server.psql("insert into t values (1001)")
    is_status(node.cli("restore", "--resume"), "missing", "--resume does not execute it")
    for args in ((job["id"],), (job["id"], "--yes"), (job["id"], "--local")):
        done = node.cli("restore", "--resume", *args)
        is_status(done, "refused", f"--resume {' '.join(args)}: refused")
        like(done.err, rf"\nhint: .*tidemark cancel {job['id']}", "with a hint")
    terminal = Terminal(node, "restore", "--resume", job["id"])
    is_(terminal.end(), EXIT["refused"], "on a terminal, too")
    unlike(terminal.text, QUESTION, "without a question")
    is_(node.server.psql("select count(*) from t"), "1001", "the server is as it was")
    is_status(node.cli("cancel", job["id"]), 0, "it can be cancelled")
    is_(newest(node)["state"], "cancelled", "and is")


def test_yes(node):
    terminal = ask(node, "--verify=quick").write("yes\n")
    is_(terminal.end(), 0, "yes: restored")
    unlike(terminal.text, "(recovering|verifying)[^\x1b]*/s",
           "a recovery is not shown with the rate of the copy")
    node.server.wait_ready()
    is_(node.server.psql("select count(*) from t"), "1000", "the row after the tag is gone")


def main():
    box = need_root() or Sandbox("prompt")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal")
    node = Node(box, volumes=[box.volume("pgdata", 400 * MIB)])
    node.start()
    node.server.psql("create table t as select generate_series(1, 1000) as i")
    is_status(node.cli("snapshot", "--tag", "first"), 0, "a snapshot is taken")
    test_no(node)
    test_resume(node)
    test_yes(node)


if __name__ == "__main__":
    run(main)
