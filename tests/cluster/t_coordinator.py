#!/usr/bin/env python3
# check: build=asan campaign=release timeout=400
"""kill -9 of the coordinator's job at every level of a cluster restore. Started again it gives back
what is untouched and goes on with the rest, or waits for `tidemark cluster resume`. Between: abort
before and after the old data went, two coordinators at once, a node whose agent and job die, a
coordinator that missed the promotion, agents over TLS, another primary. At no time do two servers
accept writes."""
import http.server
import os
import signal
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE, os.path.join(HERE, "..", "cli")]
from tm import *  # noqa: E402, F403
from certificates import Authority  # noqa: E402
from cluster_checks import (Watch, as_before, at_once, newest, restored,  # noqa: E402
                            stopped_below, tagged)
from cluster_lib import Cluster, Coordinator  # noqa: E402
from s3 import free_ports  # noqa: E402
from t_prompt import QUESTION, Terminal  # noqa: E402
import tm  # noqa: E402

UNTOUCHED = ("asked", "reserved", "fenced")  # asked: dies before the agent's answer is noted
LEVELS = ("asked", "reserved", "fenced", "configured", "recovered", "complete")


def killed_at(cluster, coordinator, rows, level, wait=False):
    """wait: nobody goes on before `cluster resume`."""
    what = level + (", resume = wait" if wait else "")
    server, members = cluster.primary.server, len(cluster.members)
    timeline = server.timeline()
    server.psql("insert into orders select 1000000, 'after'")
    coordinator.restart(TIDEMARK_TEST_STOP=f"cluster-{level}")
    isnt(coordinator.cli("restore", "t1", "--yes").status, 0, f"{what}: restore is interrupted")
    if level not in UNTOUCHED:  # those the coordinator may give back before it is asked
        is_(coordinator.journal()["state"], "interrupted", f"{what}: killed")
    coordinator.restart()
    if level in UNTOUCHED:
        newest(coordinator, "cancelled", what)
        as_before(cluster, timeline, what)
        return
    if wait:
        journal = newest(coordinator, "interrupted", what)
        isnt([m.health() for m in cluster.members], ["ok"] * members, f"{what}: not ok")
        is_status(coordinator.cli("restore", "t1", "--yes"), "partial", f"{what}: finish it first")
        is_status(coordinator.cli("resume"), 0, f"{what}: resume")
        is_(coordinator.journal()["id"], journal["id"], f"{what}: the same job")
    newest(coordinator, "complete", what)
    restored(cluster, coordinator, timeline + 1, rows, what)


def missed_promotion(cluster, coordinator, rows):
    """The coordinator is dead while the primary is promoted: it has to ask where the fork is."""
    primary, timeline = cluster.primary, cluster.primary.server.timeline()
    primary.restart_agent(TIDEMARK_TEST_PAUSE="recovering-started")
    thread = threading.Thread(target=coordinator.cli, args=("restore", "t1", "--yes"))
    thread.start()
    pid = poll(lambda: stopped_below(primary.state_dir), 120, "the primary's job to stop itself")
    coordinator.kill_job()
    thread.join()
    os.kill(pid, signal.SIGCONT)
    primary.restart_agent()
    poll(lambda: primary.agent.api("GET", "/jobs")[1]["jobs"][-1]["state"] == "held", 120,
         "the primary to be held at recovered")
    coordinator.restart()
    newest(coordinator, "complete", "missed promotion")
    restored(cluster, coordinator, timeline + 1, rows, "missed promotion")


def node_dies(cluster, coordinator, rows):
    """A standby's agent and job die: every node keeps what it has, resume goes on."""
    member, timeline = cluster.standbys[0], cluster.primary.server.timeline()
    member.restart_agent(TIDEMARK_TEST_STOP="pulling")
    done = coordinator.cli("restore", "t1", "--yes")
    is_status(done, "partial", "a node's job dies: partial")
    like(done.err, f"(?s)node {member.name}.*tidemark cluster resume", "and says what to do")
    member.restart_agent()
    is_(member.health(), "partial", "that node is partial")
    is_(Watch(cluster).count(), 0, "no server accepts writes")
    is_status(coordinator.cli("resume"), 0, "resume")
    restored(cluster, coordinator, timeline + 1, rows, "a node died")


