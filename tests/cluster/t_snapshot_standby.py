#!/usr/bin/env python3
# check: build=release campaign=asan timeout=400
"""Snapshots of a standby: its blocks, the restore point and the archive of its primary, under load.
Restored to the whole cluster, and on its own node as a primary; what ends one without a trace."""
import os
import shutil
import signal
import socket
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE]
from tm import *  # noqa: E402, F403
from cluster_checks import stopped_below  # noqa: E402
from cluster_lib import Cluster, Coordinator, diskseq_name  # noqa: E402
from node import conf_text  # noqa: E402
from server import lsn  # noqa: E402
import snapshots as snap  # noqa: E402
import tm  # noqa: E402

ORDERS = "select count(*), sum(amount) from orders"


class Load:
    """pgbench and acknowledged commits on a primary."""

    def __init__(self, member, table="tidemark_ledger"):
        self.ledger = Ledger(member.server, table=table)
        self.member, self.pgbench = member, None

    def start(self):
        self.pgbench = self.member.server.pgbench("-c", "1", "-R", "100")
        self.pgbench.wait_transactions(20)
        self.ledger.start()
        self.ledger.wait(20)

    def stop(self):
        self.ledger.wait(20)
        self.pgbench.stop()
        self.ledger.stop()


def tagged(node, load, tag):
    """What the record of a standby's snapshot says, and what a restore to its tag has to hold."""
    record = snap.record(node, tag)
    server, topology = record["postgresql"], record["topology"]["nodes"][0]
    is_((record["node"], topology["role"]), (node.name, "standby"),
        f"{tag}: the standby is recorded")
    is_status(node.cli("show", tag), 0, f"{tag}: show")
    ok(lsn(server["start_lsn"]) < lsn(server["stop_lsn"]) <= lsn(server["tag_lsn"]),
       f"{tag}: the tag is behind the backup's end")
    is_status(node.cli("verify", tag), 0, f"{tag}: verify finds blocks and WAL")
    return load.ledger.bounds(server["tag_lsn"])


def holds(server, load, bounds, what):
    least, most = bounds
    count, last = load.ledger.present(server)
    ok(count == last and least <= last <= most,
       f"{what}: commits 1 … {last}, the tag covers {least} to {most}")
    sums = server.pgbench_sums()
    is_(len(set(sums[:4])), 1, f"{what}: pgbench's sums agree")
    is_(server.amcheck()[0], 0, f"{what}: amcheck finds nothing")


def test_cluster(cluster, coordinator, load):
    """From the standby, back to both."""
    server = cluster.primary.server
    rows = server.psql(ORDERS)
    load.start()
    done = coordinator.cli("snapshot", "--tag", "s1", "--from=standby")
    if not is_status(done, 0, "cluster snapshot --from=standby"):
        coordinator.diagnose()
    like(done.out, r"read from db2", "it was read from the standby")
    load.stop()
    bounds = tagged(cluster.standbys[0], load, "s1")
    server.psql("drop table orders")
    done = coordinator.cli("restore", "s1", "--yes")
    if not is_status(done, 0, "cluster restore of it"):
        coordinator.diagnose()
    like(done.out, r"(?s)primary +db1.*standby +db2", "each in its place")
    cluster.wait_attached(2)
    cluster.wait_replayed()
    for member in cluster.members:
        is_((member.server.psql(ORDERS), member.health()), (rows, "ok"), f"{member.name} is back")
    holds(server, load, bounds, "the cluster")
    return rows


def refused(node, what, status, pattern, *args):
    before = snap.tags(node)
    done = node.cli("snapshot", "--tag", "refused", *args)
    is_status(done, status, f"{what}: refused")
    like(done.err, "(?s)" + pattern, f"{what}: says why")
    is_(snap.tags(node), before, f"{what}: nothing of it is visible")


def configure(node, **options):
    node.sections["postgresql"].update(options)
    node.write_conf()
    node.restart_agent()


