#!/usr/bin/env python3
# check: timeout=120
"""A repository on s3:// that does not answer: check and commands say so, and who waits for it in a
job need not wait for retry_timeout to stop it."""
import glob
import json
import os
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
from node import conf_text, run_program  # noqa: E402


def phase(state):
    """Of the only job."""
    for path in glob.glob(state + "/jobs/*/journal.json"):
        with open(path, encoding="utf-8") as file:
            return json.load(file).get("phase")
    return None


def test_cancel(conf, state):
    """Ctrl-C long before the two minutes of retry_timeout are over."""
    process = subprocess.Popen([os.path.join(BUILD, "tidemark"), "verify", "t1"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True,
                               env={**os.environ, "TIDEMARK_CONFIG": conf})
    poll(lambda: phase(state) == "record", 30, "the job to ask the repository")
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    is_(process.returncode, 18, f"Ctrl-C ends a job that waits for its repository: {text[-200:]}")
    ok(time.monotonic() - start < 20, "soon")


def test_notice(box, section):
    """Who waits longer than a few seconds is told what for, once: commands, push, get."""
    conf = box.write("notice.conf", conf_text({
        "tidemark": {"state_dir": box.mkdir("other"), "socket": box.join("none")},
        "repository": {**section, "retry_timeout": "7s"}, "wal": {"get_timeout": "25s"}}))
    os.makedirs(box.join("data/global"))
    box.write("data/global/pg_control", "12345678")
    box.write("data/00000002.history", "1\t0/100000\tno reason\n")
    commands = {"list": (12, ("tidemark", "list")),
                "push": (12, ("tidemark-wal", "push", "00000002.history")),
                "get": (126, ("tidemark-wal", "get", "00000002.history", "x"))}
    running = {name: subprocess.Popen(
        [os.path.join(BUILD, words[0]), *words[1:]], cwd=box.join("data"), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "TIDEMARK_CONFIG": conf})
        for name, (_, words) in commands.items()}
    for name, (status, _) in commands.items():
        _, errors = running[name].communicate(timeout=90)
        is_(running[name].returncode, status, f"{name}: its status")
        warnings = [x for x in errors.splitlines() if x.startswith("tidemark: warn: ")]
        is_(len(warnings), 1, f"{name}: one warning")
        like(warnings[0] if warnings else "", r"get 'tidemark.repo' in s3://bucket/p/? at http.*"
             r"(tried|trying) again for up to \d+ s$", f"{name}: what it waits for, and how long")


def main():
    box = need_root() or Sandbox("outage")
    need_programs("tidemark", "tidemark-agent")
    nobody = socket.socket()  # bound, but nobody listens: the port stays ours
    nobody.bind(("127.0.0.1", 0))
    state = box.mkdir("state")
    keys = box.write("keys", "access_key = a\nsecret_key = s\n", 0o600)
    section = {"url": "s3://bucket/p", "credentials_file": keys,
               "endpoint": f"http://127.0.0.1:{nobody.getsockname()[1]}"}
    conf = box.write("outage.conf", conf_text({
        "tidemark": {"state_dir": state, "socket": box.join("sock")}, "repository": section}))
    done = run_program(os.path.join(BUILD, "tidemark"), "check", TIDEMARK_CONFIG=conf)
    like(done.out, r"(?m)^FAILED repository .*connect.*gave up after \d+ tries in [45]\.",
         "check says that nobody answers, after seconds")
    like(done.out, r"FAILED repository .*\n +hint: ", "with a hint")
    test_cancel(conf, state)
    test_notice(box, section)
    nobody.close()


run(main)
