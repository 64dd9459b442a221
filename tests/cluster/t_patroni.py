#!/usr/bin/env python3
# check: build=asan campaign=release timeout=600
"""Three nodes in the care of Patroni, as conf/patroni.yml.example says: the cluster is bootstrapped
from a tag, with WAL of the lost branch in the archive; replicas are created and re-created by
Tidemark; the method fails before and after it has touched the volume; Patroni is stopped in the
middle; and no other restore is possible meanwhile."""
import glob
import json
import os
import shutil
import signal
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE]
from tm import *  # noqa: E402, F403
from cluster_lib import Coordinator, Member  # noqa: E402
from node import make_repository  # noqa: E402
from patroni_lib import Etcd, PatroniMember, need_patroni, wait_running  # noqa: E402
import tm  # noqa: E402

SIZE = 352 << 20
COUNT = "select count(*) from orders"


def make_tag(box, repository):
    """A server like any other: 5000 rows, the tag of the example, and what is to be lost, in full
    segments of the archive."""
    source = Member(box, "old", repository, SIZE, None)
    source.start()
    server = source.server
    server.psql("create table orders as select i as id, md5(i::text) as pad"
                " from generate_series(1, 5000) i")
    is_status(source.cli("snapshot", "--tag", "before-release"), 0, "a tag")
    for _ in range(2):
        server.psql("insert into orders select i, 'lost' from generate_series(1, 1000) i")
        last = server.switch_wal()
    server.psql("drop table orders")
    source.wait_archived(last)
    source.agent.stop()
    server.stop()


def streams_on(members, leader, timeline):
    for member in members:
        if member is not leader:
            poll(lambda m=member: m.streams(timeline), 180, f"{member.name} to stream")


def rows(members, count):
    """All of them, as soon as they have replayed."""
    for member in members:
        try:
            poll(lambda m=member: m.server.psql(COUNT, check=False).stdout.strip() == str(count),
                 180, f"{count} rows on {member.name}")
            ok(True, f"{member.name} has {count} rows")
        except TimeoutError:
            is_(member.server.psql(COUNT, check=False).stdout.strip(), str(count),
                f"{member.name} has {count} rows")


def in_volume(member):
    """The data directory lies on the node's volume, and nothing below its mount point."""
    return os.path.ismount(member.volumes[0].mount) and \
        os.stat(member.data).st_dev == os.stat(member.volumes[0].mount).st_dev


def bootstrap(members):
    for member in members:
        member.agent.start()
        member.start_patroni()
    leader = wait_running(members)
    is_(leader.server.timeline(), 2, "bootstrap: the leader writes a new timeline")
    streams_on(members, leader, 2)
    rows(members, 5000)
    for member in members:
        job = member.newest_job()
        role = "primary" if member is leader else "replica"
        is_((job.get("state"), job.get("handover", {}).get("role")), ("complete", role),
            f"bootstrap: {member.name} was handed over as {role}")
        ok(in_volume(member), f"bootstrap: {member.name} lives on its volume")
        is_(member.health(), "ok", f"bootstrap: {member.name} is healthy")
        is_(member.said("replica has been created using basebackup"), 0,
            f"bootstrap: no base backup for {member.name}")
    with open(os.path.join(leader.data, "postgresql.auto.conf"), encoding="utf-8") as file:
        unlike(file.read(), r"(?m)^(recovery_|restore_command|include)",
               "bootstrap: no setting of the recovery is left")
    return leader


def reinit(members, leader, coordinator):
    """From a snapshot of the cluster itself, whose files are Patroni's; and what came after it."""
    if not is_status(coordinator.cli("snapshot", "--tag", "t2"), 0, "cluster snapshot"):
        coordinator.diagnose()
    leader.server.psql("insert into orders select i, 'more' from generate_series(1, 100) i")
    replica = next(m for m in members if m is not leader)
    before = replica.newest_job()["id"]
    done = leader.ctl("reinit", replica.scope, replica.name, "--force")
    is_(done.returncode, 0, "reinit: patronictl")
    poll(lambda: replica.newest_job()["id"] != before, 180, "the method to be called", 0.2)
    streams_on([replica], leader, 2)
    rows([replica], 5100)
    job = replica.newest_job()
    is_((job["state"], job["plan"]["tag"]), ("complete", "t2"), "reinit: from the newest snapshot")
    return replica


def run_tool(member, *args):
    """As Patroni calls it."""
    return member.run_as_server("patroni-restore", f"--scope={member.scope}",
                                f"--datadir={member.data}", *args)


