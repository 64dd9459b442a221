#!/usr/bin/env python3
# check: timeout=200
"""What people read: show, list and jobs, on a pipe and on a terminal; check of a node that is ready
and of one that is not: a hint for each thing that is wrong."""
import datetime
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
from node import conf_text, run_program  # noqa: E402

NEEDED = ["max_connections", "max_worker_processes", "max_wal_senders",
          "max_prepared_transactions", "max_locks_per_transaction"]


def on_terminal(node, columns, *args):
    """Lines that `tidemark ARGS` prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([os.path.join(node.programs, "tidemark"), *args], stdin=theirs,
                               stdout=theirs, stderr=theirs, start_new_session=True,
                               env={**os.environ, "TIDEMARK_CONFIG": node.conf})
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not part:
            break
        text += part
    os.close(ours)
    is_(process.wait(60), 0, f"tidemark {' '.join(args)} on {columns} columns")
    return text.decode(errors="replace").replace("\r", "").split("\n")


def as_text(time_s):
    return datetime.datetime.fromtimestamp(time_s, datetime.timezone.utc).strftime(
        "%Y-%m-%d %H:%M:%S UTC")


def test_show(node):
    record = json.loads(node.cli("show", "first", "--json").out)
    text = node.cli("show", "first").out
    like(text, rf"(?m)^captured: {as_text(record['captured_s'])}$", "show: a time in UTC")
    like(text, rf"(?m)^  stopped: {as_text(record['postgresql']['stopped_us'] // 1000000)}$",
         "show: microseconds too")
    unlike(text, r"_u?s: \d", "show: no seconds since 1970")
    is_(re.findall(r"(?m)^ +(?:size|bytes_\w+|\w+_size|len): (?!\d+(?:\.\d)? [KMG]?i?B$).*", text),
        [], "show: sizes have units")
    like(text, r"(?m)^ +segment_size: 16.0 MiB$", "show: as in list")
    like(text, r"(?m)^freeze: \d+\.\d ms$", "show: how long writes stood still")
    like(text, r"(?m)^ +mode: 0[0-7]{3}$", "show: modes as chmod takes them")
    ok(isinstance(record["freeze_ns"], int) and isinstance(record["volumes"][0]["size"], int),
       "show --json: and numbers")
    settings = text.split("  settings:\n")[1]
    shown = [line.split(":")[0].strip() for line in settings.split("\n")
             if line.startswith("    ")]
    is_([name for name in shown if name in NEEDED], NEEDED, "show: the settings a standby needs")
    unlike(text, "server_encoding|hba_file", "show: and no others")
    ok({"server_encoding", "hba_file", *NEEDED} <= set(record["postgresql"]["settings"]),
       "show --json has all that are recorded")
    ok(isinstance(record["captured_s"], int), "show --json: and times as numbers")
    secret = "hunter2-of-the-configuration"
    unlike(text + json.dumps(record), secret, "show: no contents of configuration files")
    like(node.cli("list").out, rf"(?m)^first .* {as_text(record['captured_s'])} ",
         "list: the same time")


def test_list(node):
    """What does not fit leaves, whole columns at a time; a pipe has all."""
    title = node.cli("list").out.split("\n")[0].split()
    is_(title, ["TAG", "ID", "CAPTURED", "AGE", "NODE", "SIZE", "STORED", "TL", "LSN",
                "PINNED"], "list on a pipe: all columns")
    for columns, left in ((200, title), (85, title[:8] + title[9:]),
                          (60, ["TAG", "NODE", "STORED"]), (10, ["TAG"])):
        lines = [line for line in on_terminal(node, columns, "list") if line]
        ok(max(map(len, lines)) <= max(columns, len("first")), f"{columns} columns: list fits")
        if columns != 60:
            is_(lines[0].split(), left, f"{columns} columns: of list")
        else:
            ok(set(left) <= set(lines[0].split()), f"{columns} columns: of list") or diag(lines[0])
    lines = on_terminal(node, 80, "check")
    ok(max(map(len, lines)) <= 110, "80 columns: check breaks its lines between words") or \
        diag("\n".join(lines))


def test_jobs(node):
    """A verification of a damaged repository has a long error."""
    done = node.cli("verify", "x" * 30)
    is_status(done, "missing", "a job fails")
    error = json.loads(node.cli("jobs", "--json").out.splitlines()[-1])["error"]["text"]
    like(node.cli("jobs").out, rf"  {error}\n$", "jobs on a pipe: the whole error")
    for columns in (40, 80, 110, 200):
        lines = on_terminal(node, columns, "jobs")
        ok(any(error[:20] in line for line in lines), f"{columns} columns: the error begins")
        errors = [line for line in lines if error[:20] in line]
        ok(all(len(line) <= columns for line in errors), f"{columns} columns: and fits")


def test_logs(node):
    """A file has the time of each line; the journal adds its own."""
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} UTC (tidemark: (info|warn)|error): "
    job = json.loads(node.cli("jobs", "--json").out.splitlines()[0])["id"]
    with open(f"{node.state_dir}/jobs/{job}/log", encoding="utf-8") as file:
        lines = file.read().splitlines()
    ok(len(lines) > 3 and all(re.match(stamp, line) for line in lines), "a job's log has times") \
        or diag("\n".join(lines))
    node.agent.stop()
    with open(node.agent.log, encoding="utf-8") as file:
        lines = file.read().splitlines()
    ok(lines and all(re.match(stamp, line) for line in lines), "and the agent's, into a file") or \
        diag("\n".join(lines))
    st = os.stat(node.agent.log)
    node.agent.start(JOURNAL_STREAM=f"{st.st_dev}:{st.st_ino}")
    node.agent.stop()
    with open(node.agent.log, encoding="utf-8") as file:
        rest = file.read().splitlines()[len(lines):]
    ok(rest and all(line.startswith("tidemark: ") for line in rest), "not into the journal") or \
        diag("\n".join(rest))
    node.agent.start()


def check(node, *args, **env):
    return run_program(os.path.join(node.programs, "tidemark"), "check", *args, conf=node.conf,
                       **env)


def test_check(node, box):
    done = check(node)
    is_status(done, 0, "check of a node that is ready")
    rows = [line.split()[:2] for line in done.out.splitlines() if line[0] != " "]
    is_([name for word, name in rows if word != "ok"], ["verification", "drill"],
        "all ok, but nothing was tried yet") or diag(done.out)
    ok(len(rows) >= 13, "the checks of a node") or diag(done.out)
    node.server.stop()
    done = check(node)
    is_status(done, "postgres", "check with the server down")
    unlike(done.out + done.err, "\t", "no raw tab of libpq")
    like(done.out, r"(?m)^FAILED server +connect to PostgreSQL: .*\n +hint: is the server running",
         "the server has a hint")
    is_(done.err, "error: 1 of the checks failed\nhint: each has its own above\n", "and the end")
    done = check(node, "--local", TIDEMARK_REPOSITORY_URL=f"file://{box.join('nowhere')}",
                 TIDEMARK_TIDEMARK_STATE_DIR=box.join("absent"))
    is_status(done, "store", "several are wrong: the first decides")
    lines = done.out.splitlines()
    failed = [i for i, line in enumerate(lines) if line.startswith("FAILED")]
    is_([lines[i].split()[1] for i in failed], ["repository", "server"], "each is named")
    like(done.out, r"(?m)^warn +state_dir .*absent", "what is made by itself only warns")
    ok(all(lines[i + 1].lstrip().startswith("hint: ") for i in failed), "each has its hint")
    like(done.err, "^error: 2 of the checks failed", "and they are counted")
    rows = [json.loads(line) for line in check(node, "--json").out.splitlines()]
    like(next(row for row in rows if row["check"] == "server")["hint"], "is the server running",
         "--json: the hint too")


def main():
    box = need_root() or Sandbox("output")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    node = Node(box, volumes=[box.volume("pgdata", 400 * MIB)])
    node.start()
    with open(f"{node.data}/postgresql.conf", "a", encoding="utf-8") as file:
        file.write("\n# hunter2-of-the-configuration\n")
    is_status(node.cli("snapshot", "--tag", "first"), 0, "a snapshot is taken")
    test_show(node)
    test_list(node)
    test_jobs(node)
    test_logs(node)
    test_check(node, box)


run(main)
