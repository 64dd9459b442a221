#!/usr/bin/env python3
# check: build=asan campaign=release timeout=400
"""A whole restore from a damaged repository: {kind of object} x {bit flip, cut, missing, swapped}.
It ends with the object's name and its exit status; then either nothing was touched and the old
server runs, or nobody can start what is on the volume. Once the object is mended, the restore is
resumed and brings the rows of the tag. A few of them in `make check`, all in `make campaign`."""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story, job_log, journal_of  # noqa: E402
from t_restore_kill import GONE, OLD, REFUSED, start_by_hand  # noqa: E402
import mutilate  # noqa: E402
import tm  # noqa: E402

TOUCHED = ("marked", "pulling", "written", "configured", "recovering")


def harmless(case):
    """What only verify reads: a region table stands alone, the header of its pack is not read."""
    return case.kind == "header" and next(iter(case.changes)).startswith("table/")


def test_case(story, case):
    node, server = story.node, story.server
    server.psql("drop table if exists orders")
    before = set(os.listdir(node.state_dir + "/jobs"))
    with mutilate.mutilated(case):
        done = node.cli("restore", "t1", "--yes")
        if done.status == 0 and harmless(case):
            story.check_tag(f"{case.name}: nothing that a restore reads")
            return
        if not ok(done.status in case.statuses and re.search(case.pattern, done.err),
                  f"{case.name}: exit {done.status}"):
            tm.diag(f"{case}\n{done.err}\n{job_log(node)}")
        began = set(os.listdir(node.state_dir + "/jobs")) - before
        step = journal_of(node)["step"] if began and "step" in journal_of(node) else "none"
        if step in ("marked", "pulling"):
            like(done.err, r"(?m)^hint: the old data is gone, and `tidemark restore --resume \w+` "
                 "would find the same damage: `tidemark verify --all` says which",
                 f"{case.name}: the hint does not lead into it again")
        found = start_by_hand(story)
        want = (GONE, REFUSED) if step in TOUCHED else (OLD,)
        ok(found in want, f"{case.name}: stopped in step {step}; by hand: {found}")
    args = ("restore", "--resume", "--yes") if step in TOUCHED else ("restore", "t1", "--yes")
    done = node.cli(*args)
    if not is_status(done, 0, f"{case.name}: mended, {' '.join(args[:2])} ends well"):
        tm.diag(job_log(node))
    server.wait_ready()
    story.timeline = server.timeline() - 1
    story.check_tag(case.name)


def main():
    box = need_root() or Sandbox("restore-damage")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    story = Story(box, "damage", resume="wait")
    node = story.begin()
    is_status(node.cli("restore", "t1", "--yes"), 0, "the intact case")
    story.check_tag("the intact case")
    rng, _ = seeded()
    table = mutilate.cases(node.repository.removeprefix("file://"), "t1", rng)
    wanted = os.environ.get("TIDEMARK_ONLY")
    for case in table if tm.CAMPAIGN or wanted else rng.sample(table, 3):
        if not wanted or wanted in case.name:
            test_case(story, case)
    story.end()


run(main)