def door(leader, replica):
    """What the server's own user may ask for, and what not."""
    done = run_tool(replica, "--role=replica", "--connstring=", "--keep_data=True")
    is_status(done, "refused", "a running server is not restored")
    like(done.err, "PostgreSQL runs in", "it says so")
    is_status(replica.run_as_server("status"), "auth", "the control socket is not for postgres")
    is_status(run_tool(replica, "--snapsot=x"), "usage", "a key that is mistyped is no key")
    done = replica.run_as_server("patroni-restore", "--datadir=/elsewhere")
    is_status(done, "refused", "another data directory")
    is_status(run_tool(replica, "--snapshot=nothing"), "missing", "no such snapshot")
    for what, method, path, body in (
            ("list jobs", "GET", "/jobs", None), ("take a snapshot", "POST", "/snapshots",
                                                  {"tag": "x"}),
            ("restore", "POST", "/restores", {"snapshot": "t2", "execute": True}),
            ("overwrite", "POST", "/restores", {
                "snapshot": "t2", "execute": True, "overwrite": {"pgdata": "x"},
                "handover": {"role": "primary", "data_directory": replica.data}})):
        status, answer = replica.at_door(method, path, body)
        is_((status, answer.get("code")), (403, "auth"), f"Patroni's socket: no {what}")
    other = leader.post("/restores", snapshot="t2", execute=True,
                        handover={"role": "replica", "data_directory": leader.data,
                                  "system_id": "1"})[1]
    is_(leader.agent.wait_job(other["id"])["error"]["code"], "refused", "of another cluster")


def refusals(leader, coordinator):
    """A native restore while Patroni is in charge."""
    done = leader.cli("restore", "--yes", "t2")
    is_status(done, "refused", "restore while Patroni runs")
    like(done.err, r"Patroni is in charge of .*\n.*patronictl remove", "what to do instead")
    done = coordinator.cli("restore", "--yes", "t2")
    is_status(done, "refused", "cluster restore while Patroni runs")
    like(done.err, "Patroni is in charge of", "for the same reason")
    ok(leader.server.running(), "the leader runs")
    is_(leader.health(), "ok", "the leader is given back")


def next_method(replica, leader):
    """No agent: Patroni takes its next method, on the volume."""
    replica.agent.stop()
    before = replica.said("replica has been created using basebackup")
    leader.ctl("reinit", replica.scope, replica.name, "--force")
    poll(lambda: replica.said("replica has been created using basebackup") > before, 180,
         "a base backup", 0.2)
    ok(True, "no agent: the base backup is taken")
    ok(in_volume(replica), "no agent: onto the volume")
    streams_on([replica], leader, 2)
    rows([replica], 5100)


def below_mount(member):
    """What lies in the directory under the mount point; None while something is mounted."""
    mount = member.volumes[0].mount
    return None if os.path.ismount(mount) else os.listdir(mount)


def killed_job(replica, leader):
    """The job dies with the volume half written. No other method may fill the filesystem below;
    the next call begins anew."""
    replica.agent.start(TIDEMARK_TEST_STOP="pulling")
    before = replica.newest_job()["id"]
    ends = ("Error when fetching backup", "replica has been created using basebackup")
    said = [replica.said(end) for end in ends]
    leader.ctl("reinit", replica.scope, replica.name, "--force")
    poll(lambda: replica.newest_job()["id"] != before and
         [replica.said(end) for end in ends] != said, 180, "the base backup to be tried", 0.2)
    is_(replica.said(ends[1]), said[1], "killed: no base backup")
    is_(replica.newest_job()["step"], "pulling", "killed: the newest job was in the middle")
    is_(below_mount(replica), [], "killed: nothing is below the mount point")
    is_(replica.health(), "partial", "killed: health says so")
    replica.restart_agent()
    streams_on([replica], leader, 2)
    rows([replica], 5100)
    is_(replica.newest_job()["state"], "complete", "killed: restored by the next call")
    is_(replica.health(), "ok", "killed: healthy again")


