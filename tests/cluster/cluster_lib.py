"""A primary and its standbys on one host, each with volume, port and agent of its own; and what a
coordinator does with the agents, call by call."""
import glob
import json
import os
import shutil

import tm
from node import Agent, Node, conf_text, make_repository, run_program
from sandbox import kill_pid, poll, processes_below
from server import free_port, lsn

JOB = "c0ffee" + "0" * 26
SECRET = "hush-4711"  # in primary_conninfo: nothing but the settings may show it


def diskseq_name(device):
    """The name by which a plan knows a loop device: path:size:diskseq."""
    name = os.path.basename(device)

    def read(what):
        with open(f"/sys/block/{name}/{what}", encoding="ascii") as file:
            return int(file.read())
    return f"{device}:{read('size') * 512}:{read('diskseq')}"


class Member(Node):
    """One node; its volume is called pgdata in the configuration of each."""

    def __init__(self, box, name, repository, size, options, fs="ext4", provider="freeze", **more):
        volume = box.volume("pgdata-" + name, size, fs)
        settings = {"hot_standby": "on", "max_wal_senders": 10, "max_replication_slots": 10,
                    "wal_keep_size": 0, "wal_receiver_status_interval": "1s",
                    "wal_retrieve_retry_interval": "200ms", **more}
        super().__init__(box, [volume], provider=provider, name=name, repository=repository,
                         settings=settings,
                         options={"tidemark": {"freeze_deadline": "60s"},
                                  "wal": {"get_timeout": "2s"}, **(options or {})})
        self.sections["volume pgdata"] = self.sections.pop("volume " + volume.name)
        self.write_conf()
        self.job = self.address = None
        self.own_settings = {}  # of a standby: what it does not share with its primary

    def open_door(self, authority, host):
        """Its agent answers on https://host as well, with a certificate for its name."""
        port = free_port()
        self.address = f"https://{host}:{port}"
        certificate = authority.issue(self.name, "agent", [f"DNS:{self.name}"])
        self.sections["tls"] = {"listen": f"{host}:{port}", **certificate.options}
        self.write_conf()

    def conninfo_to(self, primary):
        server = primary.server
        return f"host={server.socket} port={server.port} user=postgres application_name={self.name}"

    def copy_from(self, primary):
        """A standby by pg_basebackup, with a slot of its own name."""
        primary.server.psql(f"select pg_create_physical_replication_slot('{self.name}') where not"
                            f" exists (select from pg_replication_slots where slot_name ="
                            f" '{self.name}')")
        primary.server.program("pg_basebackup", "-D", self.data, "-X", "stream", "-S", self.name,
                               "-c", "fast", "-d", primary.server.conninfo.split(" dbname")[0])
        self.server.configure(port=self.server.port, archive_command=self.archive_command,
                              primary_conninfo=self.conninfo_to(primary),
                              primary_slot_name=self.name, synchronous_standby_names="",
                              **self.own_settings)
        path = os.path.join(self.data, "standby.signal")
        with open(path, "w", encoding="ascii"):
            pass
        shutil.chown(path, "postgres", "postgres")
        self.server.start()

    # --- the coordinator's calls ---
    def post(self, path, **body):
        return self.agent.api("POST", path, body)

    def status(self):
        return self.agent.api("GET", f"/jobs/{self.job}")[1]

    def health(self):
        return self.agent.api("GET", "/health")[1]["status"]

    def reserve(self, snapshot, role="primary", primary=None, job=JOB, epoch=1, **more):
        """(status, answer) of POST /restores; remembers the job."""
        body = {"snapshot": snapshot, "cluster": {"job": job, "epoch": epoch, "role": role},
                "overwrite": {"pgdata": diskseq_name(self.volumes[0].device)}, "verify": "quick",
                **more}
        if role == "standby":
            body.update(primary_conninfo=self.conninfo_to(primary) + f" password={SECRET}",
                        primary_slot=self.name)
        answer = self.post("/restores", **body)
        if answer[0] == 202:
            self.job = answer[1]["id"]
        return answer

    def execute(self, epoch=1, **body):
        return self.post(f"/restores/{self.job}/execute", epoch=epoch, **body)

    def wait(self, state, timeout_s=120):
        """Until the job does not run; its journal. A wrong state shows the job's log."""
        journal = self.agent.wait_job(self.job, timeout_s)
        if not tm.is_(journal["state"], state, f"{self.name}: {state}"):
            tm.diag(json.dumps(journal.get("error")))
            tm.diag(tm.tail(f"{self.state_dir}/jobs/{self.job}/log", 40))
            tm.diag(tm.tail(self.server.log, 30))
        return journal

    def restart_agent(self, **env):
        self.agent.kill()
        self.agent.start(**env)

    def streams(self, timeline):
        done = self.server.psql("select status, received_tli from pg_stat_wal_receiver",
                                check=False)
        return done.stdout.strip() == f"streaming|{timeline}"


