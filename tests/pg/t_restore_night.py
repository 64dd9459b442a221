#!/usr/bin/env python3
# check: build=release timeout=300
"""What README's night section promises when a restore stopped: what `status` says, what can be
resumed and what only be given up, that the next restore finds the devices of one that was given up,
and what the end of a restore says about the server."""
import glob
import os
import re
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
import snapshots as snap  # noqa: E402
from t_restore import Story, journal_of, record_of  # noqa: E402
from t_restore_kill import kill_at  # noqa: E402


def tag_lsn(story):
    return record_of(story.node, "t1")["postgresql"]["tag_lsn"]


def test_given_up(story):
    """The volume is half written and nothing says in the configuration which device it is."""
    node = story.node
    story.server.psql(f"alter system set archive_command = 'sleep 1; {node.archive_command}'")
    kill_at(story, "pulling-ack")
    node.agent.start()
    job = journal_of(node)["id"]
    done = node.cli("status")
    is_status(done, "partial", "killed in pulling: status")
    like(done.err, rf"\nhint: `tidemark restore --resume {job}` goes on", "says how to go on")
    is_status(node.cli("cancel", job), 0, "given up instead")
    done = node.cli("status")
    like(done.err, rf"restore {job} was given up.*\nhint: restore any snapshot", "status says so")
    done = node.cli("restore", "--resume", job)
    is_status(done, "refused", "then it cannot be resumed")
    like(done.err, r"\nhint: it was given up: restore a snapshot onto its volumes", "with a hint")
    is_status(node.cli("restore", "--resume"), "missing", "nor is there another")
    done = story.restore()
    like(done.out, rf"complete: the server runs on timeline 2, restored to {tag_lsn(story)}\nthe "
         "server archives: its new timeline is in the repository\n$", "the end says what there is")
    like(done.err, "(?m)^recovering\n(.*\n)*archiving\n(.*\n)*verifying\n",
         "and the phase that waits is not called recovering")
    story.server.psql("alter system reset archive_command")
    story.server.reload()
    story.check_tag("restored again, without --device")


def permit(job):
    return f"/run/tidemark-restore/not-complete.run-tidemark-restore--resume.{job}"


def test_given_up_configured(story):
    """Everything is in place, pg_control too: the next start would recover and be promoted."""
    node = story.node
    kill_at(story, "configured-control")
    node.agent.start()
    job = journal_of(node)["id"]
    is_status(node.cli("cancel", job), 0, "killed before its start: given up")
    isnt(story.server.start(check=False).returncode, 0, "given up: nobody starts the server")
    stranger = "f" * 32
    os.makedirs(os.path.dirname(permit(job)), exist_ok=True)
    for left in (job, stranger):
        with open(permit(left), "w", encoding="ascii"):
            pass
    node.agent.stop()
    node.agent.start()
    poll(lambda: not os.path.exists(permit(job)), 30, "a permit that was left to be forgotten")
    ok(os.path.exists(permit(stranger)), "one of another state_dir stays")
    os.unlink(permit(stranger))
    story.restore("--verify=quick")
    story.check_tag("restored again, from a mounted volume")


def test_wrong_target(story):
    node = story.node
    done = story.restore("--target-name=never", "--target-timeline=1", want="postgres")
    like(done.err, "the server ended before the target", "a target that does not exist")
    same = r"\nhint: .*when the cause is gone \(else it fails the same way\), or give up with " \
           r"`tidemark cancel [0-9a-f]{32}` and restore anew to another target"
    like(done.err, same, "the hint: with another target")
    job = journal_of(node)["id"]
    done = node.cli("status")
    is_status(done, "postgres", "status")
    like(done.err, rf"restore {job} stopped at step recovering: the server ended before the target",
         "says why")
    like(done.err, same, "and the same hint")
    is_status(node.cli("restore", "t1"), "partial", "another restore is refused until then")
    done = node.cli("restore", "--resume", "--yes")
    is_status(done, "postgres", "--resume fails the same way")
    is_status(node.cli("cancel", job), 0, "given up")
    story.restore()
    story.check_tag("with a target that exists")


def test_lists(story):
    node = story.node
    is_status(node.cli("restore", "nonsense"), "missing", "a restore fails in its plan")
    done = node.cli("restore", "--resume")
    is_status(done, "missing", "--resume does not take it for the newest")
    like(done.err, "^error: there is no restore to resume\nhint: ", "there is nothing to resume")
    is_status(node.cli("restore", "t1", "--dry-run"), 0, "a dry run")
    like(node.cli("jobs").out.splitlines()[-1], r"^[0-9a-f]{12}  dry run +complete", "is called so")
    done = node.cli("restore", "t1", "--dry-run", "--target=latest")
    is_status(done, "refused", "several timelines")
    like(done.err, rf"timeline 1 \([^,)]*\), .*timeline {story.timeline} \([^,)]*, made "
         r"20[-0-9: ]+ UTC, the server's own now\)", "when made, and which is the server's")


def test_cancel_in_fence(story):
    """Ctrl-C while the fence pushes WAL."""
    node = story.node
    node.agent.stop()
    node.agent.start(TIDEMARK_TEST_PAUSE="fenced-stopped")
    running = snap.Running(node, "restore", "t1", "--yes")

    def stopped():
        pid = running.pid()
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return pid if file.read().rpartition(")")[2].split()[0] == "T" else None
    pid = poll(stopped, 60, "the job to stop itself in its fence")
    running.process.send_signal(signal.SIGINT)
    pending = f"/proc/{pid}/status"

    def cancelled():
        with open(pending, encoding="ascii") as file:
            return re.search(r"(?m)^ShdPnd:.*4...$", file.read())
    poll(cancelled, 30, "the cancel to arrive")
    os.kill(pid, signal.SIGCONT)
    done = running.wait()
    is_status(done, "cancelled", "Ctrl-C in the fence")
    like(done.err, "(?m)^error: cancelled by request: nothing was touched$", "says what it means")
    story.server.wait_ready()
    is_(story.server.timeline(), story.timeline, "the old server runs again")
    node.agent.stop()
    node.agent.start()


def test_actions(story):
    node = story.node
    done = story.restore("--action=pause", "--verify=quick")
    like(done.out, rf"complete: the server is paused at {tag_lsn(story)}, read-only\nwarning: its "
         "recovery settings stay", "the end of --action=pause")
    done = story.restore("--action=shutdown", "--verify=quick")
    like(done.out, r"complete: the server is shut down at its target\n", "and of shutdown")
    path = glob.glob(node.data + "/postgresql.auto.conf")[0]
    with open(path, "a", encoding="utf-8") as file:
        file.write("archive_command = ''\n")
    done = story.restore("--verify=quick")
    like(done.out, r"restored to \S+\nwarning: the server does not archive: its new timeline "
         r"stays on this host only\n$", "a server that does not archive")


def main():
    box = need_root() or Sandbox("restore-night")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    story = Story(box, "night", resume="wait")
    del story.node.sections["volume pgdatanight"]["device"]
    story.node.write_conf()
    story.begin()
    for test in (test_given_up, test_given_up_configured, test_wrong_target, test_lists,
                 test_cancel_in_fence, test_actions):
        test(story)
    story.end()


run(main)
