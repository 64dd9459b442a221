#!/usr/bin/env python3
"""Exit statuses of tidemark-wal, each of them, without a server; and its start-up cost: what the
path of a prefetch hit links."""
import os
import pwd
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from wal_lib import SEGMENT, SYSTEM_ID, Archive, Directory, name_of, segment  # noqa: E402

def test_push(archive, data):
    def push(name, content=None, **options):
        if content is not None:
            data.write("pg_wal/" + name, content)
        return archive.run("push", "pg_wal/" + name, cwd=data.path, **options)
    is_status(push(name_of(1), segment(1)), 0, "push of a segment")
    is_status(push(name_of(1), segment(1)), 0, "the same again")
    done = push(name_of(1), segment(1, fill=1))
    is_status(done, "refused", "other content")
    like(done.err, r"error: .*the archive holds another.*\nhint: ", "with a hint")
    is_status(push(name_of(2), segment(3)), "refused", "a segment under another's name")
    is_status(push(name_of(2), segment(2, system_id=1)), "refused", "another system's segment")
    is_status(push(name_of(2), segment(2, size=SEGMENT - 1)), "refused", "a short segment")
    is_status(push(name_of(2), b""), "refused", "an empty file")
    is_status(push(name_of(3)), "device", "no such file")
    is_status(push("garbage", b"x"), "usage", "a file that is no WAL")
    is_status(push(name_of(2), segment(2), repository="file:///nonexistent"), "store",
              "no repository there")
    is_status(push(name_of(2), segment(2), **{"repository-id": "0" * 32}), "store",
              "another repository")
    is_status(push(name_of(2), segment(2), repository="ftp://x"), "config", "an unknown scheme")
    is_status(push(name_of(2), segment(2), nonsense="1"), "usage", "an unknown option")
    is_status(archive.run("push", cwd=data.path), "usage", "no file")
    is_status(push("00000002.history", b"1\t0/100000\tno reason\n"), 0, "a history file")
    is_status(push(name_of(2) + ".partial", segment(2)), 0, "a partial segment")
    backup = b"START WAL LOCATION: 0/100028 (file 000000010000000000000001)\n"
    is_status(push(name_of(1) + ".00000028.backup", backup), 0, "a backup history file")
    is_(archive.objects(SYSTEM_ID), [name_of(1), name_of(1) + ".00000028.backup",
                                     name_of(2) + ".partial", "00000002.history"],
        "and nothing else is in the archive")


def test_get(archive, data):
    fast = {"get-timeout": "1s"}

    def get(name, path="pg_wal/RECOVERYXLOG", **options):
        target = os.path.join(data.path, path)
        if os.path.isfile(target):
            os.unlink(target)
        return archive.run("get", name, path, cwd=data.path, **{**fast, **options})
    for name, content in ((name_of(1), segment(1)), (name_of(2) + ".partial", segment(2)),
                          ("00000002.history", b"1\t0/100000\tno reason\n")):
        is_status(get(name), 0, f"get {name}")
        ok(data.read("pg_wal/RECOVERYXLOG") == content, "its content")
    is_status(get(name_of(9)), 1, "a segment that is not there")
    is_status(get("00000003.history"), 1, "a history that is not there")
    is_status(get(name_of(9), cluster="other"), 1, "a cluster without WAL")
    ok(not os.path.exists(os.path.join(data.path, "pg_wal/RECOVERYXLOG")), "nothing is delivered")
    begin = time.monotonic()
    done = get(name_of(9), repository="file:///nonexistent")
    is_status(done, 126, "no repository")
    ok(0.9 < time.monotonic() - begin < 5, "after retrying until get-timeout")
    like(done.err, "trying again for up to 1 s.*\nerror: tidemark-wal get ", "says both")
    is_status(get(name_of(9), repository="file:///nonexistent", **{"on-error": "retry"}), 1,
              "for a standby: as if absent")
    is_status(get(name_of(9), **{"repository-id": "0" * 32}), 126, "another repository")
    is_status(get(name_of(1), "no/such/dir"), 126, "a target that cannot be written")
    for what, options in {
            "unknown option": {"nonsense": 1}, "bad on-error": {"on-error": "x"},
            "bad limit": {"timeline-limit": "1-2"}, "bad system id": {"system-id": "-1"},
            "bad timeout": {"get-timeout": "soon"}, "bad repository id": {"repository-id": "xyz"},
            "unknown scheme": {"repository": "ftp://x"},
            "missing configuration": {"config": "/nonexistent"}}.items():
        is_status(get(name_of(1), **options), 126, what)
    is_status(archive.run("get", name_of(1), cwd=data.path), 126, "a missing argument")
    is_status(get("nonsense"), 126, "a name that is none")
    is_status(get("nonsense", **{"on-error": "retry"}), 126, "also for a standby")
    is_status(archive.run("get", name_of(1), os.path.join(data.path, "pg_wal/x"), cwd="/", **fast),
              126, "no pg_control and no --system-id")
    is_status(archive.run("get", name_of(1), os.path.join(data.path, "pg_wal/x"), cwd="/",
                          **{"system-id": SYSTEM_ID}), 0, "with --system-id")


