"""What the tests of tidemark-wal share: a repository, a server that archives into it, copies of the
server that recover from it with `tidemark-wal get`."""
import os
import re
import shutil
import struct
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import node  # noqa: E402
import tm  # noqa: E402
from node import make_repository, run_program  # noqa: E402
from tm import Server, poll  # noqa: E402


SYSTEM_ID = 7345678901234567890
SEGMENT = 1 << 20


def segment(number, timeline=1, fill=0, system_id=SYSTEM_ID, size=SEGMENT):
    head = struct.pack("<HHIQIIQII", 0xD110, 2, timeline, number * SEGMENT, 0, 0, system_id,
                       SEGMENT, 8192)
    return (head + bytes([fill & 255]) * size)[:size]


def name_of(number, timeline=1):
    return f"{timeline:08X}{number // 4096:08X}{number % 4096:08X}"


class Directory:
    """Looks like a data directory: global/pg_control begins with the system id."""

    def __init__(self, box, name):
        self.path = box.mkdir(name, 0o700, "postgres")
        for part in ("global", "pg_wal"):
            box.mkdir(f"{name}/{part}", 0o700, "postgres")
        self.write("global/pg_control", struct.pack("<Q", SYSTEM_ID) + bytes(8184))

    def write(self, name, data):
        path = os.path.join(self.path, name)
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, 0o644)
        return path

    def read(self, name):
        with open(os.path.join(self.path, name), "rb") as file:
            return file.read()


class Archive:
    """A repository, and tidemark-wal as the server's user with the options that restore would
    write: nothing comes from a configuration file."""

    def __init__(self, box, name="repo", cluster="main"):
        self.box, self.cluster = box, cluster
        tm.need_programs("tidemark-wal", "tidemark-wal-worker", "tests/pg/tool_wal")
        self.url = make_repository(box, name)
        self.path = self.url.removeprefix("file://")
        self.programs = tm.programs(box)
        self.tool = os.path.join(tm.BUILD, "tests/pg/tool_wal")
        done = run_program(self.tool, "init", self.url)
        if done.status != 0:
            raise RuntimeError(done.err)
        self.id = done.out.strip()
        # postgres owns what the server archives; root made the first objects.
        subprocess.run(["chown", "-R", "postgres:postgres", self.path], check=True)
        self.wal = os.path.join(self.programs, "tidemark-wal")

    def options(self, **more):
        """Options as text for archive_command and restore_command; None leaves one out."""
        merged = {"repository": self.url, "cluster": self.cluster, "repository-id": self.id, **more}
        return " ".join(f"--{key}={value}" for key, value in merged.items() if value is not None)

    def archive_command(self, **more):
        return f"{self.wal} push %p {self.options(**more)}"

    def restore_command(self, **more):
        return f"{self.wal} get %f %p {self.options(**more)}"

    def run(self, *args, cwd=None, user="postgres", timeout_s=120, **options):
        """tidemark-wal ARGS OPTIONS in the data directory cwd."""
        words = [*map(str, args), *self.options(**options).split()]
        as_user = tm.as_user(user)
        if cwd:
            as_user["cwd"] = cwd
        done = subprocess.run([self.wal, *words], text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
                              timeout=timeout_s, **as_user)
        return tm.Result(done.returncode, done.stdout, done.stderr)

    def tool_wal(self, verb, system_id, *args):
        return run_program(self.tool, verb, self.url, self.cluster, system_id, *args)

    def objects(self, system_id):
        """Names of the files in the archive, sorted."""
        found = []
        for directory, _dirs, names in os.walk(
                os.path.join(self.path, "wal", self.cluster, str(system_id))):
            found += [name for name in names if directory]
        return sorted(found)


    def read(self, name, data):
        """What the repository holds under this name, by tidemark-wal as the server of data; None
        when it gives nothing."""
        path = os.path.join(data.path, "pg_wal/READ")
        done = self.run("get", name, path, cwd=data.path, **{"get-timeout": "1s", "prefetch": 0})
        if done.status != 0:
            return None
        with open(path, "rb") as file:
            content = file.read()
        os.unlink(path)
        return content


class SealedArchive(Archive):
    """An encrypted one; `tidemark init` makes it."""

    def __init__(self, box, name="repo"):
        self.box, self.cluster, self.id = box, "main", None
        self.url, self.programs = make_repository(box, name), tm.programs(box)
        self.path = self.url.removeprefix("file://")
        self.wal = os.path.join(self.programs, "tidemark-wal")
        key, self.key = box.join(f"{name}.key"), box.join(f"{name}-wal.key")
        for args in (("key", "generate", key), ("key", "wal", self.key, f"--key-file={key}"),
                     ("init", "--cipher=aes-256-gcm", f"--key-file={key}",
                      f"--repository={self.url}")):
            done = node.cli(*args)
            if done.status != 0:
                raise RuntimeError(done.err)
        subprocess.run(["chown", "-R", "postgres:postgres", self.path], check=True)

    def options(self, **more):
        return super().options(**{"repository-id": None, "key-file": self.key, **more})


class S3Archive(Archive):
    """An archive in a bucket (a Place of s3_node); `tidemark init` makes it."""

    def __init__(self, box, place):
        self.box, self.place, self.cluster, self.id = box, place, "main", None
        self.url, self.programs = place.url, tm.programs(box)
        self.wal = os.path.join(self.programs, "tidemark-wal")
        conf = box.write(f"{place.bucket}.conf", node.conf_text({"repository": place.section()}))
        done = node.cli("init", conf=conf)
        if done.status != 0:
            raise RuntimeError(done.err)
        self.id = re.search(r"\b[0-9a-f]{32}\b", done.out).group()

    def options(self, **more):
        section = self.place.section()
        return super().options(**{
            "repository-id": None, "endpoint": section["endpoint"],
            "credentials-file": section["credentials_file"], "ca-file": section.get("ca_file"),
            **more})

    def objects(self, system_id):
        return sorted(k.rpartition("/")[2] for k in
                      self.place.keys_below(f"wal/{self.cluster}/{system_id}/"))


