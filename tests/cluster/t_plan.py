#!/usr/bin/env python3
# check: build=release campaign=release,asan timeout=300
"""What is known of a cluster restore before anything is touched: the plan, with the devices and how
each standby reaches its primary, which is tried; a node that is off; for whom commits would wait.
What is found out too late all the same is corrected, and `cluster resume` goes on. Then what a
person asks first at night: `tidemark show` and `tidemark check`, on any host."""
import json
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE]
from tm import *  # noqa: E402, F403
from certificates import Authority  # noqa: E402
from cluster_checks import as_before, restored, tagged  # noqa: E402
from cluster_lib import SECRET, Cluster, Coordinator  # noqa: E402
import tm  # noqa: E402

NOBODY = "user=nobody_like_that"


class World:
    """Two nodes with doors, and a coordinator whose template can be changed."""

    def __init__(self, box):
        self.box, authority = box, Authority(box.mkdir("ca"))
        self.cluster = Cluster(box, ("db1", "db2"), options={
            "postgresql": {"start_timeout": "6s"}})
        for member in self.cluster.members:
            member.open_door(authority, "127.0.0.1")
        self.primary, self.standby = self.cluster.start().members
        server = self.primary.server
        self.server_at = f"host={server.socket} port={server.port}"
        self.good = f"{self.server_at} user=postgres password={SECRET} application_name=%n"
        self.coordinator = Coordinator(box, self.cluster, "coordinator", {
            "tls": authority.issue("coordinator", "coordinator").options,
            "coordinator": {"primary_conninfo": self.good, "agent_timeout": "1h"}}).start()

    def configure(self, template):
        self.coordinator.write_conf(self.box, primary_conninfo=template)
        self.coordinator.restart()

    def dry_run(self, *args):
        return self.coordinator.cli("restore", "t1", "--dry-run", *args, timeout_s=120)


def test_plan(world):
    done = world.dry_run()
    if not is_status(done, 0, "--dry-run"):
        world.coordinator.diagnose()
    device = world.primary.volumes[0].device
    for line in (r"plan: restore cluster main to t1 \([0-9a-f]{12}\), captured 20.* UTC on db1",
                 "  recover  to tag t1@[0-9a-f]{32} on timeline 1, then promote",
                 f"  primary  db1: PostgreSQL in {world.primary.data} runs and will be stopped",
                 rf"  write    pgdata: .* of ext4 to {device} \(holds .*\), mounted at /",
                 rf"  write    pgdata: .* to {world.standby.volumes[0].device} \(the filesystem "
                 r"that is mounted there now\), mounted at /",
                 rf"  follows  {world.server_at} user=postgres password=\*\*\* "
                 "application_name=db2, slot db2\n +tried: the primary answers"):
        like(done.out, f"(?m)^{line}", f"the plan: {line}")
    unlike(done.out, "synchronous", "db2, for whom commits wait, will be there: no warning")
    plan = json.loads(world.dry_run("--json").out)["plan"]
    is_([m["connection"]["tried"] for m in plan["members"][1:]], ["yes"], "the same as JSON")
    is_([[v["device"] for v in m["volumes"]] for m in plan["members"]],
        [[m.volumes[0].device] for m in world.cluster.members], "with every device")
    unlike(json.dumps([world.coordinator.journal(), world.standby.agent.api("GET", "/jobs")]),
           SECRET, "the password is in no journal")


def test_wrong(world):
    """Found before anything is touched."""
    table = (
        ("a word that libpq does not know", f"{world.server_at} {NOBODY} hots=1", "config",
         'primary_conninfo: invalid connection option "hots"'),
        ("one that may be a part of a password", "password=open sesame", "config",
         "primary_conninfo: libpq cannot read it .*not shown"),
        ("nobody listens", "host=/nowhere user=postgres password=x", "refused",
         r'"host=/nowhere user=postgres password=\*\*\*" does not reach the primary: .*No such'),
        ("no such role", f"{world.server_at} {NOBODY}", "refused",
         r"does not reach the primary: .*nobody_like_that.*does not exist"),
    )
    for what, template, status, text in table:
        world.configure(template)
        done = world.coordinator.cli("restore", "t1", "--yes")
        is_status(done, status, f"{what}: refused")
        like(done.err, f"(?s)node db2: .*{text}.*hint: nothing was touched; correct .coordinator. "
             "primary_conninfo", f"{what}: and why")
        unlike(done.err, "sesame", f"{what}: nothing of a password")
    as_before(world.cluster, 1, "wrong ways")
    world.configure("host=/nowhere,/neither user=postgres")
    done = world.dry_run()
    is_status(done, 0, "several hosts that do not answer may do so later")
    like(done.out, "(?s)tried, not clear: .*warning: db2: whether primary_conninfo leads to the "
         "primary is not clear: .*No such file", "the plan warns")


