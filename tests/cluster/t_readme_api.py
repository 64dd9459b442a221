#!/usr/bin/env python3
# check: timeout=300
"""The three steps of README.md, "The API, in three steps", as they are written there: its blocks
run in bash against an agent and against a coordinator. Only the sockets' paths are others."""
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE]
from tm import *  # noqa: E402, F403
from cluster_lib import Cluster, Coordinator  # noqa: E402
import tm  # noqa: E402

README = os.path.join(HERE, "..", "..", "README.md")


def blocks():
    """The shell blocks of that section: the agent's and the coordinator's."""
    with open(README, encoding="utf-8") as file:
        section = file.read().split("## The API, in three steps\n")[1].split("\n## ")[0]
    return re.findall(r"(?ms)^```\n(.*?)^```", section)


def run_block(text, socket_path):
    """What the block prints; SOCKET is the test's."""
    text, count = re.subn(r"(?m)^SOCKET=/run/tidemark/\S+$", f"SOCKET={socket_path}", text)
    is_(count, 1, "the block names its socket")
    return subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=False, timeout=200,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def steps(text, socket_path, server, what, patterns):
    done = run_block(text, socket_path)
    if not is_(done.returncode, 0, f"{what} runs"):
        diag(done.stdout)
    is_([x for x in done.stdout.splitlines() if x in ("prepared", "executed", "complete")],
        ["prepared", "executed", "complete"], f"{what} takes three steps")
    for pattern in patterns:
        like(done.stdout, pattern, f"{what} shows the nodes")
    is_(server.psql("select count(*) from precious"), "1", f"{what} brought the table back")


def main():
    tm.need_root()
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal")
    tm.need_tools("curl", "jq")
    node_block, cluster_block = blocks()
    functions = node_block.split("\nSOCKET=")[0] + "\n"
    box = tm.Sandbox("readme")
    cluster = Cluster(box, names=("db1", "db2")).start()
    coordinator = Coordinator(box, cluster).start()
    server = cluster.primary.server
    server.psql("create table precious as select 1 as id")
    is_status(coordinator.cli("snapshot", "--tag", "before-migration"), 0, "a cluster snapshot")
    server.psql("drop table precious")
    steps(functions + cluster_block, coordinator.socket, server, "the coordinator's block",
          [r"(?m)^db1\tok\tprimary\t2$", r"(?m)^db2\tok\tstandby\t2$"])
    cluster.standbys[0].agent.stop()
    cluster.standbys[0].server.stop("immediate")
    server.psql("alter system set synchronous_standby_names = ''")
    server.reload()
    is_status(cluster.primary.cli("snapshot", "--tag", "before-upgrade"), 0, "a node's snapshot")
    server.psql("drop table precious")
    steps(node_block, cluster.primary.socket, server, "the agent's block", [])
    cluster.stop()


if __name__ == "__main__":
    run(main)
