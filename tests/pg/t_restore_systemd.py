#!/usr/bin/env python3
"""Restores of a server that systemd manages, inside a real systemd: agent and server are units of
it. While the fence is there nobody starts the server, `systemctl start` by hand included; at the
end, and when a restore is given up, the fence is gone and the server runs.
check: timeout=400
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402
from systemd import UNIT, boot, unit_text  # noqa: E402
from t_restore import Story, job_log, journal_of  # noqa: E402

AGENT = "tidemark-test-agent.service"
DROPIN = f"/etc/systemd/system/{UNIT}.d/tidemark-fence.conf"


class UnitAgent:
    """The agent as a unit of the namespace's systemd."""

    def __init__(self, agent, systemd):
        self.agent, self.systemd = agent, systemd

    def start(self, **env):
        lines = "".join(f"Environment={name}={value}\n" for name, value in env.items())
        self.systemd.unit(f"[Service]\nExecStart={self.agent.program} --config={self.agent.conf}\n"
                          f"KillMode=process\nStandardOutput=append:{self.agent.log}\n"
                          f"StandardError=inherit\n{lines}", AGENT)
        self.systemd.ctl("start", AGENT)

        def answers():
            try:
                return self.agent.api("GET", "/version")[0] == 200
            except OSError:
                return False
        poll(answers, 30, "the agent in systemd's namespaces")

    def stop(self):
        self.systemd.ctl("stop", AGENT)


def prepare(story, systemd):
    """The server stops on the host, its volume moves into the namespace, its unit starts there."""
    node, volume = story.node, story.node.volumes[0]
    node.sections["postgresql"]["manager"] = f"systemd:{UNIT}"
    node.write_conf()
    systemd.run("mount", volume.device, volume.mount)
    systemd.unit(unit_text(story.server, Restart="always", RestartSec="1",
                           StandardOutput=f"append:{story.server.log}", StandardError="inherit"))
    agent = UnitAgent(node.agent, systemd)
    agent.start()
    is_(systemd.ctl("start", UNIT).status, 0, "systemd starts the server")
    story.server.wait_ready()
    return agent


def fenced(story, systemd, agent, point):
    """A restore whose job dies at point: the fence stands, also for a person."""
    story.server.psql("drop table if exists orders")
    agent.stop()
    agent.start(TIDEMARK_TEST_STOP=point)
    isnt(story.node.cli("restore", "t1", "--yes").status, 0, f"{point}: the job died")
    agent.stop()
    is_(systemd.state(), "inactive", f"{point}: the unit is stopped, and stays so")
    ok(systemd.exists(DROPIN), f"{point}: the drop-in is there")
    done = systemd.ctl("start", UNIT)
    isnt(done.status, 0, f"{point}: systemctl start by hand is refused")
    like(done.err, "[Aa]ssert", f"{point}: by the assertion")
    is_(systemd.ctl("show", "-p", "AssertResult", "--value", UNIT).out.strip(), "no",
        f"{point}: as systemd says itself")
    isnt(systemd.state(), "active", f"{point}: and it does not run")


def lifted(story, systemd, what):
    story.server.wait_ready()
    is_(systemd.state(), "active", f"{what}: the server runs as a unit")
    ok(not systemd.exists(DROPIN), f"{what}: the drop-in is gone")
    ok(not systemd.exists(os.path.dirname(DROPIN)), f"{what}: and its directory")
    ok(not os.path.exists(story.node.state_dir + "/fence"), f"{what}: the fence is lifted")
    is_(systemd.ctl("show", "-p", "NeedDaemonReload", "--value", UNIT).out.strip(), "no",
        f"{what}: systemd knows")
    is_(systemd.ctl("restart", UNIT).status, 0, f"{what}: a restart by hand works again")
    story.server.wait_ready()


def test_plain(story, systemd):
    story.restore()
    story.check_tag("a whole restore")
    lifted(story, systemd, "a whole restore")


def test_resume(story, systemd, agent):
    fenced(story, systemd, agent, "pulling-ack")
    agent.start()
    done = story.node.cli("restore", "--resume", "--yes")
    is_status(done, 0, "resumed") or tm.diag(job_log(story.node))
    story.check_tag("resumed")
    lifted(story, systemd, "resumed")


def test_abort(story, systemd, agent):
    """Died between the fence and the first write: the agent gives up by itself, at once, and the
    old server comes back."""
    story.server.psql("drop table if exists orders")
    agent.stop()
    agent.start(TIDEMARK_TEST_STOP="fenced-closed")
    isnt(story.node.cli("restore", "t1", "--yes").status, 0, "given up: the job died")
    poll(lambda: journal_of(story.node)["state"] == "cancelled", 60, "the job to be given up")
    lifted(story, systemd, "given up")
    is_(story.server.psql("select to_regclass('orders') is null"), "t",
        "given up: the old server runs, untouched")


def test_cancel(story, systemd, agent):
    """Given up by a person after the first write: there is nothing to start, so the fence stays
    until another restore ends."""
    fenced(story, systemd, agent, "pulling-ack")
    agent.start()
    job = journal_of(story.node)["id"]
    is_(agent.agent.api("DELETE", f"/jobs/{job}")[0] // 100, 2, "cancelled: accepted")
    poll(lambda: journal_of(story.node)["state"] == "cancelled", 60, "the job to be cancelled")
    isnt(systemd.ctl("start", UNIT).status, 0, "cancelled: systemctl start is refused as before")
    story.restore()
    story.check_tag("after a cancelled one")
    lifted(story, systemd, "after a cancelled one")


def test_patroni(story, systemd, agent):
    """manager = patroni:UNIT, stopped as the refusal says: nobody starts the unit meanwhile. The
    server is started by us; its unit is a person's to start."""
    is_(systemd.ctl("stop", UNIT).status, 0, "patroni: its unit is stopped")
    story.node.sections["postgresql"]["manager"] = f"patroni:{UNIT}"
    story.node.write_conf()
    agent.stop()
    agent.start(TIDEMARK_TEST_STOP="pulling-ack")
    isnt(story.node.cli("restore", "t1", "--yes").status, 0, "patroni: the job died")
    ok(systemd.exists(DROPIN), "patroni: the drop-in is there")
    isnt(systemd.ctl("start", UNIT).status, 0, "patroni: systemctl start is refused")
    agent.stop()
    agent.start()
    done = story.node.cli("restore", "--resume", "--yes")
    is_status(done, 0, "patroni: resumed") or tm.diag(job_log(story.node))
    story.check_tag("patroni")
    ok(not systemd.exists(DROPIN), "patroni: the drop-in is gone")
    is_(systemd.state(), "inactive", "patroni: the unit was not started")


def main():
    box = need_root() or Sandbox("restoresystemd")
    need_tools("unshare", "nsenter", "systemctl")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    story = Story(box, "sd", resume="wait")
    node = story.begin()
    node.agent.stop()
    story.server.stop()
    box.umount(node.volumes[0].mount)
    systemd = boot(box)
    tm.on_fail(lambda: tm.diag(job_log(node)))
    agent = prepare(story, systemd)
    test_plain(story, systemd)
    test_resume(story, systemd, agent)
    test_cancel(story, systemd, agent)
    test_abort(story, systemd, agent)
    test_patroni(story, systemd, agent)


if __name__ == "__main__":
    run(main)
