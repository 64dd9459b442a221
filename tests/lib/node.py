"""The parts of Tidemark a test starts: configuration, agent, command line, and a whole node."""
import collections
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess

import tm
from sandbox import kill_pid, poll, process_gone
from server import Server

Result = collections.namedtuple("Result", "status out err")


def conf_text(sections):
    """{"tidemark": {"cluster": "main"}, "volume pgdata": {…}} as a configuration file; values that
    are None are left out."""
    lines = []
    for name, options in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {value}" for key, value in options.items() if value is not None]
        lines.append("")
    return "\n".join(lines)


def run_program(path, *args, conf=None, timeout_s=300, stdin=None, user=None, **env):
    """Runs a program; Result(status, out, err). A signal gives a negative status. conf goes in
    through TIDEMARK_CONFIG."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TIDEMARK_")}
    if conf:
        environ["TIDEMARK_CONFIG"] = conf
    environ.update(env)
    done = subprocess.run([path, *map(str, args)], env=environ, input=stdin, text=True,
                          stdin=None if stdin is not None else subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout_s,
                          errors="replace", check=False, **(tm.as_user(user) if user else {}))
    return Result(done.returncode, done.stdout, done.stderr)


def cli(*args, conf=None, **options):
    """`tidemark ARGS`."""
    return run_program(os.path.join(tm.BUILD, "tidemark"), *args, conf=conf, **options)


class Agent:
    """tidemark-agent (or tidemark-coordinator) with the configuration file conf, whose socket is
    `socket`."""

    def __init__(self, box, conf, socket_path, directory=None, name="agent",
                 program="tidemark-agent"):
        self.box, self.conf, self.socket = box, conf, socket_path
        self.program = os.path.join(directory or tm.BUILD, program)
        self.log = os.path.join(box.mkdir("log", 0o777), name + ".log")
        self.process = None
        tm.on_fail(lambda: tm.diag(f"{name} log:\n{tm.tail(self.log)}"))

    def start(self, timeout_s=20, **env):
        environ = {k: v for k, v in os.environ.items() if not k.startswith("TIDEMARK_")}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([self.program, f"--config={self.conf}"], cwd="/",
                                            env={**environ, **env}, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=True)

        def answers():
            if self.process.poll() is not None:
                raise RuntimeError(f"tidemark-agent ended with {self.process.returncode}:\n"
                                   + tm.tail(self.log))
            try:
                return self.api("GET", "/version")[0] == 200
            except OSError:
                return False
        poll(answers, timeout_s, "tidemark-agent to answer")
        return self

    def request(self, method, path, body=None, headers=None, timeout_s=300):
        """(status, headers, text); body is sent as JSON."""
        connection = http.client.HTTPConnection("localhost", timeout=timeout_s)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout_s)
        connection.sock.connect(self.socket)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json",
                                                    **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def api(self, method, path, body=None, **options):
        """(status, decoded JSON or text)."""
        status, _, text = self.request(method, path, body, **options)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def wait_job(self, job, timeout_s=300):
        """Until the job does not run any more; its journal."""
        def ended():
            status, body = self.api("GET", f"/jobs/{job}")
            return body if status == 200 and not body.get("running") else None
        return poll(ended, timeout_s, f"job {job}", 0.1)

    def pid(self):
        return self.process.pid if self.process else None

    def running(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        """kill -9; jobs go on."""
        if self.process:
            kill_pid(self.process.pid)
            self.process.wait()
            self.process = None

    def stop(self):
        if self.process:
            kill_pid(self.process.pid, signal.SIGTERM)
            if self.process.poll() is None:
                kill_pid(self.process.pid)
            self.process.wait()
            self.process = None


class Node:
    """A server on the volumes with repository, configuration and agent, all in the sandbox.

    volumes: sandbox volumes; volumes[0] holds the data directory, the one given as wal_volume (may
    be None) pg_wal, every other one a tablespace ("ts_<name>"). provider: None is what an
    administrator gets who names none (precopy; a busy machine must not make a test fail, so its
    freezes may be long); freeze is quickest on small volumes. settings: postgresql.conf. options:
    overrides of the configuration, {"section": {key: value}}.
    """

    def __init__(self, box, volumes, wal_volume=None, provider="freeze", name="node",
                 superuser="postgres", settings=None, options=None, repository=None,
                 archive=True, volume_options=None):
        self.box, self.volumes, self.wal_volume, self.name = box, volumes, wal_volume, name
        self.programs = tm.programs(box)
        self.repository = repository or make_repository(box)
        self.data = os.path.join(volumes[0].mount, "data")
        self.server = Server(box, self.data, superuser)
        self.state_dir = box.mkdir(f"{name}-state", 0o755)
        self.socket = box.join(f"{name}.sock")
        sections = {
            "tidemark": {"cluster": "main", "node": name, "state_dir": self.state_dir,
                         "socket": self.socket},
            "repository": {"url": self.repository, "group": "postgres"},
            "postgresql": {"data_directory": self.data, "connection": self.server.conninfo,
                           "bin_directory": tm.PG_BIN, "os_user": "postgres",
                           "manager": "pg_ctl", "log_file": self.server.log},
        }
        if provider in (None, "precopy"):
            sections["tidemark"]["freeze_max"] = "10s"
        for volume in volumes:
            sections[f"volume {volume.name}"] = {"mount": volume.mount, "device": volume.device,
                                                 "provider": provider, **(volume_options or {})}
        for section, values in (options or {}).items():
            sections.setdefault(section, {}).update(values)
        self.sections = sections
        self.init_options, self.key = (), None
        self.conf = box.join(f"{name}.conf")
        self.write_conf()
        self.archive_command = f"{self.programs}/tidemark-wal push %p --config={self.conf}"
        self.settings = {**({"archive_mode": "on", "archive_command": self.archive_command}
                            if archive else {}), **(settings or {})}
        self.agent = Agent(box, self.conf, self.socket, self.programs, f"{name}-agent")

    def encrypt(self, like=None):
        """Before start(): the repository will be encrypted; with the keys of another node, when
        that has them."""
        if like:
            self.key, self.wal_key = like.key, like.wal_key
        else:
            self.key, self.wal_key = self.box.join("repository.key"), self.box.join("wal.key")
            for args in (("generate", self.key), ("wal", self.wal_key, f"--key-file={self.key}")):
                done = self.cli("key", *args)
                if done.status != 0:
                    raise RuntimeError(f"tidemark key: exit {done.status}: {done.err}")
        self.sections["repository"]["key_file"] = self.key
        self.sections.setdefault("wal", {})["key_file"] = self.wal_key
        self.init_options = ("--cipher=aes-256-gcm",)
        self.write_conf()

    def write_conf(self):
        self.box.write(os.path.basename(self.conf), conf_text(self.sections))

    def start(self, agent=True):
        """init of the repository, initdb, server, tablespaces, agent."""
        done = self.cli("init", *self.init_options)
        if done.status != 0:
            raise RuntimeError(f"tidemark init: exit {done.status}: {done.err}")
        wal_dir = os.path.join(self.wal_volume.mount, "wal") if self.wal_volume else None
        self.server.init(wal_dir=wal_dir, **self.settings)
        self.server.start()
        for volume in self.volumes[1:]:
            if volume is not self.wal_volume:
                path = os.path.join(volume.mount, "ts")
                os.mkdir(path, 0o700)
                shutil.chown(path, "postgres", "postgres")
                self.server.psql(f"create tablespace ts_{volume.name} location '{path}'")
        if agent:
            self.agent.start()
        return self

    def cli(self, *args, **options):
        options.setdefault("conf", self.conf)
        return run_program(os.path.join(self.programs, "tidemark"), *args, **options)

    def wal(self, *args, **options):
        """tidemark-wal as the server's user."""
        options.setdefault("conf", self.conf)
        options.setdefault("user", "postgres")
        return run_program(os.path.join(self.programs, "tidemark-wal"), *args, **options)

    def wait_archived(self, segment, timeout_s=60):
        """Until the server says that this segment is archived."""
        poll(lambda: self.server.psql("select last_archived_wal from pg_stat_archiver") >= segment,
             timeout_s, f"archive of {segment}")

    def destroy(self, volume):
        """What a failed disk does: the volume is unmounted and its first 8 MiB and the middle are
        overwritten. The server has to be stopped before."""
        if tm.mounts_below(volume.mount):
            self.box.umount(volume.mount)
        size = os.stat(volume.image).st_size
        with open(volume.device, "r+b", buffering=0) as device:
            for offset in (0, size // 2 & ~0xFFF):
                device.seek(offset)
                device.write(b"\xdb" * (8 << 20))
            os.fsync(device.fileno())


def make_repository(box, name="repo"):
    """A file:// repository that root and postgres can both write: setgid and group postgres, as
    the installation does it with group tidemark-repo. Returns the URL."""
    path = box.mkdir(name, 0o2770)
    if os.geteuid() == 0:
        shutil.chown(path, "root", "postgres")
        os.chmod(path, 0o2770)
    return "file://" + path


__all__ = ["Agent", "Node", "Result", "cli", "conf_text", "run_program", "make_repository",
           "process_gone"]
