#!/usr/bin/env python3
# check: build=release timeout=300
"""Peak memory of a job's process, as the kernel counts it (VmHWM): below memory_max + 64 MiB in
snapshot, verification and restore, for a volume of 1 GiB and for a sparse one of 8 GiB alike; and
for a live copy, with what its last pass keeps."""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402, F403
import snapshots as snap  # noqa: E402

MEMORY_MAX = 128 * MIB


def measure(node, name, *args):
    """Runs `tidemark ARGS` and looks at its jobs' processes until it has ended."""
    running = snap.Running(node, *args)
    peak, looks = 0, 0

    def ended():
        nonlocal peak, looks
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                if words[1:2] != [b"job"] or node.state_dir.encode() not in words[2]:
                    continue
                with open(f"/proc/{pid}/status", encoding="ascii") as file:
                    found = re.search(r"VmHWM:\s+(\d+) kB", file.read())
            except (OSError, IndexError):
                continue
            looks += 1
            peak = max(peak, int(found.group(1)) * KIB if found else 0)
        return running.process.poll() is not None
    poll(ended, 200, name, 0.002)
    is_status(running.wait(), 0, name)
    ok(looks > 2, f"{name}: looked {looks} times")  # VmHWM never falls: a late look is enough
    ok(MEMORY_MAX / 8 < peak < MEMORY_MAX + 64 * MIB, f"{name}: peak {peak / MIB:.0f} MiB, limit "
       f"{(MEMORY_MAX + 64 * MIB) // MIB}")


def test_size(box, size, name, provider="freeze"):
    volume = box.volume("pgdata" + name, size)
    node = Node(box, [volume], name=name, repository=make_repository(box, "repo" + name),
                provider=provider,
                options={"tidemark": {"memory_max": "128MiB", "freeze_deadline": "60s"}})
    node.start()
    node.server.pgbench_init(10)
    load = node.server.pgbench() if provider == "precopy" else None
    for verb in (("snapshot", "--tag", "t"), ("verify", "t"), ("restore", "t", "--yes")):
        measure(node, f"{name}, {verb[0]}", *verb)
        if load:
            load.stop()
            load = None
    node.server.stop()
    node.agent.stop()


def main():
    box = need_root() or Sandbox("job-memory")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    test_size(box, GIB, "1g")
    test_size(box, 8 * GIB, "8g")
    test_size(box, GIB, "live", "precopy")


run(main)
