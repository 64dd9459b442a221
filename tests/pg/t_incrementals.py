#!/usr/bin/env python3
# check: build=release timeout=300
"""Incrementals for ever, of a real server under pgbench: COUNT snapshots, each the next one's
parent. None rewrites more than its budget; sampled ones are restored, start, and have the sums of
their time; a restore of the last takes at most 1.5 times the requests and bytes of a full
snapshot's. TIDEMARK_CAMPAIGN=1: 60 snapshots instead of 8."""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
import tm  # noqa: E402
from t_restore import Story, journal_of, record_of  # noqa: E402
import snapshots as snap  # noqa: E402
import tidemark_reader  # noqa: E402

COUNT = 60 if tm.CAMPAIGN else 8
SAMPLED = (1, 30, 60) if tm.CAMPAIGN else (1, 8)
SCALE = 10 if tm.CAMPAIGN else 3
BUDGET = 5  # percent: the default


def live_bytes(node, tag):
    """What the packs that a snapshot reaches hold of it, by its manifest."""
    source = tidemark_reader.Repository(snap.repository(node))
    record = tidemark_reader.find_record(source, tag)
    return sum(live for v in record["volumes"] for _, _, _, _, live in
               tidemark_reader.Volume(source, record, v["name"]).packs.values())


def take(story, number, *args):
    """The tables' sums at that time. Nobody writes meanwhile, so that they are exact."""
    done = story.node.cli("snapshot", "--tag", f"s{number}", *args)
    if done.status != 0:
        raise RuntimeError(f"snapshot s{number}: exit {done.status}: {done.err}")
    return story.server.pgbench_sums()


def check_budget(story, number):
    volume = record_of(story.node, f"s{number}")["volumes"][0]
    rewritten = volume.get("bytes_rewritten", 0)
    budget = max(live_bytes(story.node, f"s{number - 1}") * BUDGET // 100, 8 * MIB)
    if rewritten > budget or rewritten > volume["bytes_stored"]:
        ok(False, f"snapshot {number} rewrites {rewritten} bytes, its budget is {budget}")
    return rewritten


def restore(story, number, sums):
    """What its blocks took: (requests, bytes)."""
    tag = f"s{number}"
    story.restore(tag=tag)
    story.server.wait_ready()
    is_(story.server.pgbench_sums(), sums, f"{tag}: the rows of its time")
    is_(story.server.amcheck()[0], 0, f"{tag}: amcheck finds nothing")
    job = journal_of(story.node)["id"]
    with open(f"{story.node.state_dir}/jobs/{job}/progress.json", encoding="utf-8") as file:
        progress = json.load(file)
    return progress["objects"], progress["bytes_stored"]


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    box = Sandbox("incrementals")
    provider = "precopy" if tm.CAMPAIGN else "freeze"
    story = Story(box, "", provider=provider, size=(700 if tm.CAMPAIGN else 448) * MIB)
    server = story.node.start() and story.server
    server.pgbench_init(SCALE)
    sums, rewritten = {0: take(story, 0)}, 0
    for number in range(1, COUNT + 1):
        server.pgbench("-n", "-c", "1", "-t", "300")
        sums[number] = take(story, number)
        rewritten += check_budget(story, number)
    ok(True, f"{COUNT} snapshots under load, each within its budget")
    diag(f"{rewritten} bytes rewritten in all of them")
    ok(rewritten > 0, "chunks were rewritten")
    sums["full"] = take(story, "full", "--full")
    requests, size = restore(story, "full", sums["full"])
    for number in SAMPLED:
        got = restore(story, number, sums[number])
        diag(f"s{number}: {got[0] / requests:.2f} x the requests of a full snapshot, "
             f"{got[1] / size:.2f} x its bytes")
    ok(got[0] <= 1.5 * requests and got[1] <= 1.5 * size,
       "a restore of the last takes at most 1.5 times what a full one takes")
    story.end()


run(main)
