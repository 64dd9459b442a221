#!/usr/bin/env python3
"""The command line itself: help, versions, wrong usage, and what is made from the tables."""
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
from node import run_program  # noqa: E402

VERBS = ["init", "check", "snapshot", "list", "show", "verify", "restore", "status", "jobs",
         "cancel"]


def test_help():
    done = cli("--help")
    is_status(done, 0, "tidemark --help")
    for verb in VERBS:
        like(done.out, rf"(?m)^  {verb}\b", f"lists {verb}")
        one = cli(verb, "--help")
        is_status(one, 0, f"tidemark {verb} --help")
        like(one.out, rf"^usage: tidemark {verb} \[OPTION…\]", f"{verb}: says its usage")
        is_(one.err, "", f"{verb}: and nothing else")
    like(done.out, r"(?m)^  cluster snapshot\|.*\|abort \[TAG\|NODE\|JOB\]\n {31}Snapshots and",
         "a long line is not cut")
    for verb in ("list", "cluster"):
        is_(cli("help", verb).out, cli(verb, "--help").out, f"tidemark help {verb}")
    done = cli("help", "snapshto")
    is_status(done, "usage", "help for what is no verb")
    like(done.err, "did you mean `tidemark snapshot`", "help for what is no verb: the nearest")
    is_(cli("help").out, cli("--help").out, "tidemark help alone")
    is_status(cli(), "usage", "no verb")
    for args, error, hint in [
            (["snapshto"], "unknown verb 'snapshto'", "did you mean `tidemark snapshot`?"),
            (["--json", "list"], "the verb comes first, before '--json'",
             "tidemark VERB [OPTION…], see `tidemark --help`"),
            (["snapshot", "--tga=x"], "unknown option --tga (did you mean --tag?)", None),
            (["snapshot", "--tag"], "--tag needs a value", None),
            (["snapshot", "--full=yes", "--tag=x"], "option --full takes no value", None),
            (["snapshot", "-x"], "unknown option -x",
             "`tidemark help snapshot` lists them; a name that begins with - stands behind --"),
            (["restore", "--to=x"], "unknown option --to",
             "`tidemark help restore` lists them; a name that begins with - stands behind --"),
            (["export", "t", "-"], "an export is a sparse file: it cannot go to stdout",
             "name a file; ./- for one of this name"),
            (["verify", "t", "--seed=3"], "--seed chooses the sample of --percent: give that, too",
             None),
            (["snapshot"], "a snapshot needs --tag=TAG",
             "choose a name that no snapshot has, such as --tag=before-release; `tidemark list` "
             "shows those taken"),
            (["show"], "expected: tidemark show TAG|ID|latest", None),
            (["show", "a", "b"], "unexpected argument 'b'", None),
            (["show", "a/b"], "'a/b' is not the name of a snapshot", None),
            (["restore"], "expected: tidemark restore TAG|ID|latest",
             "`tidemark list` shows the tags; `tidemark restore --resume` goes on with a restore "
             "that stopped"),
            (["restore", "t", "--device=x"], "'x' is not VOLUME:VALUE", None),
            (["restore", "t", "--mount=x=/y"], "'x=/y' is not VOLUME:VALUE", None),
            (["restore", "t", "--overwrite=x:y"], "'x:y' is not VOLUME=VALUE", None),
            (["restore", "t", "--target-timeline=0"], "'0' is not a timeline", None),
            (["restore", "t", "--target=latest", "--target-xid=3"], "more than one target", None),
            (["restore", "t", "--verify=deep"],
             "field 'verify' is 'deep', expected one of: none, quick, standard, full", None),
            (["restore", "t", "--target=time"], "target time needs a value", None),
            (["verify", "t", "--percent=0"], "--percent: '0' is not a number from 1 to 100", None),
            (["verify", "t", "--percent=101"], "--percent: '101' is not a number from 1 to 100",
             None)]:
        done = cli(args[0], "--local", *args[1:],
                   TIDEMARK_TIDEMARK_STATE_DIR="/nonexistent/tidemark")
        is_status(done, "usage", f"tidemark {' '.join(args)}: exit status")
        is_(done.err, f"error: {error}\n" + (f"hint: {hint}\n" if hint else ""), "and message")


def test_strangers():
    """What cannot know anything says so."""
    state = {"TIDEMARK_TIDEMARK_STATE_DIR": "/nonexistent/tidemark"}
    done = cli("status", "--local", **state)
    is_status(done, "config", "status without a configuration is not ok")
    is_(done.err, "error: there is no configuration file: nothing is known of a server here\n"
        "hint: `tidemark-agent --print-sample` prints one for /etc/tidemark/tidemark.conf\n",
        "and says what to do")
    like(cli("status", "--local", "--json", **state).out, '"status":"failed"', "in JSON, too")
    done = cli("status", "--agent=unix:/nonexistent/agent.sock")
    is_status(done, "device", "an agent at a path where there is none")
    like(done.err, "^error: connect to the agent at '/nonexistent/agent.sock': No such file.*\n"
         "hint: is it running there", "is not looked for elsewhere")
    is_status(cli("status", "--agent=unix:"), "usage", "and no path is no address")


def test_versions():
    for name in ("tidemark", "tidemark-agent"):
        done = run_program(f"{BUILD}/{name}", "--version")
        like(done.out, rf"^{name} \d+\.\d+\.\d+$", f"{name} --version")
    is_status(run_program(f"{BUILD}/tidemark-agent", "--nonsense"), "usage", "agent: bad option")
    done = run_program(f"{BUILD}/tidemark-agent", "job", "/nonexistent")
    is_status(done, "usage", "agent: a job that is none")


def committed(path):
    with open(os.path.join(SOURCE, path), encoding="utf-8") as file:
        return file.read()


def test_generated():
    sample = run_program(f"{BUILD}/tidemark-agent", "--print-sample").out
    is_(committed("conf/tidemark.conf"), sample, "conf/tidemark.conf is what the table says")
    options = run_program(f"{BUILD}/tidemark-agent", "--print-man").out
    ok(options and options in committed("conf/man/tidemark.conf.5"),
       "tidemark.conf(5) has the options of the table (make generated)")
    verbs = cli("--print-man").out
    ok(verbs and verbs in committed("conf/man/tidemark.1"),
       "tidemark(1) has the verbs of the table (make generated)")


def test_man():
    page = committed("conf/man/tidemark.1")
    for row in (r"wal FILE        from \[repository\]", r"  tidemark cluster resume \[JOB\] "):
        like(page, rf"(?m)^\.nf\n([^.\n].*\n)*{row}", "tidemark(1): a table is not filled")
    if not shutil.which("groff"):
        skip("groff is not installed")
        return
    for page in sorted(os.listdir(os.path.join(SOURCE, "conf/man"))):
        if page.endswith(".in"):
            continue
        path = os.path.join(SOURCE, "conf/man", page)
        done = subprocess.run(["groff", "-man", "-ww", "-z", path], check=False,
                              capture_output=True, text=True)
        is_(done.stderr, "", f"{page}: groff has nothing to say")


def main():
    need_programs("tidemark", "tidemark-agent")
    test_help()
    test_strangers()
    test_versions()
    test_generated()
    test_man()


run(main)