def test_full(box, archive):
    """The target's filesystem is full: no outage that passes, so it ends at once, and says what."""
    point = box.mkdir("small")
    box.mount("tmpfs", point, "-t", "tmpfs", "-o", "size=600k,mode=0777")
    data = Directory(box, "small/data")

    def get(**options):
        begin = time.monotonic()
        done = archive.run("get", name_of(1), "pg_wal/RECOVERYXLOG", cwd=data.path,
                           **{"get-timeout": "40s", "prefetch": 0, **options})
        ok(time.monotonic() - begin < 20, "long before get-timeout")
        return done
    done = get()
    is_status(done, 126, "a full local filesystem: not absent")
    like(done.err, r"error: .*RECOVERYXLOG.*No space left on device\nhint: .*is full, not the repo",
         "it says which one is full")
    unlike(done.err, "trying again", "and does not call it an outage")
    is_status(get(**{"on-error": "retry"}), 1, "for a standby: as if absent, it asks again")
    is_(os.listdir(os.path.join(data.path, "pg_wal")), [], "no half file is left")
    box.umount(point)


def test_environment(archive, data):
    """--repository stands for the file, not for the environment, as for every other program."""
    unused = "s3://bucket/p --endpoint=http://127.0.0.1:9"
    keys = archive.box.write("env-keys", "access_key = a\nsecret_key = s\n", 0o600)
    os.chown(keys, pwd.getpwnam("postgres").pw_uid, -1)

    def push(**environment):
        begin = time.monotonic()
        words = [archive.wal, "push", "pg_wal/" + name_of(1), *archive.options(
            repository=unused, **{"credentials-file": keys, "repository-id": None}).split()]
        how = {**tm.as_user("postgres"), "cwd": data.path, "env": {**os.environ, **environment}}
        done = subprocess.run(words, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=False, timeout=60, **how)
        return Result(done.returncode, done.stdout, done.stderr), time.monotonic() - begin
    done, seconds = push(TIDEMARK_REPOSITORY_RETRY_TIMEOUT="2s", TIDEMARK_VOLUME_DATA_MOUNT="/x")
    is_status(done, "store", "nobody answers")
    ok(seconds < 30, f"TIDEMARK_REPOSITORY_RETRY_TIMEOUT counts ({seconds:.0f} s)")
    done, _ = push(TIDEMARK_REPOSITORY_RETRY_TIMEOUT="soon")
    is_status(done, "config", "a wrong value of it is refused")
    like(done.err, "environment variable TIDEMARK_REPOSITORY_RETRY_TIMEOUT", "by its name")