def test_of_another(node, other, tag):
    """A restore takes its node's own; whose it is, and how it is restored here."""
    done = node.cli("restore", "--dry-run", tag)
    is_status(done, "missing", "a snapshot of another node")
    like(done.err, rf"snapshot '{tag}' \([0-9a-f]{{12}}\) is of node {other.name}, and this is "
         rf"{node.name}\nhint: `tidemark cluster restore {tag}`.*`node = {other.name}`",
         "says whose it is, and how to restore it here")
    copy = node.box.write("copy.conf", conf_text({**node.sections, "tidemark": {
        **node.sections["tidemark"], "node": other.name}}))
    done = node.cli("restore", "--dry-run", "--local", f"--config={copy}", tag)
    is_status(done, 0, "by a copy of the configuration that names that node: planned")
    like(done.out, rf"^plan: restore {tag} .* of main/{other.name}", "it is that one")


def test_refusals(cluster):
    """Each of them before the volumes are touched."""
    node, primary = cluster.standbys[0], cluster.primary
    refused(node, "--no-archive", "refused", "needs the archive.*hint: .*without --no-archive",
            "--no-archive")
    node.server.psql("select pg_wal_replay_pause()")
    poll(lambda: node.server.psql("select pg_get_wal_replay_pause_state()") == "paused", 60,
         "replay to pause")
    refused(node, "replay is paused", "refused", r"paused at.*hint: pg_wal_replay_resume")
    node.server.psql("select pg_wal_replay_resume()")
    primary.server.psql("alter system set full_page_writes = off")
    primary.server.reload()
    primary.server.psql("checkpoint")
    refused(node, "its primary writes no full pages", "postgres",
            r"full_page_writes=off was replayed since last restartpoint")
    primary.server.psql("alter system reset full_page_writes")
    primary.server.reload()
    primary.server.psql("checkpoint")
    configure(node, primary_connection=node.server.conninfo)
    refused(node, "the way leads to a standby", "refused",
            r"is a standby itself.*hint: .*primary_connection")
    other = Server(cluster.box, cluster.box.join("other"))
    other.init()
    other.start()
    configure(node, primary_connection=other.conninfo)
    refused(node, "the way leads to another cluster", "config",
            r"system identifier \d+, this standby \d+.*hint: .*primary_connection")
    other.stop()
    refused(node, "the way leads nowhere", "postgres",
            r"connect to the primary of this standby.*hint: .*primary_connection")
    primary.server.psql("create role looker login")
    configure(node, primary_connection=f"host={primary.server.socket} port={primary.server.port}"
                                       " user=looker dbname=postgres")
    refused(node, "a role that may not", "postgres",
            "node db2, a standby: user looker may not make the restore point.*hint: on the primary:"
            " GRANT EXECUTE ON FUNCTION pg_create_restore_point, pg_switch_wal TO looker;")
    like(node.cli("check").out, r"(?m)^warn +primary +.*: node db2, a standby: user looker may not",
         "check sees it, too")
    primary.server.psql("grant execute on function pg_create_restore_point, pg_switch_wal"
                        " to looker")
    like(node.cli("check").out, r"(?m)^ok +primary +answers, and lets", "check: then it may")
    unlike(primary.cli("check").out, r"(?m)^\w+ +primary ", "check: a primary needs nobody's")


def refused_beside(node, primary):
    done = node.cli("restore", "s2", "--yes")
    is_status(done, "refused", "while the primary runs: refused")
    like(done.err, r"(?s)primary of this cluster runs and takes writes, at .*hint: stop it first",
         "while the primary runs: says why, and what to do")
    is_((node.server.psql("select pg_is_in_recovery()"),
         primary.server.psql("select pg_is_in_recovery()")), ("t", "f"),
        "while the primary runs: both are as they were")