class Pushers:
    """The processes that push ahead from below a directory, found by what they have open."""

    def __init__(self, path):
        self.path = os.path.realpath(path)

    def _is_mine(self, pid):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read().split(b"\0")[1:2] != [b"push-ahead"]:
                    return False
            fds = f"/proc/{pid}/fd"
            links = [os.readlink(os.path.join(fds, fd)) for fd in os.listdir(fds)]
        except OSError:
            return False
        return any(x.startswith(self.path + "/") for x in links) and not tm.process_gone(int(pid))

    def pids(self):
        return [int(x) for x in filter(str.isdigit, os.listdir("/proc")) if self._is_mine(x)]

    def kill(self):
        for pid in self.pids():
            tm.kill_pid(pid)


class Archiver:
    """pg_wal with files that are ready, and archive_command as the archiver calls it."""

    def __init__(self, box, archive, name, **options):
        self.archive, self.data, self.options = archive, Directory(box, name), options
        self.status = box.mkdir(f"{name}/pg_wal/archive_status", 0o700, "postgres")
        self.wrong = []

    def path(self, name):
        return os.path.join(self.data.path, "pg_wal", name)

    def ready(self, *names, fill=0):
        """Segments by number, other files by name."""
        for name in names:
            if isinstance(name, int):
                self.data.write("pg_wal/" + name_of(name), segment(name, fill=fill))
                name = name_of(name)
            with open(os.path.join(self.status, name + ".ready"), "w", encoding="ascii"):
                pass

    def waiting(self):
        return sorted(x[:-6] for x in os.listdir(self.status) if x.endswith(".ready"))

    def start(self, name, **environ):
        return subprocess.Popen(
            [self.archive.wal, "push", "pg_wal/" + name,
             *self.archive.options(**self.options).split()],
            env={**os.environ, **environ}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            **{**tm.as_user("postgres"), "cwd": self.data.path})

    def end(self, name, process, timeout_s=60):
        """The Result; what was acknowledged is compared with the repository."""
        out, err = process.communicate(timeout=timeout_s)
        if process.returncode == 0:
            self.check_stored(name)
            ready = os.path.join(self.status, name + ".ready")
            os.rename(ready, ready[:-6] + ".done")
        elif process.returncode > 125 or process.returncode < 0:
            self.wrong.append(f"{name}: status {process.returncode}")
        return tm.Result(process.returncode, out, err)

    def call(self, name, **environ):
        return self.end(name, self.start(name, **environ))

    def check_stored(self, name):
        with open(self.path(name), "rb") as file:
            mine = file.read()
        if self.archive.read(name, self.data) != mine:
            self.wrong.append(f"{name}: acknowledged, but not what the repository holds")

    def all(self, **environ):
        """Archives all that is ready, in order; the statuses that are not 0."""
        found = [self.call(name, **environ).status for name in self.waiting()]
        return [x for x in found if x]

    def stored(self):
        return self.archive.objects(SYSTEM_ID)

    def pushers(self):
        return Pushers(self.data.path).pids()


class Primary(Server):
    """A server that archives into `archive`."""

    def __init__(self, box, archive, name="data", initdb=(), **settings):
        super().__init__(box, box.join(name))
        self.archive = archive
        self.init(*initdb, archive_mode="on", archive_command=archive.archive_command(),
                  fsync="off", **settings)
        self.start()
        self.system_id = self.psql("select system_identifier from pg_control_system()")

    def archived(self):
        return self.psql("select last_archived_wal from pg_stat_archiver")

    def switch_and_wait(self, timeout_s=60):
        """Ends the segment and waits until it is archived; its name."""
        name = self.switch_wal()
        poll(lambda: self.archived().split(".")[0] >= name, timeout_s, f"archive of {name}")
        return name

    def fill(self, megabytes):
        """WAL of about this size: a row and a message of 1 MiB again and again."""
        self.psql("create table if not exists filler (x text)")
        self.psql("do $$ begin for i in 1..%d loop insert into filler values (md5(random()::text));"
                  " perform pg_logical_emit_message(false, 'filler',"
                  " repeat(md5(random()::text), 32768)); commit; end loop; end $$" % megabytes)

    def base_backup(self, name):
        """A copy that recovers when it is given recovery settings."""
        path = self.box.mkdir(name, 0o700, "postgres" if os.geteuid() == 0 else None)
        self.program("pg_basebackup", "-h", self.socket, "-p", str(self.port), "-U",
                     self.superuser, "-D", path, "-X", "none", "-c", "fast", "--no-sync",
                     "--no-manifest")
        return path


class Copy(Server):
    """A copy of the base backup that recovers from the archive."""

    def __init__(self, box, base, name, restore_command, signal_file="recovery.signal",
                 archive_mode="off", **settings):
        data = box.join(name)
        subprocess.run(["cp", "-a", base, data], check=True)
        super().__init__(box, data)
        self.configure(port=self.port, unix_socket_directories=self.socket, fsync="off",
                       restore_command=restore_command, archive_mode=archive_mode, **settings)
        path = os.path.join(data, signal_file)
        with open(path, "w", encoding="ascii"):
            pass
        shutil.chown(path, "postgres", "postgres")

    def log_text(self):
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return file.read()