def test_withheld(archive, data):
    def get(name, **options):
        return archive.run("get", name, "pg_wal/RECOVERYXLOG", cwd=data.path, **options)

    def limit(lsn):
        return {"timeline-limit": f"1:{lsn}", "segment-size": SEGMENT}
    is_status(get(name_of(1), **limit("0/200000")), 0, "a segment that ends at the fork")
    is_status(get(name_of(1), **limit("0/1FFFFF")), 1, "one that reaches beyond it")
    is_status(get(name_of(1), **limit("0/0")), 1, "one above it")
    is_status(get(name_of(1), **{"timeline-limit": "2:0/0", "segment-size": SEGMENT}), 0,
              "another timeline's limit")
    is_status(get("00000002.history", **{"timeline-limit": "2:0/0"}), 0,
              "history files have no limit")
    is_status(get("00000002.history", **{"last-timeline": 1}), 1,
              "--last-timeline: a later one's history file is absent")
    is_status(get("00000002.history", **{"last-timeline": 2}), 0, "its own is there")
    is_status(get(name_of(1), **{"last-timeline": 1}), 0, "segments too")
    is_status(get("00000002" + name_of(1)[8:], **{"last-timeline": 1}), 1, "a later one's are not")
    is_status(get(name_of(1), **{"last-timeline": 0}), 126, "there is no timeline 0")
    latest = {"timeline-limit": "latest", "segment-size": SEGMENT}
    is_status(get(name_of(1), **latest), 1, "latest: timeline 2 left timeline 1 before it")
    is_status(get("00000002.history", **latest), 0, "latest: history files have no limit")
    data.write("pg_wal/00000003.history", b"1\t0/200000\tno reason\n")
    is_status(archive.run("push", "pg_wal/00000003.history", cwd=data.path), 0, "a newer timeline")
    is_status(get(name_of(1), **latest), 0, "latest: the newest timeline's fork counts")
    path = os.path.join(data.path, "pg_wal/RECOVERYXLOG")
    done = subprocess.run([archive.wal, "get", name_of(1), path, "--history-only",
                           *archive.options().split()], check=False, cwd=data.path,
                          stderr=subprocess.DEVNULL)
    is_(done.returncode, 1, "--history-only: no segment")
    done = subprocess.run([archive.wal, "get", "00000002.history", path, "--history-only",
                           *archive.options().split()], check=False, cwd=data.path)
    is_(done.returncode, 0, "--history-only: a history file")


def object_path(archive, name):
    return os.path.join(archive.path, "wal/main", str(SYSTEM_ID), "00000001", name)


def test_damaged(archive, data):
    path = object_path(archive, name_of(1))
    with open(path, "rb") as file:
        good = file.read()

    def get(**options):
        return archive.run("get", name_of(1), "pg_wal/RECOVERYXLOG", cwd=data.path,
                           **{"get-timeout": "30s", **options})

    def put(content):
        os.chmod(path, 0o644)
        with open(path, "wb") as file:
            file.write(content)
    is_status(get(), 0, "the intact object")
    for what, content in (("a flipped bit", good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]),
                          ("a cut", good[:-100]), ("nothing", b"")):
        put(content)
        begin = time.monotonic()
        done = get()
        is_status(done, 126, f"{what} in the object")
        like(done.err, r"error: tidemark-wal get .*(WAL object|object '|object: )", "is named")
        ok(time.monotonic() - begin < 10, "and not waited for")
        is_status(get(**{"on-error": "retry"}), 126, "nor hidden from a standby")
    with open(object_path(archive, name_of(2) + ".partial"), "rb") as file:
        put(file.read())
    is_status(get(), 126, "another object in its place")
    put(good)
    is_status(get(), 0, "intact again")