def test_waits(world):
    """For whom commits wait, and who attaches."""
    world.configure(f"{world.server_at} user=postgres")
    like(world.dry_run().out, r"warning: commits on the new primary db1 will wait: its "
         r"synchronous_standby_names = 'db2' wants 1 standby, and of this restore 0 of them attach "
         r"\(db2 as walreceiver\)", "a standby under another name than commits wait for")


def test_node_off(world):
    world.configure(world.good)
    world.standby.agent.stop()
    done = world.dry_run()
    is_status(done, "device", "a node that is off ends the plan, long before agent_timeout")
    like(done.err, "(?s)node db2: .*hint: nothing was touched; .*--without-node=db2", "the way out")
    done = world.dry_run("--without-node=db2")
    is_status(done, 0, "the way out")
    like(done.out, "(?s)warning: member db2 is left out and does not answer.*"
         r"commits on the new primary db1 will wait: .*\(no standby is restored\)",
         "what that means")
    world.standby.agent.start()


def test_late(world, rows):
    """The old primary is down, so nobody can try: a wrong port is found when the data is gone."""
    world.configure(re.sub(r"port=\d+", "port=1", world.good))
    world.primary.server.stop("immediate")
    like(world.dry_run().out, "not tried: the server of db1 does not run", "it cannot be tried")
    done = world.coordinator.cli("restore", "t1", "--yes")
    is_status(done, "postgres", "a wrong port: the standby does not attach")
    like(done.err, r"(?s)node db2: the standby does not get on.*hint: is \[coordinator\] "
         "primary_conninfo right.*cluster resume", "with the way on")
    world.coordinator.write_conf(world.box, primary_conninfo=world.good)
    done = world.coordinator.cli("resume")
    if not is_status(done, 0, "resume takes the corrected one, without a restart"):
        tm.diag(done.err)
        world.coordinator.diagnose()
    restored(world.cluster, world.coordinator, 2, rows, "corrected")
    world.coordinator.restart()


def test_show(world):
    is_status(world.primary.cli("snapshot", "--tag", "alone"), 0, "a snapshot of db1 alone")
    for tag in ("t1", "alone", "latest"):
        done = world.standby.cli("show", tag)
        is_status(done, 0, f"show {tag} on a node that did not make it")
        like(done.out, "(?m)^node: db1$", f"show {tag}: whose it is")
    for tag in ("t1", "latest"):
        done = tm.cli("show", tag, conf=world.coordinator.conf)
        is_status(done, 0, f"show {tag} with the coordinator's configuration")
    done = tm.cli("show", "nothing", conf=world.coordinator.conf)
    is_status(done, "missing", "one that is not there")
    like(done.err, "nearest tags are: alone t1|nearest tags are: .*t1", "names those that are")


def check(world, what, status=0, *lines):
    done = tm.cli("check", conf=world.coordinator.conf)
    is_status(done, status, f"check: {what}") or tm.diag(done.out)
    for line in lines:
        like(done.out, f"(?m)^{line}", f"check: {what}: {line}")
    unlike(done.out, "(?m)^[a-zA-Z]+ +(volumes|server|archiving) ", f"check: {what}: no node's row")


def test_check(world):
    check(world, "all is well", 0, "ok +coordinator +answers", "ok +certificate +role coordinator",
          "ok +repository ", "ok +node db1 +https://.*: primary on timeline 2, health ok, agent 0",
          "ok +node db2 +https://.*: standby on timeline 2", "ok +primary +db1$",
          "ok +conninfo +libpq can read it")
    world.standby.agent.stop()
    check(world, "an agent is down", "device", "FAILED node db2 ", "ok +primary +db1$")
    world.standby.agent.start()
    world.coordinator.sections["postgresql"] = {"manager": "patroni"}
    world.configure("host=%h hots=1")
    check(world, "what does not belong there", "config",
          r'FAILED conninfo +invalid connection option "hots"\n +hint: correct .coordinator. pri',
          r"FAILED sections +\[patroni\] and manager = patroni: a coordinator has no server")
    del world.coordinator.sections["postgresql"]
    conf = world.coordinator.sections["coordinator"]
    conf["members"] = conf["members"].replace("db2=", "db3=")
    world.configure(world.good)
    check(world, "a name that the certificate does not have", "auth", "FAILED node db3 ")


def main():
    box = tm.need_root() or tm.Sandbox("plan")
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal")
    world = World(box)
    rows = tagged(world.cluster, world.coordinator)
    test_plan(world)
    test_wrong(world)
    test_waits(world)
    test_node_off(world)
    test_late(world, rows)
    test_show(world)
    test_check(world)
    world.cluster.stop()


run(main)
