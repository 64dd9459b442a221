#!/usr/bin/env python3
"""tidemark-wal with PostgreSQL as the judge: archiving under load, recovery with prefetch, a
promoted timeline, a store that fails or disappears in the middle of a recovery."""
import os
import re
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from wal_lib import Archive, Copy, Primary  # noqa: E402


def test_archiving(primary, archive):
    """Load with frequent switches; every finished segment must be in the archive, equal."""
    primary.pgbench_init(1)
    bench = primary.pgbench("-R", "300")
    names = [primary.switch_and_wait() for _ in range(6) if primary.fill(20) is None]
    bench.stop()
    last = primary.switch_and_wait()
    ok(set(names + [last]) <= set(archive.objects(primary.system_id)),
       "every finished segment is in the archive")
    is_(primary.psql("select failed_count from pg_stat_archiver"), "0", "no push failed")
    name = names[-1]
    path = os.path.join(primary.data, "pg_wal", name)
    if os.path.exists(path):
        is_status(archive.run("push", f"pg_wal/{name}", cwd=primary.data), 0,
                  "the same segment again, by hand")
        with open(path, "r+b") as file:
            file.seek(12345)
            file.write(b"\xff\xfe")
        is_status(archive.run("push", f"pg_wal/{name}", cwd=primary.data), "refused",
                  "with other content")
    else:
        skip("the segment was recycled", 2)
    is_status(archive.tool_wal("range", primary.system_id, 1, segment_lsn(names[0]),
                               segment_lsn(last), 16 << 20), 0, "no gap between first and last")


def segment_lsn(name):
    return f"{int(name[8:16], 16):X}/{int(name[16:24], 16) << 24:X}"


def stats_of(archive, server):
    done = archive.run("stats", cwd=server.data, **{"repository-id": None})
    return dict(word.split("=", 1) for word in done.out.split())


def test_recovery(box, primary, archive, base):
    """To the end of the archive, with prefetch; then the new timeline is archived."""
    rows = primary.psql("select count(*), sum(hashtext(x)::bigint) from filler")
    primary.switch_and_wait()
    command = f"{os.path.dirname(archive.wal)}/tidemark-wal"
    timed = box.write("timed-get", f"""#!/bin/bash
# Time of each get as the server sees it, in microseconds.
start=${{EPOCHREALTIME/./}}
{command} get "$@"
status=$?
echo "$1 $(( ${{EPOCHREALTIME/./}} - start )) $status" >>"$TIMES"
exit $status
""", 0o755)
    times = box.join("times")
    restore = f"TIMES={times} {timed} %f %p {archive.options()}"
    os.chmod(box.path, 0o777)
    copy = Copy(box, base, "recovered", restore, archive_mode="on",
                archive_command=archive.archive_command())
    begin = time.monotonic()
    copy.start(timeout_s=120)
    copy.wait_ready(120)
    took = time.monotonic() - begin
    is_(copy.psql("select count(*), sum(hashtext(x)::bigint) from filler"), rows,
        "all rows are there after the recovery")
    is_(copy.timeline(), 2, "on timeline 2")
    report_times(times, took, stats_of(archive, copy))
    copy.psql("create table after_promotion (x int)")
    poll(lambda: "00000002.history" in archive.objects(primary.system_id), 30, "the history file")
    name = copy.switch_wal()
    poll(lambda: name in archive.objects(primary.system_id), 30, "a segment of timeline 2")
    ok(True, "history file and segments of timeline 2 are archived")
    is_(archive.tool_wal("timelines", primary.system_id).out.split(), ["1", "2"], "two timelines")
    copy.stop()
    poll(lambda: not any("wal-worker" in (cmdline(p) or "") for p in processes_below(box.path)), 20,
         "the prefetcher's end")
    ok(not temporaries(copy), "no temporary file is left in pg_wal")


def cmdline(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return None


def temporaries(server):
    wal = os.path.join(server.data, "pg_wal")
    return [x for x in os.listdir(wal) if x.endswith(".tidemark")]


def report_times(path, took, stats):
    with open(path, encoding="ascii") as file:
        lines = [line.split() for line in file]
    segments = sorted(int(us) for name, us, status in lines if len(name) == 24 and status == "0")
    if not ok(len(segments) >= 10, f"{len(segments)} segments were delivered"):
        return
    diag(f"recovery {took:.2f} s; get in ms: median {segments[len(segments) // 2] / 1000:.2f}, "
         f"90 % {segments[len(segments) * 9 // 10] / 1000:.2f}, max {segments[-1] / 1000:.2f}")
    diag(" ".join(f"{k}={v}" for k, v in stats.items()))
    is_(int(stats.get("gets", 0)), len(segments), "stats counts every delivery")
    ok(int(stats.get("hits", 0)) + int(stats.get("waits", 0)) >= len(segments) // 2,
       f"most come from the spool ({stats.get('hit_rate')} hits)")


def main():
    need_root()
    box = Sandbox("wal")
    archive = Archive(box)
    primary = Primary(box, archive, max_wal_size="1GB")
    base = primary.base_backup("base")
    test_archiving(primary, archive)
    primary.fill(300)
    test_recovery(box, primary, archive, base)
    primary.stop()


run(main)
