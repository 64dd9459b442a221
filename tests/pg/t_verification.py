#!/usr/bin/env python3
"""`tidemark verify`: the intact snapshot first, then every kind of object with every mutilation,
each with its exit status and a message that names the place."""
import json
import os
import pathlib
import re
import subprocess
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
    like(done.err, r"hint: of \d+ objects; two cannot be restored whole, take a new one",
         "says which snapshot")
    name = places.wal[-1]
    with mutilate.mutilated(mutilate.Case(directory, "wal", "missing", {name: None}, "")):
        done = node.cli("verify", "two")
        other = node.cli("verify", "one")
    is_status(done, "missing", "the last WAL segment is missing")
    like(done.err, re.escape(name.split("/")[-1]), "and is named")
    is_status(other, 0, "a snapshot that does not need it is good")


def result_of(node, status, *args):
    """The job's result, also of one that has failed."""
    running = snap.Running(node, "verify", *args)
    is_status(running.wait(), status, f"verify {' '.join(args)}")
    return running.journal()["result"]


def control_packs(places):
    """Packs with pg_control, which verify compares with the record: without them it is damaged."""
    record, repository = places.record, places.repository
    size = repository.chunk_size
    per_region = repository.region_size // size
    chunks = {f"region {chunk // per_region} chunk {chunk % per_region}"
              for offset, length in record["postgresql"]["control"]["extents"]
              for chunk in range(offset // size, -(-(offset + length) // size))}
    return {pack for pack, _, _, where, _ in places.chunks if where in chunks}


def test_many(node):
    """Everything that is damaged is listed; whatever else is there was read."""
    directory = snap.repository(node)
    places = mutilate.Places(directory, "two")
    name, at, *_ = places.chunks[0]
    gone = (set(places.packs) - {name} - control_packs(places)).pop()
    changes = {name: mutilate.flip(mutilate.load(directory, name), 8 * at + 3), gone: None,
               places.wal[0]: None}
    with mutilate.mutilated(mutilate.Case(directory, "chunk", "bit", changes, "")):
        result = result_of(node, "corrupt", "two")
        everything = result_of(node, "corrupt", "--all")
    is_({entry["object"] for entry in result["damaged"]},
        {name, gone, places.wal[0].rsplit("/", maxsplit=1)[-1]}, "a chunk, a pack and a segment")
    is_(result["damaged_objects"], 3, "are counted")
    ok(all(entry["chunks"] > 0 for entry in result["damaged"] if "pack" in entry["object"]),
       "with the chunks that are lost")
    tags = ("one", "two", "cold-wal")
    all_of = {tag: mutilate.Places(directory, tag) for tag in tags}
    need = {tag for tag in tags if gone in all_of[tag].packs or places.wal[0] in all_of[tag].wal
            or (name, at) in {chunk[:2] for chunk in all_of[tag].chunks}}
    reach = {tag for tag in tags if {name, gone} & set(all_of[tag].packs)}
    affected, unsure = set(everything["affected"]), set(everything["unsure"])
    ok("two" in affected <= need, f"--all: {affected} cannot be restored, {need} need the damage")
    ok(need | reach == affected | unsure and not affected & unsure,
       f"--all: {unsure} share an object with it")


def test_shared(node):
    """A bit in a chunk that the incremental took from its parent, one that it replaced, and a pack
    that both need and that is gone: who is sure to be hit, who is not, who is."""
    directory = snap.repository(node)
    one, two = (mutilate.Places(directory, tag) for tag in ("one", "two"))
    packs = set(one.packs) & set(two.packs)
    kept = {chunk[:2] for chunk in two.chunks}
    places = [chunk[:2] for chunk in one.chunks if chunk[0] in packs]
    for what, needed in (("kept", True), ("replaced", False)):
        name, at = next(place for place in places if (place in kept) == needed)
        changes = {name: mutilate.flip(mutilate.load(directory, name), 8 * at + 3)}
        with mutilate.mutilated(mutilate.Case(directory, "chunk", "bit", changes, "")):
            result = result_of(node, "corrupt", "--all")
            done = node.cli("verify", "--all")
            is_status(node.cli("verify", "two"), "corrupt" if needed else 0,
                      f"a chunk that two has {what}: verify of two alone knows")
        is_(("one" in result["affected"], "two" in result["unsure"]), (True, True),
            f"a chunk that two has {what}: --all knows of one, of two it does not")
        name_of = f"{node.name}/%s"
        like(done.err, f"hint: .*; {name_of % 'one'} cannot be restored whole.*damage is in .*"
             f"{name_of % 'two'}.*tidemark verify` of each", f"a chunk that two has {what}: and "
             "says so")
    with mutilate.mutilated(mutilate.Case(directory, "chunk", "missing", {name: None}, "")):
        result = result_of(node, "missing", "--all")
        told = node.cli("verify", "--all", "--json")
    is_status(told, "missing", "--all --json")
    told = json.loads(told.out or "{}").get("result", {})
    ok(name in [damage["object"] for damage in told.get("damaged", [])],
       "and it lists what is damaged")
    is_([(name["node"], name["tag"], name["id"]) for name in told.get("affected_snapshots", [])],
        [(node.name, tag, snap.record(node, tag)["id"]) for tag in result["affected"]],
        "and which snapshots of which node cannot be restored")
    is_({"one", "two"} <= set(result["affected"]), True, "a pack that is gone: both are affected")


def test_all(node):
    alone = [result_of(node, 0, tag) for tag in ("one", "two", "cold-wal")]
    together = result_of(node, 0, "--all")
    packs = set().union(*(mutilate.Places(snap.repository(node), tag).packs
                          for tag in ("one", "two", "cold-wal")))
    is_(together["packs"], len(packs), "--all: every pack once")
    ok(together["bytes_stored"] < 0.8 * sum(result["bytes_stored"] for result in alone),
       f"{together['bytes_stored']} bytes are read, one by one "
       f"{[result['bytes_stored'] for result in alone]}")
    is_(together["snapshots"], 3, "three snapshots")


def test_sample(node):
    whole = result_of(node, 0, "two")
    sample = result_of(node, 0, "two", "--percent=20")
    ok(0 < sample["bytes_read"] < whole["bytes_read"], "a sample reads less, but something")
    done = node.cli("verify", "two", "--percent=20", f"--seed={sample['seed']}")
    like(done.out, fr"a sample: --percent=20 --seed={sample['seed']}\)", "the seed is printed")
    again = result_of(node, 0, "two", "--percent=20", f"--seed={sample['seed']}")
    is_(again["bytes_stored"], sample["bytes_stored"], "and repeats it")
    for args in (("two", "--all"), (), ("two", "--percent=0"), ("two", "--percent=101"),
                 ("two", "--seed=3"), ("two", "--percent=x")):
        is_status(node.cli("verify", *args), "usage", f"verify {' '.join(args)}")


def test_resume(node):
    """Killed when the first snapshot's volume is read: what was read is not read again, so damage
    of it is not met, and damage of the rest is."""
    directory = snap.repository(node)
    whole = result_of(node, 0, "--all")
    done = node.cli("verify", "--resume")
    is_status(done, "missing", "nothing is there to resume")
    like(done.err, "hint: .*start another one", "and what to do instead")
    node.agent.stop()
    node.agent.start(TIDEMARK_TEST_STOP="verify-ack")
    killed = snap.Running(node, "verify", "--all")
    done = killed.wait()
    job = os.path.basename(killed.job())
    is_status(done, "internal", "the job is killed")
    like(done.err, f"hint: `tidemark verify --resume={job}` goes on", "the hint goes on")
    node.agent.stop()
    node.agent.start()
    poll(lambda: killed.journal()["state"] == "failed", 30, "the agent to end it")
    is_(killed.journal()["error"]["hint"], f"`tidemark verify --resume={job}` goes on",
        "so does the journal's")
    first = set(mutilate.Places(directory, "one").packs)
    later = sorted(set(mutilate.Places(directory, "two").packs) - first)[0]
    name, at, *_ = mutilate.Places(directory, "one").chunks[0]
    read = {name: mutilate.flip(mutilate.load(directory, name), 8 * at + 3)}
    with mutilate.mutilated(mutilate.Case(directory, "chunk", "bit", read, "")):
        is_status(node.cli("verify", "--resume"), 0, "it goes on")
    with open(killed.job() + "/progress.json", encoding="ascii") as file:
        rest = json.load(file)["bytes_stored"]
    ok(0 < rest < whole["bytes_stored"] / 2, f"{rest} of {whole['bytes_stored']} bytes were left")
    is_(killed.journal()["result"]["packs"], whole["packs"], "both runs together read all packs")
    is_status(node.cli("verify", f"--resume={job}"), "refused", "what has ended is not resumed")
    node.agent.stop()
    node.agent.start(TIDEMARK_TEST_STOP="verify-ack")
    node.cli("verify", "--all")
    node.agent.stop()
    node.agent.start()
    with mutilate.mutilated(mutilate.Case(directory, "chunk", "missing", {later: None}, "")):
        done = node.cli("verify", "--resume")
    is_status(done, "missing", "damage of what is left is met")
    like(done.err, later, "and named")


def killed(node, *args):
    """Killed when a part of the first volume is read; the job's id."""
    node.agent.stop()
    node.agent.start(TIDEMARK_TEST_STOP="verify-ack")
    running = snap.Running(node, "verify", *args)
    is_status(running.wait(), "internal", f"verify {' '.join(args)} is killed")
    node.agent.stop()
    node.agent.start()
    poll(lambda: running.journal()["state"] == "failed", 30, "the agent to end it")
    return os.path.basename(running.job())


def test_gone(node):
    """What is withdrawn before a verification goes on was not read, so it is not good."""
    everything, alone = killed(node, "--all"), killed(node, "cold-wal")
    is_status(node.cli("expire", "cold-wal", "--confirm"), 0, "the snapshot is withdrawn")
    done = node.cli("verify", f"--resume={alone}")
    is_status(done, "missing", "nothing is left of it to verify")
    like(done.err, f"nothing was verified: {node.name}/cold-wal was withdrawn", "and that is said")
    is_status(node.cli("verify", f"--resume={alone}"), "refused", "it has ended")
    unlike(node.cli("check").out, "'cold-wal' was read back", "check knows of no such verification")
    done = node.cli("verify", f"--resume={everything}", "--json")
    is_status(done, 0, "of all snapshots the others are read")
    result = json.loads(done.out)["result"]
    is_((result["snapshots"], [name["tag"] for name in result["gone"]]), (2, ["cold-wal"]),
        "and the result says which was not")


def test_alone(node):
    """With nothing but the repository: no agent, no configuration."""
    node.agent.stop()
    done = run_program(os.path.join(node.programs, "tidemark"), "verify", "two",
                       f"--repository={node.repository}")
    is_status(done, 0, "verify --repository without an agent")
    home = node.box.mkdir("home", 0o777)
    done = run_program(os.path.join(node.programs, "tidemark"), "verify", "--all",
                       f"--repository={node.repository}", user="postgres", HOME=home)
    is_status(done, 0, "by the server's user, without root")
    logs = [os.path.join(path, "log") for path, _, files in os.walk(home) if "log" in files]
    ok(logs and not any("cannot know" in pathlib.Path(log).read_text("utf-8") for log in logs),
       "which leaves marks while it reads")

    done = run_program(os.path.join(node.programs, "tidemark"), "verify", "two",
                       "--repository=file:///nonexistent/tidemark")
    ok(done.status in (EXIT["store"], EXIT["missing"]), f"a repository that is not there: exit "
       f"{done.status}")


def test_rights(node):
    """The server's user writes WAL, and cannot remove or withdraw what root has put."""
    root = snap.repository(node)
    names = [os.path.join(path, name) for path, dirs, files in os.walk(root)
             for name in dirs + files if not path.startswith(root + "/wal")]
    kinds = {os.path.relpath(name, root).split("/")[0] for name in names}
    ok(kinds >= {"tidemark.repo", "pack", "table", "volume", "snapshot", "wal", "reading"},
       f"{len(names)} names of every kind")
    script = ('while read -r n; do mv "$n" "$n-away" 2>/dev/null || continue; '
              'mv "$n-away" "$n"; echo "$n"; done; '
              'for d in . withdrawn snapshot key pin; do [ -w $d ] && echo "$d: may add"; done; :')
    done = subprocess.run(["sh", "-c", script], input="".join(f"{n}\n" for n in names), text=True,
                          user="postgres", group="postgres", extra_groups=[], cwd=root,
                          stdout=subprocess.PIPE, check=True)
    is_(done.stdout, "", "the server's user can move none of them away, and adds none")


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
    test_many(node)
    test_shared(node)
    test_all(node)
    test_sample(node)
    test_resume(node)
    test_mutilations(node, rng)
    test_gone(node)
    test_alone(node)
    test_rights(node)


run(main)
