"""A private PostgreSQL server on a Unix socket, load for it, and a ledger of its commits."""
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import tm
from sandbox import kill_pid, poll, process_gone


def free_port():
    """A port nobody uses. The servers of tests listen on Unix sockets only; the number still has
    to differ, because it is part of the socket's name and of PostgreSQL's lock files."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def lsn(text):
    """'1/2A' as a number."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


class Server:
    """data: data directory (made by init()). superuser is the bootstrap role; logins are trusted
    on the Unix socket, which lies in the sandbox."""

    def __init__(self, box, data, superuser="postgres", port=None, user="postgres"):
        self.box, self.data, self.superuser, self.user = box, data, superuser, user
        self.port = port or free_port()
        self.socket = box.mkdir("sock", 0o777)
        self.log = os.path.join(box.mkdir("log", 0o777), f"postgres-{self.port}.log")
        tm.on_fail(lambda: tm.diag(f"server log:\n{tm.tail(self.log)}"))

    @property
    def conninfo(self):
        return f"host={self.socket} port={self.port} user={self.superuser} dbname=postgres"

    def program(self, name, *args, check=True, **options):
        """A program of PostgreSQL, as the server's user."""
        done = subprocess.run([os.path.join(tm.PG_BIN, name), *args], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False, **tm.as_user(self.user), **options)
        if check and done.returncode != 0:
            raise RuntimeError(f"{name}: exit {done.returncode}: {done.stdout[-2000:]}"
                               f"\n{tm.tail(self.log, 10)}")
        return done

    def init(self, *options, wal_dir=None, **settings):
        """initdb with checksums; settings go to postgresql.conf (None removes a default)."""
        os.makedirs(self.data, exist_ok=True)
        for path in filter(None, (self.data, wal_dir)):
            os.makedirs(path, exist_ok=True)
            if os.geteuid() == 0:
                shutil.chown(path, self.user, self.user)
            os.chmod(path, 0o700)
        if wal_dir:
            options += (f"--waldir={wal_dir}",)
        self.program("initdb", "-D", self.data, "-U", self.superuser, "-A", "trust", "-k",
                     "--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C", *options)
        defaults = {"listen_addresses": "", "port": self.port, "shared_buffers": "32MB",
                    "unix_socket_directories": self.socket, "max_wal_size": "256MB",
                    "logging_collector": "off", "log_line_prefix": "%m [%p] ",
                    "wal_level": "replica", "max_wal_senders": 4, "log_checkpoints": "on",
                    "autovacuum_naptime": "10s"}
        self.configure(**{**defaults, **settings})

    def configure(self, **settings):
        """Appends settings to postgresql.conf; they hold from the next start or reload."""
        with open(os.path.join(self.data, "postgresql.conf"), "a", encoding="utf-8") as file:
            for name, value in settings.items():
                if value is not None:
                    quoted = str(value).replace("'", "''")
                    file.write(f"{name} = '{quoted}'\n")

    def start(self, timeout_s=60, check=True):
        return self.program("pg_ctl", "-D", self.data, "-l", self.log, "-w", "-t", str(timeout_s),
                            "start", check=check)

    def stop(self, mode="fast", check=True):
        return self.program("pg_ctl", "-D", self.data, "-m", mode, "-w", "-t", "60", "stop",
                            check=check)

    def kill(self):
        """kill -9 of the postmaster. PostgreSQL takes a zombie for the owner of its socket, so this
        waits until init has reaped it."""
        pid = self.pid()
        kill_pid(pid)
        poll(lambda: not os.path.exists(f"/proc/{pid}"), 120, "init to reap the server")

    def reload(self):
        return self.program("pg_ctl", "-D", self.data, "reload")

    def pid(self):
        """The postmaster, None when it does not run."""
        try:
            with open(os.path.join(self.data, "postmaster.pid"), encoding="utf-8") as file:
                pid = int(file.readline())
        except (OSError, ValueError):
            return None
        return None if process_gone(pid) else pid

    def running(self):
        return self.pid() is not None

    def psql(self, sql, db="postgres", check=True, user=None):
        """Runs sql (several statements: one transaction each with \\n between them); returns
        stdout without the trailing newline, or the CompletedProcess when check is False."""
        done = subprocess.run([os.path.join(tm.PG_BIN, "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1",
                               "-h", self.socket, "-p", str(self.port), "-U",
                               user or self.superuser, "-d", db], input=sql, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if not check:
            return done
        if done.returncode != 0:
            raise RuntimeError(f"psql: {done.stderr.strip()} in: {sql[:300]}")
        return done.stdout.rstrip("\n")

    def wait_ready(self, timeout_s=60):
        """Until it answers and is out of recovery."""
        def ready():
            done = self.psql("select pg_is_in_recovery()", check=False)
            return done.returncode == 0 and done.stdout.strip() == "f"
        poll(ready, timeout_s, "a server that is out of recovery")

    def timeline(self):
        """The timeline that is being written (not the control file's, which lags)."""
        return int(self.psql("select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"), 16)

    def switch_wal(self):
        """Ends the segment; returns the name of the finished one."""
        return self.psql("select pg_walfile_name(pg_switch_wal())")

    def amcheck(self):
        """pg_amcheck of every database; (exit status, output)."""
        self.psql("create extension if not exists amcheck")
        done = self.program("pg_amcheck", "-h", self.socket, "-p", str(self.port), "-U",
                            self.superuser, "-a", "--install-missing", "--parent-check",
                            "--heapallindexed", "-j", "2", check=False)
        return done.returncode, done.stdout

    def pgbench_init(self, scale=1, db="postgres", *options):
        self.program("pgbench", "-h", self.socket, "-p", str(self.port), "-U", self.superuser,
                     "-i", "-q", "-s", str(scale), *options, db)

    def pgbench(self, *options, db="postgres"):
        return Pgbench(self, options, db)

    def pgbench_sums(self, db="postgres"):
        """The four sums that pgbench keeps equal in every transaction, and the history's length."""
        return [int(x) for x in self.psql(
            "select (select sum(abalance) from pgbench_accounts),"
            " (select sum(bbalance) from pgbench_branches),"
            " (select sum(tbalance) from pgbench_tellers),"
            " (select coalesce(sum(delta), 0) from pgbench_history),"
            " (select count(*) from pgbench_history)", db).split("|")]


class Pgbench:
    """pgbench in the background until stop() or the server goes away."""

    def __init__(self, server, options=(), db="postgres"):
        self.log = server.box.join("log", f"pgbench-{os.urandom(3).hex()}.log")
        self.server = server
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [os.path.join(tm.PG_BIN, "pgbench"), "-h", server.socket, "-p", str(server.port),
                 "-U", server.superuser, "-n", "-c", "2", "-T", "3600", *options, db],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, **tm.as_user(server.user))

    def wait_transactions(self, count=100, timeout_s=30):
        """Until count transactions more are in the history."""
        start = int(self.server.psql("select count(*) from pgbench_history"))
        poll(lambda: int(self.server.psql("select count(*) from pgbench_history"))
             >= start + count, timeout_s, f"{count} pgbench transactions")

    def stop(self):
        kill_pid(self.process.pid, signal.SIGTERM)
        self.process.wait()


class Ledger:
    """A writer that inserts 1, 2, 3, … in a transaction each and notes every commit that the
    server acknowledged. One line a commit in the ledger file: number, the server's insert LSN
    right after the acknowledgement, Unix time. Each line is in the file before the next number is
    sent, so the file survives a crash of this process.

    So for a tag at LSN t: every number whose line says an LSN <= t must be there after a restore,
    and every number whose predecessor's line says an LSN >= t must not. bounds(t) gives both."""

    def __init__(self, server, db="postgres", table="tidemark_ledger", pause_s=0.0, sync=False):
        self.server, self.db, self.table = server, db, table
        self.pause_s, self.sync = pause_s, sync
        self.file = server.box.join("log", f"ledger-{table}-{os.urandom(3).hex()}")
        self.acknowledged = self.sent = 0
        self.error = None
        self._stop = threading.Event()
        self._thread = None
        self._psql = None

    def create(self):
        self.server.psql(f"create table {self.table} (n bigint primary key,"
                         " at timestamptz not null default clock_timestamp())", self.db)
        return self

    def start(self):
        self.acknowledged = self.sent = int(self.server.psql(
            f"select coalesce(max(n), 0) from {self.table}", self.db))
        self._stop.clear()
        self._psql = subprocess.Popen(
            [os.path.join(tm.PG_BIN, "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-h",
             self.server.socket, "-p", str(self.server.port), "-U", self.server.superuser, "-d",
             self.db], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, bufsize=1)
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()
        return self

    def _write(self):
        with open(self.file, "ab", buffering=0) as file:
            while not self._stop.is_set():
                number = self.sent + 1
                try:
                    self._psql.stdin.write(
                        f"insert into {self.table} (n) values ({number});\n"
                        f"select {number}, pg_current_wal_insert_lsn();\n")
                    self.sent = number
                    self._psql.stdin.flush()
                    answer = self._psql.stdout.readline()
                except (OSError, ValueError) as error:
                    self.error = str(error)
                    return
                if not answer.startswith(f"{number}|"):
                    self.error = answer.strip() or "the connection ended"
                    return
                file.write(f"{number} {answer.strip().split('|')[1]} {time.time():.6f}\n".encode())
                if self.sync:
                    os.fsync(file.fileno())
                self.acknowledged = number
                self._stop.wait(self.pause_s)

    def wait(self, count=10, timeout_s=30):
        """Until count commits more are acknowledged; returns the last one."""
        goal = self.acknowledged + count

        def reached():
            if self.error:
                raise RuntimeError(f"ledger: {self.error}")
            return self.acknowledged >= goal
        poll(reached, timeout_s, f"{count} acknowledged commits")
        return self.acknowledged

    def stop(self):
        """Also fine when the server has gone. Returns the last acknowledged number."""
        self._stop.set()
        if self._thread:
            # A server that hangs (frozen volume) must not hang the test.
            self._thread.join(20)
            if self._thread.is_alive():
                kill_pid(self._psql.pid)
                self._thread.join(20)
            self._thread = None
        if self._psql:
            try:
                self._psql.stdin.close()
            except OSError:
                pass
            kill_pid(self._psql.pid)
            self._psql.wait()
            self._psql = None
        return self.acknowledged

    def alive(self):
        return self._thread is not None and self._thread.is_alive()

    def lines(self):
        with open(self.file, encoding="ascii") as file:
            return [(int(n), lsn(at), float(when)) for n, at, when in
                    (line.split() for line in file)]

    def bounds(self, tag_lsn):
        """(least, most): a restore to tag_lsn has to hold 1..m with least <= m <= most."""
        target = lsn(tag_lsn) if isinstance(tag_lsn, str) else tag_lsn
        least, most = 0, self.sent
        for number, at, _when in self.lines():
            if at <= target:
                least = number
            else:
                most = min(most, number)
        return least, most

    def present(self, server=None):
        """(count, max) of what the server holds now; equal when nothing is missing between."""
        count, highest = (server or self.server).psql(
            f"select count(*), coalesce(max(n), 0) from {self.table}", self.db).split("|")
        return int(count), int(highest)