def test_lost(archive, data):
    """Everything that must not look like an absent file."""
    def get(**options):
        return archive.run("get", name_of(9), "pg_wal/RECOVERYXLOG", cwd=data.path,
                           **{"get-timeout": "1s", **options})
    aside = archive.path + ".aside"
    os.rename(archive.path, aside)
    is_status(get(), 126, "the directory renamed away")
    os.mkdir(archive.path)
    is_status(get(), 126, "an empty directory in its place")
    is_status(get(**{"repository-id": None}), 126, "also without --repository-id")
    os.rmdir(archive.path)
    os.rename(aside, archive.path)
    os.chmod(archive.path, 0)
    is_status(get(), 126, "no permission on the directory")
    os.chmod(archive.path, 0o2770)
    wal = os.path.join(archive.path, "wal")
    os.chmod(wal, 0)
    is_status(get(), 126, "no permission below it")
    os.chmod(wal, 0o2770)
    is_status(get(), 1, "all as before: absent")


def test_signals(archive, data):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        with subprocess.Popen([archive.wal, "get", name_of(9), "pg_wal/RECOVERYXLOG",
                               *archive.options(repository="file:///nonexistent").split()],
                              cwd=data.path, stderr=subprocess.PIPE, text=True) as process:
            first = process.stderr.readline()
            process.send_signal(number)
            rest = process.stderr.read()
            is_(process.wait(10), -number, f"signal {number} ends get by that signal")
        like(first, "trying again", "while it retries")
        like(rest, "stopped by a signal, nothing was delivered", "and it says so")
    ok(not any(".tidemark" in name for name in os.listdir(os.path.join(data.path, "pg_wal"))),
       "no temporary file is left")
    process = subprocess.Popen([archive.wal, "get", name_of(1), "pg_wal/RECOVERYXLOG",
                                *archive.options(repository="file:///nonexistent").split(),
                                "--get-timeout=1s"], cwd=data.path, stderr=subprocess.PIPE)
    process.stderr.close()
    is_(process.wait(20), 126, "nobody reads stderr: 126 and no SIGPIPE")


def test_config(archive, data, box):
    conf = box.write("wal.conf", "[tidemark]\ncluster = main\n[repository]\n"
                     f"url = {archive.url}\n[postgresql]\ndata_directory = {data.path}\n")

    def run(*args):
        return run_program(archive.wal, *args, user="postgres")
    path = os.path.join(data.path, "pg_wal/FROMCONF")
    is_status(run("get", name_of(1), path, f"--config={conf}"), 0, "everything from a file")
    is_status(run("get", name_of(9), path, f"--config={conf}"), 1, "absent")
    is_status(run_program(archive.wal, "get", name_of(1), path, user="postgres", conf=conf), 0,
              "the file from the environment")
    is_status(run("push", os.path.join(data.path, "pg_wal", name_of(1)), f"--config={conf}"),
              "refused", "push (other content lies there)")
    bad = box.write("bad.conf", "[repository]\nurll = x\n")
    is_status(run("get", name_of(1), path, f"--config={bad}"), 126, "a malformed file: get")
    is_status(run("push", path, f"--config={bad}"), "config", "a malformed file: push")
    is_status(run("--help"), 0, "--help")
    is_status(run("--version"), 0, "--version")
    is_status(run(), "usage", "nothing")
    is_status(run("fetch"), "usage", "an unknown verb")


def test_lean():
    def libraries(name):
        done = subprocess.run(["ldd", os.path.join(tm.BUILD, name)], check=True, text=True,
                              stdout=subprocess.PIPE)
        return {line.split()[0].split(".so")[0] for line in done.stdout.splitlines()}
    front, worker = libraries("tidemark-wal"), libraries("tidemark-wal-worker")
    for name in ("libcurl", "libpq", "libjansson", "libcrypto", "liburing"):
        ok(name not in front, f"tidemark-wal does not link {name}")
    for name in ("libpq", "libjansson"):
        ok(name not in worker, f"tidemark-wal-worker does not link {name}")


def main():
    need_root()
    box = Sandbox("walexit")
    archive = Archive(box)
    data = Directory(box, "data")
    test_push(archive, data)
    test_get(archive, data)
    test_full(box, archive)
    test_environment(archive, data)
    test_withheld(archive, data)
    test_damaged(archive, data)
    test_lost(archive, data)
    test_signals(archive, data)
    test_config(archive, data, box)
    test_lean()


run(main)