class Cluster:
    """members[0] is the primary; the first standby is a synchronous one. more: the provider, and
    settings of the servers."""

    def __init__(self, box, names=("db1", "db2", "db3"), size=352 << 20, options=None,
                 repository=None, fs="ext4", **more):
        self.box = box
        self.repository = repository or make_repository(box)
        self.members = [self.make_member(name, size, options, fs=fs, **more) for name in names]
        self.primary, self.standbys = self.members[0], self.members[1:]
        self.key = None

    def make_member(self, name, size, options, **more):
        return Member(self.box, name, self.repository, size, options, **more)

    def encrypt(self):
        """Before start(): the repository will be encrypted."""
        self.primary.encrypt()
        for standby in self.standbys:
            standby.encrypt(like=self.primary)
        self.key = self.primary.key
        return self

    def start(self):
        self.primary.start()
        for standby in self.standbys:
            standby.copy_from(self.primary)
            standby.agent.start()
        self.wait_attached(1)
        self.primary.server.psql(
            f"alter system set synchronous_standby_names = '{self.standbys[0].name}'")
        self.primary.server.reload()
        return self

    def wait_attached(self, timeline, timeout_s=60):
        for standby in self.standbys:
            poll(lambda s=standby: s.streams(timeline), timeout_s,
                 f"{standby.name} to stream on timeline {timeline}")

    def wait_replayed(self, timeout_s=60):
        """Until every standby has replayed what the primary has written."""
        at = lsn(self.primary.server.psql("select pg_current_wal_lsn()"))
        for standby in self.standbys:
            poll(lambda s=standby: lsn(s.server.psql(
                "select coalesce(pg_last_wal_replay_lsn(), '0/0')")) >= at,
                timeout_s, f"{standby.name} to replay")

    def reserve(self, snapshot, members=None, **more):
        for member in members or self.members:
            role = "primary" if member is self.primary else "standby"
            tm.is_(member.reserve(snapshot, role, self.primary, **more)[0], 202,
                   f"{member.name}: prepare")
            member.wait("prepared")

    def until(self, where, members=None, state="held", **body):
        """All of them at once; their journals."""
        members = members or self.members
        for member in members:
            status, answer = member.execute(until=where, **body)
            if not tm.is_(status, 202, f"{member.name}: execute until {where}"):
                tm.diag(str(answer))
        return [member.wait(state) for member in members]

    def recover_primary(self, **body):
        """With its slots; the fork."""
        slots = [standby.name for standby in self.standbys]
        return self.until("recovered", [self.primary], slots=slots, **body)[0].get("fork")

    def recover(self, **body):
        fork = self.recover_primary(**body)
        self.until("recovered", self.standbys, fork=fork, **body)
        return fork

    def complete(self, epoch=1):
        for member in self.members:
            tm.is_(member.execute(epoch=epoch, verify=True)[0], 202, f"{member.name}: verify")
        for member in self.members:
            member.wait("complete")
            tm.is_(member.health(), "ok", f"{member.name}: health is ok")

    def stop(self):
        for member in self.members:
            member.agent.stop()
            member.server.stop("immediate", check=False)


class Coordinator:
    """tidemark-coordinator for the members of cluster, on its own socket; cli() is `tidemark
    cluster …`. options: more of its configuration."""

    def __init__(self, box, cluster, name="coordinator", options=None):
        self.cluster, self.programs = cluster, tm.programs(box)
        self.state_dir = box.mkdir(f"{name}-state", 0o755)
        self.socket = box.join(f"{name}.sock")
        self.conf = box.join(f"{name}.conf")
        self.sections = {
            "tidemark": {"cluster": "main", "node": name, "state_dir": self.state_dir,
                         "socket": self.socket},
            "repository": {"url": cluster.repository, "key_file": getattr(cluster, "key", None)},
            "coordinator": {"members": " ".join(
                f"{m.name}={m.address or 'unix:' + m.socket}" for m in cluster.members)},
        }
        for section, values in (options or {}).items():
            self.sections.setdefault(section, {}).update(values)
        self.write_conf(box)
        self.agent = Agent(box, self.conf, self.socket, self.programs, name,
                           program="tidemark-coordinator")

    def write_conf(self, box, **coordinator):
        """coordinator: what changes in [coordinator]; the daemon has to be started again for it."""
        self.sections["coordinator"].update(coordinator)
        box.write(os.path.basename(self.conf), conf_text(self.sections))

    def start(self, **env):
        self.agent.start(**env)
        return self

    def restart(self, **env):
        """kill -9 of the daemon; a job of it goes on."""
        self.agent.kill()
        return self.start(**env)

    def kill_job(self):
        """kill -9 of what works for the newest job."""
        for pid in processes_below(f"{self.state_dir}/jobs"):
            kill_pid(pid)

    def cli(self, *args, **options):
        options.setdefault("conf", self.conf)
        return run_program(os.path.join(self.programs, "tidemark"), "cluster", *args, **options)

    def status(self):
        return json.loads(self.cli("status", "--json").out)

    def journal(self):
        """Of the newest job."""
        return self.agent.api("GET", "/jobs")[1]["jobs"][-1]

    def diagnose(self):
        """For a failed test: what everybody says."""
        for agent in [self.agent, *(m.agent for m in self.cluster.members)]:
            tm.diag(f"{agent.log}:\n{tm.tail(agent.log, 20)}")
        for top in [self.state_dir, *(m.state_dir for m in self.cluster.members)]:
            for log in sorted(glob.glob(f"{top}/jobs/*/log"), key=os.path.getmtime)[-1:]:
                tm.diag(f"{log}:\n{tm.tail(log, 25)}")


def break_repository(url):
    """The store goes away, as an NFS server does."""
    path = url[len("file://"):]
    os.rename(path, path + ".away")
    return path


def mend_repository(path):
    os.rename(path + ".away", path)


__all__ = ["Cluster", "Coordinator", "Member", "JOB", "SECRET", "break_repository",
           "mend_repository", "diskseq_name"]