def back_too_soon(node, primary):
    """The old primary is down when the restore begins, and comes back while it copies."""
    node.restart_agent(TIDEMARK_TEST_PAUSE="configured-files")
    job = snap.Running(node, "restore", "s2", "--yes")
    pid = poll(lambda: stopped_below(node.state_dir), 120, "the restore to stop itself")
    primary.server.start()
    os.kill(pid, signal.SIGCONT)
    done = job.wait()
    is_status(done, "refused", "the primary came back: the restored server does not start")
    like(done.out, "warning.*a standby: it becomes a primary", "the plan says what that means")
    like(done.out, r"primary +nobody: ", "and that nobody was there")
    like(done.err, r"(?s)runs and takes writes, at .*hint: stop it first.*--resume",
         "the primary came back: says what to do")
    ok(not node.server.running(), "the primary came back: no second server runs")
    isnt(node.server.start(check=False).returncode, 0,
         "the primary came back: nor does a person start one")
    like(tm.tail(node.server.log, 5), 'configuration file "/run/tidemark-restore/not-complete.*'
         r"--resume\.", "the primary came back: the server's log says what to do")
    primary.server.stop()
    node.restart_agent()


def not_resumed(node, what, why):
    done = node.cli("restore", "--resume")
    is_status(done, "refused", f"{what}: the restored server does not start")
    like(done.err, rf"(?s)still runs is not known: .*{why}.*hint: make sure that it is down.*"
                   "resume with --primary-is-down.*--resume", f"{what}: says why, and what to do")
    ok(not node.server.running(), f"{what}: no second server runs")
    is_(node.health(), "failed", f"{what}: the node is in the state it was in")


def back_silent(node, primary):
    """It is back when the restore goes on, and wants a password that nobody has any more; then it
    is down, and what listens in its place does not answer."""
    hba = f"{primary.data}/pg_hba.conf"
    with open(hba, encoding="utf-8") as file:
        rules = file.read()
    with open(hba, "w", encoding="utf-8") as file:
        file.write("local all all scram-sha-256\nlocal replication all scram-sha-256\n")
    primary.server.start()
    not_resumed(node, "the primary is back with scram", "no password supplied")
    primary.server.stop()
    with open(hba, "w", encoding="utf-8") as file:
        file.write(rules)
    path = f"{primary.server.socket}/.s.PGSQL.{primary.server.port}"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(path)
        os.chmod(path, 0o777)
        mute.listen(64)
        not_resumed(node, "it does not answer", "no answer")
        done = node.cli("restore", "--resume", "--primary-is-down")
    os.unlink(path)
    return done


def lost_settings(clone, args):
    """What makes it a clone is in a file that no snapshot knows, and that is overwritten."""
    with open(f"{clone.data}/postgresql.conf", "a", encoding="utf-8") as file:
        file.write("archive_mode = on\ninclude_if_exists 'own.conf'\n")

    def write_own():
        with open(f"{clone.data}/own.conf", "w", encoding="utf-8") as file:
            file.write("archive_mode = off\n")
    write_own()
    done = clone.cli(*args)
    is_status(done, "refused", "a clone that lost its settings: refused before its start")
    like(done.out, "primary +not asked: archive_mode is off", "the clone's plan says so")
    like(done.err, "(?s)still runs is not known: how .*resume with --primary-is-down", "no longer")
    ok(not clone.server.running(), "and it does not run")
    write_own()


def test_clone(cluster, node, load, bounds):
    """On the same host, in another directory, on another port, with archive_mode = off in its own
    configuration: nobody is asked."""
    box, volume = cluster.box, node.box.volume("clone", 352 * MIB)
    clone = Node(box, [volume], name="clone", repository=node.repository)
    clone.sections["tidemark"]["node"] = node.name
    clone.sections["volume pgdata"] = clone.sections.pop("volume clone")
    clone.write_conf()
    os.mkdir(clone.data, 0o700)
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf", "PG_VERSION"):
        shutil.copy(f"{node.data}/{name}", clone.data)
    output("chown", "-R", "postgres:", clone.data)
    args = ("restore", "s2", "--local", "--yes", "--verify=quick",
            f"--overwrite=pgdata={diskseq_name(volume.device)}")
    clone.server.configure(port=clone.server.port)
    done = clone.cli(*args)
    is_status(done, "refused", "a clone that would archive: refused")
    like(done.err, "still runs is not known: how to reach it is not known.*\nhint: make sure",
         "a clone that would archive: says why")
    clone.server.configure(archive_mode="off")
    done = clone.cli(*args, "--server-config=image")
    is_status(done, "refused", "a clone but for the settings that it will have: refused")
    like(done.err, "still runs is not known", "a clone but for its settings: asked like others")
    lost_settings(clone, args)
    done = clone.cli("restore", "--resume", "--local", "--yes")
    if is_status(done, 0, "a clone that does not archive: restored"):
        holds(clone.server, load, bounds, "the clone")
    is_(node.server.psql("select pg_is_in_recovery()"), "t", "the standby is as it was")
    clone.server.stop("immediate", check=False)


