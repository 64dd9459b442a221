#!/usr/bin/env python3
"""`tidemark verify`: the intact snapshot first, then every kind of object with every mutilation,
each with its exit status and a message that names the place."""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import mutilate  # noqa: E402
import snapshots as snap  # noqa: E402

# What the message has to say beside the object's name, by kind of object. A pack that is cut or
# missing may be found so as a whole, before a chunk of it is asked for.
CONTEXT = {
    "chunk bit": r"region \d+ chunk \d+",
    "chunk swapped": r"region \d+ chunk \d+",
    "table": r"region \d+|table/",
    "manifest": r"volume '\w+': (object ')?volume/",
    "wal": r"[0-9A-F]{24}",
    "repo": r"tidemark\.repo|of another repository",
}


def test_intact(node):
    for tag in ("one", "two", "cold-wal"):
        done = node.cli("verify", tag)
        is_status(done, 0, f"verify '{tag}': the intact case")
        like(done.out, f"snapshot {tag} is good", f"verify '{tag}': says so")
    done = node.cli("verify", "latest", "--json")
    is_status(done, 0, "verify latest")
    done = node.cli("verify", snap.record(node, "one")["id"][:8])
    is_status(done, 0, "verify by the beginning of an id")
    done = node.cli("verify", "tow")
    is_status(done, "missing", "verify of a tag that does not exist")
    like(done.err, "(?s)no snapshot 'tow'.*hint: the nearest tags are: two", "names the nearest")


def test_counts(node):
    """The result counts every object that the snapshot reaches."""
    running = snap.Running(node, "verify", "two")
    is_status(running.wait(), 0, "verify 'two'")
    result = running.journal()["result"]
    record = snap.record(node, "two")
    places = mutilate.Places(snap.repository(node), "two")
    tables = {name for name, *_ in places.tables}
    is_(result["packs"], len(places.packs), "every pack is counted")
    is_(result["table_packs"], len(tables), "every table pack")
    is_(result["wal_objects"], len(places.wal), "every WAL segment")
    is_(result["objects"], 1 + len(record["volumes"]) + len(places.packs) + len(tables)
        + len(places.wal), "and all together, with record and manifests")
    ok(len({name.split("/")[2] for name in places.packs}) == 2,
       "an incremental that reaches packs of its parent")


def test_case(node, case):
    with mutilate.mutilated(case):
        done = node.cli("verify", "two")
    good = done.status in case.statuses and re.search(case.pattern, done.err) \
        and re.search(CONTEXT.get(case.name, CONTEXT.get(case.kind, ".")), done.err)
    if not ok(good, f"{case.name}: exit {done.status}"):
        diag(f"{case}\nexit {done.status}, want {case.statuses}\n{done.err}")
    elif os.environ.get("TIDEMARK_VERBOSE"):
        diag(done.err.strip())


def test_mutilations(node, rng):
    for case in mutilate.cases(snap.repository(node), "two", rng):
        test_case(node, case)
    for _ in range(5 if CAMPAIGN else 0):
        for case in mutilate.cases(snap.repository(node), "two", rng):
            test_case(node, case)
    done = node.cli("verify", "two")
    is_status(done, 0, "the repository is whole again")


def test_exact(node):
    """The whole text of a few."""
    directory = snap.repository(node)
    places = mutilate.Places(directory, "two")
    name, at, _, where, _ = places.chunks[0]
    data = mutilate.load(directory, name)
    case = mutilate.Case(directory, "chunk", "bit", {name: mutilate.flip(data, 8 * at + 3)}, "")
    with mutilate.mutilated(case):
        done = node.cli("verify", "two")
    is_status(done, "corrupt", "a flipped bit in the first chunk")
    like(done.err, f"error: volume 'pgdata': .*{re.escape(name)}.*", "names volume and object")
    like(done.err, where, "names region and chunk")
    like(done.err, r"hint: \d+ objects? (was|were) good before it; "
                   "this snapshot cannot be restored, take a new one", "says how far it came")
    name = places.wal[-1]
    with mutilate.mutilated(mutilate.Case(directory, "wal", "missing", {name: None}, "")):
        done = node.cli("verify", "two")
        other = node.cli("verify", "one")
    is_status(done, "missing", "the last WAL segment is missing")
    like(done.err, re.escape(name.split("/")[-1]), "and is named")
    is_status(other, 0, "a snapshot that does not need it is good")


def test_alone(node):
    """With nothing but the repository: no agent, no configuration."""
    node.agent.stop()
    done = run_program(os.path.join(node.programs, "tidemark"), "verify", "two",
                       f"--repository={node.repository}")
    is_status(done, 0, "verify --repository without an agent")
    done = run_program(os.path.join(node.programs, "tidemark"), "verify", "two",
                       "--repository=file:///nonexistent/tidemark")
    ok(done.status in (EXIT["store"], EXIT["missing"]), f"a repository that is not there: exit "
       f"{done.status}")


def main():
    need_root()
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    rng, _seed = seeded()
    box = Sandbox("t_verification")
    node = Node(box, [box.volume("pgdata", 400 * MIB)],
                options={"tidemark": {"freeze_deadline": "20s"}})
    node.start()
    node.server.pgbench_init(2)
    is_status(node.cli("snapshot", "--tag", "one"), 0, "a snapshot")
    load = node.server.pgbench()
    load.wait_transactions(100)
    load.stop()
    is_status(node.cli("snapshot", "--tag", "two"), 0, "an incremental")
    is_status(node.cli("snapshot", "--tag", "cold-wal", "--no-archive"), 0, "one without archive")
    node.server.stop()
    test_intact(node)
    test_counts(node)
    test_exact(node)
    test_mutilations(node, rng)
    test_alone(node)


run(main)
