#!/usr/bin/env python3
"""The prefetcher and the path of a hit, without a server: cost of a get, what is never served,
kill -9 at random moments, and whether a replay of 200 segments waits for fetches."""
import os
import resource
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from wal_lib import SEGMENT, SYSTEM_ID, Archive, Directory, name_of, segment  # noqa: E402


class Player:
    """Plays the part of the startup process: asks for one segment after the other."""

    def __init__(self, box, archive, name, prefetch=16, **options):
        self.box, self.archive, self.data = box, archive, Directory(box, name)
        self.options = {"prefetch": prefetch, "get-timeout": "2s", **options}
        self.target = os.path.join(self.data.path, "pg_wal/RECOVERYXLOG")
        spool = options.get("repository-id", archive.id)
        self.spool = os.path.join(self.data.path, "pg_wal/tidemark-spool", f"{SYSTEM_ID}-{spool}")

    def get(self, number):
        return self.archive.run("get", name_of(number), "pg_wal/RECOVERYXLOG", cwd=self.data.path,
                                **self.options)

    def delivered(self):
        with open(self.target, "rb") as file:
            return file.read()

    def spooled(self):
        try:
            return sorted(x for x in os.listdir(self.spool) if len(x) == 24)
        except OSError:
            return []

    def prefetchers(self):
        """pids, found by their arguments: they are nobody's children."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                cwd = os.readlink(f"/proc/{pid}/cwd")
            except OSError:
                continue
            mine = os.fsencode(f"--repository={self.archive.url}")
            if b"prefetch" in words[1:2] and mine in words and cwd and not process_gone(int(pid)):
                found.append(int(pid))
        return found

    def stats(self):
        done = self.archive.run("stats", cwd=self.data.path, **{"repository-id": None})
        line = [x for x in done.out.splitlines() if f"spool={os.path.basename(self.spool)} " in x]
        return dict(word.split("=", 1) for word in line[0].split()) if line else {}

    def settle(self, first, count):
        """Until segments first … first + count - 1 are in the spool."""
        want = [name_of(n) for n in range(first, first + count)]
        poll(lambda: self.spooled() == want, 30, f"{count} segments from {first} in the spool")

    def end(self):
        for pid in self.prefetchers():
            kill_pid(pid)


def make_archive(box, name, count):
    archive = Archive(box, name)
    data = Directory(box, name + "-source")
    for number in range(1, count + 1):
        path = data.write("pg_wal/" + name_of(number), segment(number, fill=number))
        done = archive.run("push", "pg_wal/" + name_of(number), cwd=data.path)
        if done.status != 0:
            raise RuntimeError(done.err)
        os.unlink(path)
    return archive


def test_window(player, count):
    is_status(player.get(1), 0, "the first segment is fetched")
    player.settle(2, 16)
    ok(True, "16 segments behind it are prefetched, and no more")
    is_(len(player.prefetchers()), 1, "by one prefetcher")
    is_status(player.get(2), 0, "the second is there")
    ok(player.delivered() == segment(2, fill=2), "its content")
    player.settle(3, 16)
    ok(True, "the window moves on")
    is_status(player.get(40), 0, "a jump forward")
    player.settle(41, 16)
    ok(True, "what lies behind is removed")
    is_status(player.get(5), 0, "a jump backward")
    player.settle(6, 16)
    ok(True, "the same")
    is_status(player.get(count - 2), 0, "near the end of the archive")
    player.settle(count - 1, 2)
    is_status(player.get(count), 0, "the last one")
    is_status(player.get(count + 1), 1, "one after it")
    stats = player.stats()
    is_((stats.get("gets"), stats.get("failed")), ("6", "0"), "stats counts gets and no failures")
    is_(len(player.prefetchers()), 1, "still one prefetcher")


def cpu_ms(usage):
    return (usage.ru_utime + usage.ru_stime) * 1000


def test_cost(player):
    """Through sh, as PostgreSQL does it. CPU time is what counts: the machine may be busy."""
    player.get(1)
    player.settle(2, 16)

    def measure(command, times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.monotonic()
        for k in range(times):
            subprocess.run(["/bin/sh", "-c", command.replace("%f", name_of(2 + k))], check=True,
                           cwd=player.data.path, close_fds=False)
        wall = (time.monotonic() - begin) * 1000
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return wall / times, (cpu_ms(usage) - cpu_ms(before)) / times
    for pid in player.prefetchers():
        os.kill(pid, signal.SIGSTOP)  # its CPU time is not the get's
    options = player.archive.options(**player.options)
    hit = measure(f"{player.archive.wal} get %f pg_wal/RECOVERYXLOG {options}", 16)
    for pid in player.prefetchers():
        os.kill(pid, signal.SIGCONT)
    nothing = measure("/bin/true %f", 16)
    diag(f"a hit costs {hit[0]:.2f} ms, {hit[1]:.2f} ms CPU; /bin/true {nothing[0]:.2f} ms, "
         f"{nothing[1]:.2f} ms CPU (both through sh)")
    if os.path.basename(tm.BUILD) != "release":
        skip("the cost of a sanitizer's build says nothing")
    else:
        ok(hit[1] - nothing[1] < 3, "a hit costs less than 3 ms of CPU more than doing nothing")
    is_(player.stats().get("hits"), "16", "all 16 were hits")


def test_never_served(box, archive):
    player = Player(box, archive, "stale")
    other = os.path.join(player.data.path, "pg_wal/tidemark-spool", f"1-{archive.id}")
    foreign = os.path.join(player.data.path, "pg_wal/tidemark-spool", f"{SYSTEM_ID}-{'0' * 32}")
    for directory in (other, foreign, player.spool):
        os.makedirs(directory)
        for name in (name_of(3), "state"):
            with open(os.path.join(directory, name), "wb") as file:
                file.write(b"stale" * 100)
    subprocess.run(["chown", "-R", "postgres", os.path.join(player.data.path, "pg_wal")],
                   check=True)
    is_status(player.get(3), 0, "a spool with garbage under the segment's name")
    ok(player.delivered() == segment(3, fill=3), "the right bytes come all the same")
    poll(lambda: not os.path.exists(other) and not os.path.exists(foreign), 20,
         "removal of other servers' spools")
    ok(True, "spools of another system or repository are removed")
    for what, content in (("another segment", segment(9, fill=9)),
                          ("another system's", segment(5, system_id=7)),
                          ("a cut one", segment(5)[:-1]), ("nothing", b"")):
        player.end()
        path = os.path.join(player.spool, name_of(5))
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, 0o644)
        is_status(player.get(5), 0, f"{what} in the spool")
        ok(player.delivered() == segment(5, fill=5), "is not served")
    player.end()


def test_damaged_object(box, archive):
    player = Player(box, archive, "damaged")
    path = os.path.join(archive.path, "wal/main", str(SYSTEM_ID), "00000001", name_of(4))
    with open(path, "rb") as file:
        good = file.read()
    os.chmod(path, 0o644)
    with open(path, "wb") as file:
        file.write(good[:-5] + b"\0\1\2\3\4")
    is_status(player.get(2), 0, "a segment before a damaged one")
    # A second fetcher may have gone beyond it before the damage was seen.
    poll(lambda: name_of(3) in player.spooled() and int(player.stats()["failed"]) >= 1, 30,
         "the segment before it and the failure")
    ok(name_of(4) not in player.spooled(), "the damaged one is not in the spool")
    is_status(player.get(3), 0, "the next")
    is_status(player.get(4), 126, "get reports the damaged one")
    with open(path, "wb") as file:
        file.write(good)
    is_status(player.get(4), 0, "once it is mended it is delivered")
    player.settle(5, 16)
    ok(int(player.stats()["failed"]) >= 1, "stats counts the failure")
    player.end()


def test_server_end(box, archive):
    player = Player(box, archive, "ending")
    with subprocess.Popen(["sleep", "300"]) as postmaster:
        player.data.write("postmaster.pid", f"{postmaster.pid}\n".encode())
        player.get(1)
        player.settle(2, 16)
        prefetcher = player.prefetchers()[0]
        is_(os.readlink(f"/proc/{prefetcher}/cwd"), "/", "the prefetcher's directory is /")
        is_(os.getsid(prefetcher), os.getpgid(prefetcher), "it has a session of its own")
        links = {os.readlink(f"/proc/{prefetcher}/fd/{fd}") for fd in (0, 1, 2)}
        is_(links, {"/dev/null"}, "and none of the server's descriptors")
        postmaster.kill()
        postmaster.wait()
        begin = time.monotonic()
        poll(lambda: process_gone(prefetcher), 9, "its end")
        diag(f"ended {time.monotonic() - begin:.2f} s after the server")
    ok(True, "it ends with the server")


def test_kills(box, archive, count):
    """kill -9 of the prefetcher at random moments: every segment still comes, with its bytes."""
    rng, _seed = seeded()
    player = Player(box, archive, "kills")
    wrong = 0
    for number in range(1, count + 1):
        done = player.get(number)
        wrong += done.status != 0 or player.delivered() != segment(number, fill=number)
        if rng.random() < 0.5:
            time.sleep(rng.random() * 0.02)  # the moment of the kill, not a wait
            player.end()
    is_(wrong, 0, f"{count} segments with kills between: all came, all right")
    diag(str(player.stats()))
    player.end()


def test_no_room(box, archive):
    """A filesystem without space: get goes on without prefetch."""
    point = box.mkdir("small")
    box.mount("tmpfs", point, "-t", "tmpfs", "-o", "size=3m,mode=0777")
    player = Player(box, archive, "small/data")
    for number in (1, 2, 3):
        is_status(player.get(number), 0, f"segment {number} on a nearly full filesystem")
    is_(player.spooled(), [], "nothing is prefetched into the server's last space")
    player.end()
    poll(lambda: not player.prefetchers(), 10, "end")
    box.umount(point)


def test_pace(box):
    """A replay of 200 segments at a steady pace: how many gets waited for a fetch?"""
    count, pace_s = 200, 0.03
    archive = make_archive(box, "pace", count)
    player = Player(box, archive, "pace-data", prefetch=8)
    longest = []
    for number in range(1, count + 1):
        begin = time.monotonic()
        if player.get(number).status != 0:
            break
        longest.append(time.monotonic() - begin)
        time.sleep(max(0.0, pace_s - longest[-1]))  # the replay of the segment
    stats = player.stats()
    diag(str(stats))
    longest.sort()
    diag(f"get in ms: median {longest[len(longest) // 2] * 1000:.1f}, 95 % "
         f"{longest[len(longest) * 95 // 100] * 1000:.1f}, max {longest[-1] * 1000:.1f}")
    is_(stats.get("gets"), str(count), f"{count} segments")
    ok(int(stats["hits"]) >= count * 9 // 10, f"{stats['hits']} of them did not wait for a fetch")
    player.end()


def main():
    need_root()
    box = Sandbox("walprefetch")
    count = 60
    archive = make_archive(box, "repo", count)
    player = Player(box, archive, "data")
    box.before_clean.append(player.end)
    test_window(player, count)
    player.end()
    player = Player(box, archive, "cost")
    test_cost(player)
    player.end()
    test_never_served(box, archive)
    test_damaged_object(box, archive)
    test_server_end(box, archive)
    test_kills(box, archive, count)
    test_no_room(box, archive)
    test_pace(box)


run(main)