def node_away(cluster, coordinator, rows):
    """A standby's agent is away for a while in the middle, and its job goes on."""
    member, timeline = cluster.standbys[0], cluster.primary.server.timeline()
    member.restart_agent(TIDEMARK_TEST_PAUSE="pulling")
    results = []
    thread = threading.Thread(
        target=lambda: results.append(coordinator.cli("restore", "t1", "--yes")))
    thread.start()
    pid = poll(lambda: stopped_below(member.state_dir), 120, "its job to stop itself")
    member.agent.kill()
    poll(lambda: coordinator.status()["status"] == "unreachable", 20, "the node to be unreachable")
    os.kill(pid, signal.SIGCONT)
    member.agent.start()
    thread.join()
    is_status(results[0], 0, "a node was away: the restore waits for it")
    restored(cluster, coordinator, timeline + 1, rows, "a node was away")


def aborts(cluster, coordinator, rows):
    """Of a prepared job, and before and after the old data goes."""
    timeline = cluster.primary.server.timeline()
    job = coordinator.agent.api("POST", "/cluster/restores", {"snapshot": "t1"})[1]["id"]
    newest(coordinator, "prepared", "abort of a plan")
    terminal = Terminal(coordinator, "cluster", "abort").read(QUESTION)
    like(terminal.text, f"Cluster restore {job} to t1 is given up: no old data was touched",
         "abort on a terminal asks")
    is_(terminal.write("n\n").end(), tm.EXIT["cancelled"], "no: exit status cancelled")
    newest(coordinator, "prepared", "and nothing is given up")
    is_status(coordinator.cli("abort", job), 0, "abort of a plan")
    newest(coordinator, "cancelled", "abort of a plan")
    as_before(cluster, timeline, "abort of a plan")
    for point, member in (("fenced-stopped", cluster.primary), ("pulling", cluster.standbys[0])):
        what = f"abort at {point}"
        member.restart_agent(TIDEMARK_TEST_PAUSE=point)
        thread = threading.Thread(target=coordinator.cli, args=("restore", "t1", "--yes"))
        thread.start()
        pid = poll(lambda m=member: stopped_below(m.state_dir), 120, f"{what}: the job's stop")
        timer = threading.Timer(1, os.kill, (pid, signal.SIGCONT))
        timer.start()
        is_status(coordinator.cli("abort"), 0, what)
        thread.join()
        timer.join()
        member.restart_agent()
        newest(coordinator, "cancelled", what)
        if point == "fenced-stopped":
            as_before(cluster, timeline, what)
    is_([m.health() for m in cluster.members], ["partial"] * len(cluster.members),
        "given up after the old data went: all are partial")
    is_(Watch(cluster).count(), 0, "and no server accepts writes")
    is_status(coordinator.cli("restore", "t1", "--yes"), 0, "another restore makes them usable")
    restored(cluster, coordinator, timeline + 1, rows, "after an abort")


def abort_without_a_node(cluster, coordinator):
    """What could not be given back can be given back later."""
    timeline, away = cluster.primary.server.timeline(), cluster.standbys[-1]
    coordinator.agent.api("POST", "/cluster/restores", {"snapshot": "t1"})
    newest(coordinator, "prepared", "a node is away")
    away.agent.stop()
    done = coordinator.cli("abort")
    is_status(done, "device", "abort while a node is away")
    like(done.err, f"node {away.name}", "and the error names it")
    away.agent.start()
    is_(away.agent.api("GET", "/jobs")[1]["jobs"][-1]["state"], "prepared", "it is reserved")
    is_status(coordinator.cli("abort"), 0, "abort again")
    is_(away.agent.api("GET", "/jobs")[1]["jobs"][-1]["state"], "cancelled", "now it is given back")
    newest(coordinator, "cancelled", "given back later")
    as_before(cluster, timeline, "given back later")


def two_at_once(box, cluster, coordinator, rows):
    other = Coordinator(box, cluster, "coordinator2").start()
    timeline = cluster.primary.server.timeline()
    results = at_once((coordinator, other), "restore", "t1", "--yes")
    is_(sorted(done.status for done in results.values()), [0, tm.EXIT["busy"]],
        "of two coordinators one wins, the other is busy")
    winner = min(results, key=lambda who: results[who].status)
    job = winner.journal()["id"]
    for member in cluster.members[1:]:
        newest_there = member.agent.api("GET", "/jobs")[1]["jobs"][-1]
        is_(newest_there["cluster"]["job"], job, f"{member.name}: only the winner was here")
    restored(cluster, winner, timeline + 1, rows, "two at once")
    other.agent.stop()


class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        self.send_error(404)

    def log_message(self, *_):
        pass


