#!/usr/bin/env python3
# check: timeout=300
"""The agent as `make install` sets it up: the shipped unit, unchanged, in a real systemd. The
default provider works under it, and under a drop-in that leaves no more capabilities than README
asks for; where one takes too much away, the refusal says what is missing."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
from systemd import UNIT, boot, unit_text  # noqa: E402
import snapshots as snap  # noqa: E402
import tm  # noqa: E402

AGENT = "tidemark-agent.service"
NEEDED = "CAP_BPF CAP_PERFMON CAP_SYS_ADMIN CAP_IPC_LOCK"
# Of any program that works for another user and on his files.
USUAL = "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_KILL CAP_SETGID CAP_SETUID"


def install(box, node):
    """The unit's text; the installed programs read the node's configuration."""
    variant = os.path.basename(BUILD)
    san = [] if variant == "release" else [f"SAN={variant}"]
    prefix, etc = box.join("usr"), box.join("etc")
    subprocess.run(["make", "-s", "-C", SOURCE, *san, "install", f"PREFIX={prefix}",
                    f"SYSCONFDIR={etc}"], check=True, stdin=subprocess.DEVNULL)
    box.write("etc/tidemark/tidemark.conf", conf_text(node.sections))
    with open(f"{prefix}/lib/systemd/system/{AGENT}", encoding="utf-8") as file:
        return file.read()


def start(systemd, unit, drop_in=""):
    systemd.unit(unit + f"\n[Service]\n{drop_in}\n", AGENT)
    if not is_(systemd.ctl("restart", AGENT).status, 0, "the unit starts"):
        diag(systemd.ctl("status", "-l", AGENT).out)


def snapshot(node, tag):
    if not is_status(node.cli("snapshot", "--tag", tag), 0, f"{tag}: a snapshot"):
        return
    is_(snap.record(node, tag)["volumes"][0]["provider"], "precopy", f"{tag}: a live one")


def main():
    box = need_root() or Sandbox("unit")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    need_tools("unshare", "nsenter", "systemctl")
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        skip_all("this kernel has no BTF")
    node = Node(box, [box.volume("pgdata", 448 * MIB)], provider=None,
                options={"postgresql": {"manager": f"systemd:{UNIT}"}})
    unit = install(box, node)
    node.start(agent=False)
    node.server.stop()
    systemd = boot(box)
    systemd.run("mount", "-t", "tmpfs", "none", "/var/lib")  # StateDirectory= is the host's else
    systemd.unit(unit_text(node.server, StandardOutput=f"append:{node.server.log}",
                           StandardError="inherit"))
    is_(systemd.ctl("start", UNIT).status, 0, "systemd starts the server")
    node.server.wait_ready()
    start(systemd, unit)
    snapshot(node, "shipped")
    start(systemd, unit, f"CapabilityBoundingSet={NEEDED} {USUAL}")
    snapshot(node, "confined")
    start(systemd, unit, f"CapabilityBoundingSet={USUAL} CAP_IPC_LOCK")
    done = node.cli("snapshot", "--tag", "too-little")
    is_status(done, "refused", "without CAP_BPF and CAP_SYS_ADMIN: exit status")
    like(done.err, "(?s)CAP_BPF and CAP_PERFMON.*hint: .*freeze, command and offline",
         "what is missing is named, and the other providers")
    done = node.cli("check", conf=box.join("etc/tidemark/tidemark.conf"))
    is_status(done, "refused", "check is made by the agent, with its rights: exit status")
    like(done.out, "(?m)^FAILED capture +provider precopy: .*CAP_BPF and CAP_PERFMON", "its line")
    # Longer than systemd waits before it kills: then it says which of them did not end.
    systemd.ctl("stop", AGENT, UNIT, timeout_s=180)
    diag(systemd.ctl("show", "--property=Id,Result,ExecMainStatus", AGENT, UNIT).out)


run(main)
