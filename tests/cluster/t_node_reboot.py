#!/usr/bin/env python3
# check: timeout=400
"""A node whose part of a cluster restore is held is switched off, inside a real systemd that boots
again: the fence stands after the reboot, nothing starts the server, the part waits for its
coordinator and goes on; a server that is held at its target starts again as any other."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "pg"))
from tm import *  # noqa: E402, F403
from t_restore import record_of  # noqa: E402
from t_restore_systemd import UnitAgent  # noqa: E402
from cluster_lib import Member  # noqa: E402
from systemd import UNIT, boot, unit_text  # noqa: E402
import tm  # noqa: E402


class Host:
    """The node in a systemd; boot() is also a reboot, off() a power cut."""

    def __init__(self, box, node):
        self.box, self.node, self.systemd, self.agent = box, node, None, None
        self.etc = box.mkdir("etc-systemd", 0o755)

    def boot(self):
        self.systemd = boot(self.box, self.etc)
        self.systemd.unit(unit_text(self.node.server, StandardError="inherit",
                                    StandardOutput=f"append:{self.node.server.log}"))
        self.agent = UnitAgent(self.node.agent, self.systemd)
        self.agent.start()

    def mount(self):
        volume = self.node.volumes[0]
        self.systemd.run("mount", volume.device, volume.mount)

    def reboot(self):
        self.systemd.stop()
        self.boot()


def held(host, where):
    """Held, then switched off: what the next boot finds."""
    node = host.node
    is_(node.execute(until=where)[0], 202, f"{where}: execute")
    node.wait("held")
    host.reboot()
    status = node.status()
    is_((status["state"], status["held_at"]), ("held", where), f"{where}: held after the reboot")
    is_(node.health(), "restoring", f"{where}: health is restoring")
    done = host.systemd.ctl("start", UNIT)
    isnt(done.status, 0, f"{where}: systemd does not start the server")
    like(done.err, "[Aa]ssert", f"{where}: because of the fence")
    is_(node.agent.api("POST", "/snapshots", {"tag": "no"})[1].get("code"), "busy",
        f"{where}: the node is still reserved")


def main():
    box = need_root() or Sandbox("cluster-reboot")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    node = Member(box, "db1", make_repository(box), 352 << 20, None).start(agent=False)
    node.sections["postgresql"]["manager"] = f"systemd:{UNIT}"
    node.write_conf()
    node.server.psql("create table orders as select i from generate_series(1, 5000) i")
    node.server.stop()
    box.umount(node.volumes[0].mount)
    host = Host(box, node)
    host.boot()
    host.mount()
    is_(host.systemd.ctl("start", UNIT).status, 0, "systemd starts the server")
    node.server.wait_ready()
    is_status(node.cli("snapshot", "--tag", "t1"), 0, "snapshot")
    node.server.psql("drop table orders")
    is_(node.reserve(record_of(node, "t1")["id"])[0], 202, "prepare")
    node.wait("prepared")
    held(host, "fenced")
    held(host, "configured")
    is_(node.execute(until="recovered")[0], 202, "recovered: execute")
    node.wait("held")
    is_(host.systemd.state(), "active", "recovered: the server runs as a unit")
    host.reboot()
    host.mount()
    is_(node.status()["held_at"], "recovered", "recovered: held after the reboot")
    is_(host.systemd.ctl("start", UNIT).status, 0, "recovered: the server starts as any other")
    node.server.wait_ready()
    is_(node.execute(verify=True)[0], 202, "verify")
    node.wait("complete")
    is_(node.server.psql("select count(*) from orders"), "5000", "the dropped table is back")
    is_(node.server.timeline(), 2, "on timeline 2")
    is_(node.health(), "ok", "health is ok")
    host.systemd.stop()


run(main)
