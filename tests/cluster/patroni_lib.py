"""Nodes in the care of Debian's Patroni, on 127.0.0.1, .2 and .3, with one etcd. Their
configuration is conf/patroni.yml.example, with the addresses and paths of the sandbox."""
import json
import os
import shutil
import signal
import subprocess
import urllib.request

import tm
from cluster_lib import Member
from s3 import Daemons
from sandbox import kill_pid, poll
from server import free_port

PYTHON = "/usr/bin/python3"  # Debian's, which has Patroni's modules
NEEDS = ("patroni", "patronictl", "etcd")


def need_patroni():
    absent = [name for name in NEEDS if not shutil.which(name)]
    if absent:
        tm.skip_all(f"Patroni is not installed (no {' '.join(absent)}; tools/install-deps --patroni"
                    " installs it)")


class Etcd:
    """One member, everything in memory or the sandbox."""

    def __init__(self, box):
        self.daemons = Daemons(box, "etcd")
        self.client, peer = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.daemons.spawn(
            "etcd", "etcd", "--name", "e1", "--data-dir", box.join("etcd/data"),
            "--listen-client-urls", f"http://{self.client}", "--advertise-client-urls",
            f"http://{self.client}", "--listen-peer-urls", f"http://{peer}",
            "--initial-advertise-peer-urls", f"http://{peer}", "--initial-cluster",
            f"e1=http://{peer}", "--unsafe-no-fsync", "--logger", "zap")
        self.daemons.wait_http("etcd", f"http://{self.client}/health")


def example():
    """conf/patroni.yml.example as Python reads it."""
    path = os.path.join(tm.SOURCE, "conf/patroni.yml.example")
    script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))"
    return json.loads(tm.output(PYTHON, "-c", script, path))


class PatroniMember(Member):
    """A member whose server is started by Patroni alone. number: 1, 2, 3: of its address."""

    def __init__(self, box, number, repository, size, etcd):
        self.patroni_socket = box.join(f"db{number}-patroni.sock")
        super().__init__(box, f"db{number}", repository, size, {
            "postgresql": {"manager": "patroni"}, "patroni": {"socket": self.patroni_socket}})
        self._give_mount_point_away()
        self.host, self.rest = f"127.0.0.{number}", free_port()
        self.yml = box.join(f"{self.name}.yml")
        self.patroni_log = os.path.join(box.mkdir("log", 0o777), f"patroni-{self.name}.log")
        self.process = None
        tm.on_fail(lambda: tm.diag(f"{self.name}: patroni:\n{tm.tail(self.patroni_log, 25)}"))
        box.before_clean.append(self.kill_patroni)
        self._configure(etcd)

    def _give_mount_point_away(self):
        """The directory below is the server's user's, as when the package made it."""
        volume = self.volumes[0]
        self.box.umount(volume.mount)
        shutil.chown(volume.mount, "postgres", "postgres")
        self.box.mount(volume.device, volume.mount)

    def command(self, text):
        """Of the example: its programs are ours, with the node's configuration."""
        program, _, rest = text.partition(" ")
        return f"{self.programs}/{program} {rest} --config={self.conf}"

    def _configure(self, etcd):
        conf = example()
        server, bootstrap = conf["postgresql"], conf["bootstrap"]
        conf.update(name=self.name, etcd3={"hosts": etcd.client}, restapi=dict.fromkeys(
            ("listen", "connect_address"), f"{self.host}:{self.rest}"))
        server.update(listen=f"{self.host}:{self.server.port}", data_dir=self.data,
                      connect_address=f"{self.host}:{self.server.port}", bin_dir=tm.PG_BIN,
                      pgpass=os.path.join(self.box.mkdir("pgpass", 0o777), self.name))
        server["parameters"].update(unix_socket_directories=self.server.socket)
        server["pg_hba"] = ["local all all trust", "host all all 127.0.0.0/8 scram-sha-256",
                            "host replication all 127.0.0.0/8 scram-sha-256"]
        server["tidemark"]["command"] = self.command(server["tidemark"]["command"])
        server["recovery_conf"]["restore_command"] = self.command(
            server["recovery_conf"]["restore_command"])
        tool = bootstrap["tidemark"]
        tool["command"] = self.command(tool["command"])
        bootstrap["dcs"].update(ttl=20, loop_wait=1, retry_timeout=3)
        bootstrap["dcs"]["postgresql"]["parameters"].update(
            archive_command=self.archive_command, shared_buffers="32MB")
        self.scope = conf["scope"]
        self.box.write(os.path.basename(self.yml), json.dumps(conf, indent=1))

    def start_patroni(self):
        with open(self.patroni_log, "ab") as log:
            self.process = subprocess.Popen(
                [PYTHON, "/usr/bin/patroni", self.yml], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, **tm.as_user("postgres"))
        return self

    def stop_patroni(self, sig=signal.SIGTERM):
        """Of this node's Patroni only; SIGTERM stops its server as well."""
        kill_pid(self.process.pid, sig, 60)
        self.process.wait()
        self.process = None

    def kill_patroni(self):
        if self.process:
            self.stop_patroni(signal.SIGKILL)

    def ctl(self, *args, answers=""):
        return subprocess.run([PYTHON, "/usr/bin/patronictl", "-c", self.yml, *args],
                              input=answers, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.STDOUT, check=False, timeout=300)

    def run_as_server(self, *args):
        """`tidemark ARGS` as the server's own user."""
        return self.cli(*args, user="postgres")

    def at_door(self, method, path, body):
        """The same as agent.api(), on Patroni's socket."""
        control, self.agent.socket = self.agent.socket, self.patroni_socket
        try:
            return self.agent.api(method, path, body)
        finally:
            self.agent.socket = control

    def states(self):
        """{member: (role, state)} by this node's REST interface; {} when it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.rest}/cluster",
                                        timeout=10) as answer:
                members = json.load(answer)["members"]
        except OSError:
            return {}
        return {m["name"]: (m["role"], m["state"]) for m in members}

    def said(self, text):
        """How often Patroni's log says it."""
        with open(self.patroni_log, encoding="utf-8", errors="replace") as file:
            return file.read().count(text)

    def newest_job(self):
        jobs = self.agent.api("GET", "/jobs")[1]["jobs"]
        return jobs[-1] if jobs else {}


def wait_running(members, timeout_s=300):
    """Until one leads and all run; the leader."""
    def all_run():
        for member in members:
            if member.process.poll() is not None:
                raise RuntimeError(f"{member.name}: Patroni ended")
        states = [members[0].states().get(m.name, ("", "")) for m in members]
        roles = [role for role, _ in states]
        if roles.count("leader") == 1 and all(state == "running" for _, state in states):
            return members[roles.index("leader")]
        return None
    return poll(all_run, timeout_s, "a leader, and all members running", 0.2)