def pids_of(word, member):
    """Processes of the node with this word in their arguments."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                args = file.read().split("\0")
        except OSError:
            continue
        if word in args and any(member.conf in a or member.state_dir in a for a in args):
            found.append(int(path.split("/")[2]))
    return found


def stopped_patroni(replica, leader):
    """Patroni ends while its method works: the method ends, and the job."""
    replica.restart_agent(TIDEMARK_TEST_PAUSE="pulling")
    leader.ctl("reinit", replica.scope, replica.name, "--force")
    poll(lambda: replica.newest_job().get("step") == "pulling", 180, "the job to pull", 0.2)
    is_status(run_tool(replica, "--role=replica"), "busy", "a second call has to wait")
    tools = pids_of("patroni-restore", replica)
    is_(len(tools), 1, "the method is at work")
    replica.stop_patroni()
    poll(lambda: all(process_gone(pid) for pid in tools), 60, "the method to end")
    ok(True, "stopped: the method ends with Patroni")
    job = replica.newest_job()["id"]
    for pid in pids_of("job", replica):
        os.kill(pid, signal.SIGCONT)
    journal = replica.agent.wait_job(job)
    is_((journal["state"], (journal["error"] or {}).get("code")), ("failed", "partial"),
        "stopped: the job ends in a named state")
    is_(below_mount(replica), [], "stopped: the volume is not mounted")
    replica.restart_agent()
    replica.start_patroni()
    streams_on([replica], leader, 2)
    rows([replica], 5100)
    is_(replica.health(), "ok", "stopped: the next Patroni has it restored")


def checked(member):
    """`tidemark check` knows of Patroni; the rest of it is about any node."""
    like(member.cli("check").out, "(?m)^ok +patroni +it may ask for snapshots; it runs: .* refused",
         "check: Patroni's door, and that it is in charge")
    member.agent.stop()
    like(member.cli("check").out, r"(?m)^FAILED patroni +.patroni. socket '.*': .*\n +hint: the "
         "agent makes it", "check: nobody is at the door")
    member.agent.start()


def lost_in_the_middle(box):
    """The host that bootstraps goes down once its server is promoted: README says what to do."""
    repository = make_repository(box)
    make_tag(box, repository)
    etcd = Etcd(box)
    first, second = (PatroniMember(box, n, repository, SIZE, etcd) for n in (1, 2))
    script = box.write("lost.sh", f"kill -9 $(head -1 {first.data}/postmaster.pid) $PPID\n")
    with open(first.yml, encoding="utf-8") as file:
        conf = json.load(file)
    conf["bootstrap"]["post_bootstrap"] = f"/bin/sh {script}"
    box.write("db1.yml", json.dumps(conf))
    first.agent.start()
    first.start_patroni()
    poll(lambda: first.process.poll() is not None, 180, "its host to go down")
    first.process = None
    second.agent.start()
    second.start_patroni()
    poll(lambda: second.said("waiting for leader to bootstrap") > 2, 60, "the other to wait")
    del conf["bootstrap"]["post_bootstrap"]
    box.write("db1.yml", json.dumps(conf))
    first.start_patroni()
    poll(lambda: first.server.psql("select pg_is_in_recovery()", check=False).stdout.strip() == "f",
         180, "the first to lead")
    is_(first.server.psql(COUNT), "5000", "down in the middle: the data is whole")
    poll(lambda: second.said("password authentication failed"), 180, "the other to be kept out")
    first.server.psql("create role replicator login replication password 'change-me'")
    wait_running([first, second])
    streams_on([first, second], first, first.server.timeline())
    rows([second], 5000)
    for member in (first, second):
        member.kill_patroni()


def by_hand(members, leader):
    """The steps of the refusal: stop Patroni, restore, remove the cluster from the DCS, start."""
    for member in members:
        member.stop_patroni()
    leader.server.log = leader.state_dir + "/postgresql.log"
    is_status(leader.cli("restore", "--yes", "t2"), 0, "by hand: restore where no Patroni runs")
    # The leader's name is asked for while its key has not run out.
    done = leader.ctl("remove", leader.scope,
                      answers=f"{leader.scope}\nYes I am aware\n{leader.name}\n")
    is_(done.returncode, 0, "by hand: patronictl remove") or tm.diag(done.stdout)
    server, timeline = leader.server.pid(), leader.server.timeline()
    leader.start_patroni()
    poll(lambda: leader.states().get(leader.name) == ("leader", "running"), 180, "a leader again")
    is_((leader.server.pid(), leader.server.timeline()), (server, timeline),
        "by hand: Patroni takes the running server over")
    for member in members:
        if member is not leader:
            shutil.rmtree(member.data)
            member.start_patroni()
    wait_running(members)
    streams_on(members, leader, timeline)
    rows(members, 5000)


def main():
    tm.need_root()
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal")
    need_patroni()
    box = tm.Sandbox("patroni")
    repository = make_repository(box)
    make_tag(box, repository)
    etcd = Etcd(box)
    members = [PatroniMember(box, number, repository, SIZE, etcd) for number in (1, 2, 3)]
    leader = bootstrap(members)
    checked(leader)
    cluster = type("Members", (), {"members": members, "repository": repository})
    coordinator = Coordinator(box, cluster).start()
    replica = reinit(members, leader, coordinator)
    door(leader, replica)
    refusals(leader, coordinator)
    next_method(replica, leader)
    killed_job(replica, leader)
    stopped_patroni(replica, leader)
    by_hand(members, leader)
    if tm.CAMPAIGN:
        lost_in_the_middle(tm.Sandbox("patroni-lost"))


if __name__ == "__main__":
    run(main)