def test_node(cluster, load, rows):
    """On its own node: it becomes a primary. By a role with few rights; the old primary is gone."""
    node, primary = cluster.standbys[0], cluster.primary
    load.start()
    is_status(node.cli("snapshot", "--tag", "s2", "--with-wal"), 0,
              "snapshot of the standby, on its own host, on timeline 2, by a role with few rights")
    load.stop()
    bounds = tagged(node, load, "s2")
    primary.server.psql("drop table orders")
    acknowledged = load.ledger.acknowledged
    primary.wait_archived(primary.server.switch_wal())
    refused_beside(node, primary)
    test_clone(cluster, node, load, bounds)
    primary.server.stop()
    back_too_soon(node, primary)
    done = back_silent(node, primary)
    is_status(done, 0, "somebody says that it is down: restored on its own node")
    node.server.wait_ready()
    is_((node.server.timeline(), node.server.psql(ORDERS)), (3, rows), "a primary, timeline 3")
    holds(node.server, load, bounds, "the node")
    ok(not os.path.exists(f"{node.data}/standby.signal"), "and follows nobody")
    is_status(node.cli("restore", "s2", "--yes", "--target=latest", "--target-timeline=2",
                       "--verify=quick"), 0, "and to the latest")
    is_((node.server.psql("select to_regclass('orders') is null"),
         load.ledger.present(node.server)), ("t", (acknowledged, acknowledged)),
        "every acknowledged commit is there")
    is_status(node.cli("restore", "s2", "--yes", "--target=snapshot", "--verify=none"), 0,
              "and to the image itself")
    is_((node.server.psql(ORDERS), node.server.psql("select pg_is_in_recovery()")), (rows, "f"),
        "which has the table, and takes writes")


def test_promoted(cluster):
    """The old primary follows the new one, and is promoted while its volume is captured."""
    primary, node = cluster.standbys[0], cluster.primary
    shutil.rmtree(node.data)
    os.mkdir(node.data, 0o700)
    shutil.chown(node.data, "postgres", "postgres")
    primary.server.psql("select pg_drop_replication_slot(slot_name) from pg_replication_slots")
    node.copy_from(primary)
    timeline = primary.server.timeline()
    poll(lambda: node.streams(timeline), 60, "db1 to follow db2")
    before = snap.tags(node)
    job = snap.Running(node, "snapshot", "--tag", "never")
    job.wait_phase("copying")
    node.server.psql("select pg_promote(wait => false)")
    done = job.wait()
    is_status(done, "postgres", "promoted during the snapshot: failed")
    like(done.err, "promoted during|, promoted", "and it says so")
    is_(snap.tags(node), before, "nothing of it is visible")


def main():
    box = need_root() or Sandbox("snapshot-standby")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian",
                  "tidemark-coordinator")
    cluster = Cluster(box, ("db1", "db2"), options={"wal": {"archive_timeout": "60s",
                                                            "get_timeout": "2s"}})
    coordinator = Coordinator(box, cluster).start()
    cluster.start()
    server = cluster.primary.server
    server.pgbench_init(1)
    server.psql("create table orders as select i as id, i % 97 as amount"
                " from generate_series(1, 5000) i")
    load = Load(cluster.primary)
    load.ledger.create()
    rows = test_cluster(cluster, coordinator, load)
    test_of_another(cluster.primary, cluster.standbys[0], "s1")
    test_refusals(cluster)
    test_node(cluster, load, rows)
    test_promoted(cluster)
    coordinator.agent.stop()
    cluster.stop()


if __name__ == "__main__":
    run(main)
