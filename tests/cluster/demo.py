#!/usr/bin/env python3
"""`make demo-cluster`: a primary and two standbys, one of them synchronous, go back to a tag.

Each node has its volume, its server, its agent with a door on a loopback address of its own
(127.0.0.11 …, TLS with certificates on both sides); a coordinator drives them. A snapshot under
load; a table is dropped, a standby loses its files and the primary its disk; one command.
"""
import json
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "../lib"), os.path.join(HERE, ".."), HERE]
import demo  # noqa: E402
import tm  # noqa: E402
from certificates import Authority  # noqa: E402
from cluster_lib import Cluster, Coordinator  # noqa: E402
from t_cluster import ROWS, disaster  # noqa: E402


class Story(demo.Story):
    def cluster(self, coordinator, *args, well=True):
        """Runs `tidemark cluster ARGS`; a failure ends the story, or the lack of one."""
        self.say("$ tidemark cluster " + " ".join(args), "    ")
        began = time.monotonic()
        done = coordinator.cli(*args)
        self.say(" → ".join(dict.fromkeys(done.err.splitlines())), "    | ")
        self.say(done.out.rstrip(), "    | ")
        if (done.status == 0) != well:
            coordinator.diagnose()
            raise RuntimeError(f"exit status {done.status}")
        return time.monotonic() - began


def make(story, box):
    story.step("A primary (db1), a synchronous standby (db2), another one (db3)")
    cluster = Cluster(box, size=600 << 20, provider=None)
    authority = Authority(box.mkdir("ca"))
    for number, member in enumerate(cluster.members):
        member.open_door(authority, f"127.0.0.{11 + number}")
    cluster.start()
    for member in cluster.members:
        story.choose_provider(member)
        member.restart_agent()
    coordinator = Coordinator(box, cluster, options={
        "tls": authority.issue("ops", "coordinator").options}).start()
    story.say(" ".join(m.address for m in cluster.members), "    ")
    server = cluster.primary.server
    server.psql("create table orders as select i as id, repeat(md5(i::text), 20) as pad"
                " from generate_series(1, 50000) i")
    server.pgbench_init(2)
    story.cluster(coordinator, "status")
    return cluster, coordinator


def check_nodes(story, cluster, coordinator, rows):
    primary = cluster.primary.server
    cluster.wait_attached(2)
    for member in cluster.members:
        story.check(member.server.psql(ROWS) == rows, f"{member.name} has the rows of the tag")
    story.check(primary.timeline() == 2, "the primary writes timeline 2, the standbys stream it")
    sync = primary.psql("select application_name from pg_stat_replication"
                        " where sync_state = 'sync'")
    primary.psql("insert into orders select 1000000, 'after'")
    here = cluster.standbys[0].server.psql("select count(*) from orders where id = 1000000")
    story.check((sync, here) == ("db2", "1"), "a commit waits for db2 again, and is there")
    story.check(primary.amcheck()[0] == 0, "amcheck finds nothing")
    status = json.loads(coordinator.cli("status", "--json").out)["status"]
    story.check(status == "ok", "the coordinator finds the cluster well")


def tell(tap):
    tm.need_root()
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal",
                     "tidemark-guardian")
    story, box = Story(tap), tm.Sandbox("demo-cluster")
    story.say(f"Tidemark cluster demo. Everything is made below {box.path} and removed at the end.")
    cluster, coordinator = make(story, box)
    load = cluster.primary.server.pgbench("-R", "200")
    load.wait_transactions(100)
    story.step("A snapshot of the cluster, while pgbench runs")
    rows = cluster.primary.server.psql(ROWS)
    story.cluster(coordinator, "snapshot", "--tag", "before-release")
    story.check(load.process.poll() is None, "pgbench ran all the time")
    load.stop()
    record = json.loads(cluster.primary.cli("show", "before-release", "--json").out)
    story.say_stall(record.get("record", record))
    story.step("The disaster: orders is dropped, db3 loses its files, db1 its disk")
    disaster(cluster)
    story.cluster(coordinator, "status", well=False)
    story.step("One command")
    seconds = story.cluster(coordinator, "restore", "before-release", "--yes")
    check_nodes(story, cluster, coordinator, rows)
    story.cluster(coordinator, "status")
    cluster.stop()
    coordinator.agent.stop()
    path = box.path
    box.close()
    left = tm.output("losetup", "-a").count(path) + tm.output("mount").count(path)
    story.check(not left and not os.path.exists(path), f"{path} is gone with all that was in it")
    story.say(f"\n{story.checks} checks, {story.wrong} wrong; the three nodes were back after "
              f"{seconds:.0f} s.")
    if tap:
        tm.done()
    sys.exit(1 if story.wrong else 0)


if __name__ == "__main__":
    if "--tap" in sys.argv:
        tm.run(lambda: tell(True))
    try:
        tell(False)
    except (RuntimeError, TimeoutError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        sys.exit(1)
