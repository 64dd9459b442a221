#!/usr/bin/env python3
# check: build=asan timeout=200
"""GET /node: a primary, its standby, a reserved node, a server that is down, a volume without
filesystem; nothing of a password."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from cluster_lib import JOB, Cluster, diskseq_name  # noqa: E402


def node_of(member):
    status, answer = member.agent.api("GET", "/node")
    is_(status, 200, f"{member.name}: GET /node")
    return answer


def test_primary(member, standby):
    node = node_of(member)
    is_([node[k] for k in ("node", "cluster", "role", "server", "timeline", "primary_conninfo")],
        ["db1", "main", "primary", "running", 1, None], "the primary says what it is")
    is_(node["system_id"], member.server.psql(
        "select system_identifier from pg_control_system()"), "its system id")
    like(node["lsn"], "^[0-9A-F]+/[0-9A-F]+$", "its position")
    like(node["pg_version"], "^15", "its version")
    is_([(s["name"], s["type"], s["active"]) for s in node["slots"]],
        [("db2", "physical", True)], "its slots")
    is_([(r["application_name"], r["state"], r["sync_state"]) for r in node["replication"]],
        [("db2", "streaming", "sync")], "who follows it, and how")
    is_(node["settings"], {
        "max_connections": "100", "max_worker_processes": "8", "max_wal_senders": "10",
        "max_prepared_transactions": "0", "max_locks_per_transaction": "64",
        "synchronous_standby_names": "db2"}, "settings that other nodes depend on")
    volume, = node["volumes"]
    is_([volume[k] for k in ("name", "mount", "mounted", "device", "identity", "fs_type")],
        ["pgdata", member.volumes[0].mount, True, member.volumes[0].device,
         diskseq_name(member.volumes[0].device), "ext4"], "its volume, as --overwrite names it")
    is_((node["health"]["status"], node["reservation"]), ("ok", None), "free and well")
    is_(node["receiver"], None, "it receives nothing")


def test_standby(member, primary):
    server = member.server
    server.psql(f"alter system set primary_conninfo = '{member.conninfo_to(primary)}"
                " password=hush'")
    server.reload()
    poll(lambda: member.streams(1), 60, "db2 to stream again")
    node = node_of(member)
    is_((node["role"], node["timeline"], node["primary_slot"]), ("standby", 1, "db2"),
        "the standby says what it is")
    like(node["primary_conninfo"], "^host=.*application_name=db2$", "whom it follows")
    unlike(str(node), "hush", "its password is not told")
    is_((node["receiver"]["status"], node["receiver"]["timeline"], node["receiver"]["slot"]),
        ("streaming", 1, "db2"), "its receiver")
    is_(node["replication"], [], "nobody follows it")


def test_reserved(member):
    is_status(member.cli("snapshot", "--tag", "t1"), 0, "snapshot")
    is_(member.reserve("t1", epoch=3)[0], 202, "reserve")
    member.wait("prepared")
    is_(node_of(member)["reservation"], {"job": JOB, "epoch": 3, "state": "held",
                                         "restore": member.job}, "the reservation")
    member.agent.api("DELETE", f"/jobs/{member.job}")
    is_(node_of(member)["reservation"]["state"], "released", "and its end")


def test_down(member):
    system = member.server.psql("select system_identifier from pg_control_system()")
    member.server.stop()
    node = node_of(member)
    is_((node["role"], node["server"], node["system_id"], node["timeline"]),
        ("down", "stopped", system, 1), "a stopped server: what pg_control says")
    member.destroy(member.volumes[0])
    node = node_of(member)
    is_((node["role"], node["system_id"], node["timeline"], node["lsn"]),
        ("down", None, None, None), "a destroyed volume: nothing is known")
    is_([v["name"] for v in node["volumes"]], ["pgdata"], "the volume is named")


def test_children(member):
    """The agent leaves no zombie of these questions behind."""
    with open(f"/proc/{member.agent.pid()}/task/{member.agent.pid()}/children",
              encoding="ascii") as file:
        is_(file.read().split(), [], f"{member.name}: no child of the agent is left")


def main():
    box = need_root() or Sandbox("cluster-report")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    cluster = Cluster(box, ("db1", "db2")).start()
    primary, standby = cluster.members
    poll(lambda: primary.server.psql("select sync_state from pg_stat_replication") == "sync", 30,
         "db2 to be synchronous")
    test_primary(primary, standby)
    test_standby(standby, primary)
    test_reserved(primary)
    test_down(standby)
    for member in cluster.members:
        test_children(member)
    cluster.stop()


run(main)