def strangers(box, cluster, addresses, tls):
    """Addresses in [coordinator] members that lead to somebody else: who answers is named, and the
    line to look at."""
    (first, one), (second, two) = (address.split("=") for address in addresses[:2])
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    server = cluster.primary.server
    server.psql("alter system set listen_addresses = '127.0.0.1'")
    server.stop()
    server.start()
    sockets = {m.name: m.socket for m in cluster.members}
    for what, address, found in (
            ("another agent's address", one, f"it names DNS:{first}, IP Address:127.0.0.1"),
            ("another agent's socket", f"unix:{sockets[first]}",
             f"the agent of node {first} answers at unix:"),
            ("a PostgreSQL", f"https://127.0.0.1:{server.port}",
             "a PostgreSQL server answers at https://127.0.0.1"),
            ("its socket", f"unix:{server.socket}/.s.PGSQL.{server.port}",
             "a PostgreSQL server answers on '/"),
            ("a web server", f"https://127.0.0.1:{web.server_port}",
             "a web server without TLS answers at https://127.0.0.1"),
            ("nobody", f"https://127.0.0.1:{free_ports(1)[0]}", "no answer from the agent at")):
        confused = Coordinator(box, cluster, "confused", {"tls": tls, "coordinator": {
            "members": f"{first}={one} {second}={address}"}})
        done = confused.cli("status")
        isnt(done.status, 0, f"{what}: cluster status")
        like(done.out, rf"(?m)^{second}: node {second}: .*{found}", f"{what}: is named")
        like(done.out, rf"(?m)^hint: .*see '{second}={address}' in \[coordinator\] members of "
             rf"{confused.conf}$", f"{what}: and the line to look at")
    web.shutdown()
    web.server_close()


def over_tls(box, cluster):
    """A coordinator that reaches the agents with certificates and waits for `cluster resume`; one
    with the certificate of an agent is refused."""
    authority, addresses = Authority(box.mkdir("ca")), []
    for member, port in zip(cluster.members, free_ports(len(cluster.members))):
        own = authority.issue(member.name, "agent", [f"DNS:{member.name}", "IP:127.0.0.1"])
        member.sections["tls"] = {"listen": f"127.0.0.1:{port}", **own.options}
        member.write_conf()
        member.restart_agent()
        addresses.append(f"{member.name}=https://127.0.0.1:{port}")

    def make(name, role):
        return Coordinator(box, cluster, name, {
            "tidemark": {"resume": "wait"}, "tls": authority.issue(name, role).options,
            "coordinator": {"members": " ".join(addresses)}}).start()
    strangers(box, cluster, addresses, authority.issue("confused", "coordinator").options)
    impostor = make("impostor", "agent")
    is_status(impostor.cli("restore", "t1", "--yes"), "auth", "an agent is no coordinator")
    impostor.agent.stop()
    as_before(cluster, cluster.primary.server.timeline(), "an impostor")
    return make("patient", "coordinator")


def moved_primary(box, cluster, rows):
    """The restore makes db2 the primary, and its coordinator dies before that is promoted."""
    old, new = cluster.members[:2]
    timeline = old.server.timeline()
    conninfo = new.conninfo_to(new).replace(f"application_name={new.name}", "application_name=%n")
    mover = Coordinator(box, cluster, "mover", {"coordinator": {"primary_conninfo": conninfo}})
    mover.start(TIDEMARK_TEST_STOP="cluster-configured")
    isnt(mover.cli("restore", "t1", "--yes", "--primary=" + new.name).status, 0,
         "another primary: restore is interrupted")
    is_(Watch(cluster).count(), 0, "another primary: no server accepts writes")
    mover.restart()
    newest(mover, "complete", "another primary")
    cluster.primary = new
    cluster.standbys = [member for member in cluster.members if member is not new]
    restored(cluster, mover, timeline + 1, rows, "another primary")
    is_(old.server.psql("select pg_is_in_recovery()"), "t", "the old one is a standby")


def main():
    box = tm.need_root() or tm.Sandbox("coordinator")
    tm.need_programs("tidemark", "tidemark-agent", "tidemark-coordinator", "tidemark-wal")
    names = ("db1", "db2", "db3") if tm.CAMPAIGN else ("db1", "db2")
    cluster = Cluster(box, names).start()
    coordinator = Coordinator(box, cluster, options={
        "coordinator": {"agent_timeout": "15s"}}).start()
    rows = tagged(cluster, coordinator)
    with Watch(cluster):
        for level in LEVELS:
            killed_at(cluster, coordinator, rows, level)
        aborts(cluster, coordinator, rows)
        missed_promotion(cluster, coordinator, rows)
        node_dies(cluster, coordinator, rows)
        node_away(cluster, coordinator, rows)
        abort_without_a_node(cluster, coordinator)
        two_at_once(box, cluster, coordinator, rows)
        patient = over_tls(box, cluster)
        for level in LEVELS if tm.CAMPAIGN else ("recovered",):
            killed_at(cluster, patient, rows, level, wait=True)
        moved_primary(box, cluster, rows)
    cluster.stop()


run(main)
