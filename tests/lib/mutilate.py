#!/usr/bin/env python3
"""Mutilates a repository directory: the generated table of {kind of object} x {mutilation}.

    from mutilate import cases, mutilated

    for case in cases(repo_dir, snapshot_id, rng):      # 28 cases, random places
        with mutilated(case):                            # the damage; undone at the end
            result = node.cli("verify", tag)
        assert result.status in case.statuses and re.search(case.pattern, result.err)

Only bytes that a restore of this snapshot depends on are touched, and every mutilation changes what
they mean (a flipped bit of an LZ4 block may decode to the same bytes: such bits are not chosen), so
each case must be refused. By hand:

    mutilate.py REPO_DIR SNAPSHOT [--seed=N]                      lists the cases
    mutilate.py REPO_DIR SNAPSHOT --apply KIND WAY [--seed=N]     does one and leaves it
"""
import argparse
import contextlib
import glob
import os
import random
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tidemark_reader as reader  # noqa: E402

KINDS = ("header", "chunk", "table", "manifest", "record", "wal", "repo")
WAYS = ("bit", "cut", "missing", "swapped")
GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "v1", "repo")
CORRUPT, MISSING, REFUSED = 14, 15, 19


class Case:
    """One mutilation: changes maps an object's name to its new bytes, None to remove it."""

    def __init__(self, directory, kind, way, changes, text):
        self.directory, self.kind, self.way, self.changes = directory, kind, way, changes
        self.name = f"{kind} {way}"
        self.text = text  # for a person: object and place
        self.statuses = {CORRUPT, MISSING}  # of a program that meets it

    @property
    def pattern(self):
        """A regular expression that an error text should match: it names the object. A record that
        is gone or damaged can be found by nothing, and of a repository nothing else is known."""
        if self.kind in ("record", "repo"):
            return "."
        return "|".join(re.escape(name.split("/")[-1] if self.kind == "wal" else name)
                        for name in self.changes)

    def __repr__(self):
        return f"{self.name}: {self.text}"


def load(directory, name):
    with open(os.path.join(directory, name), "rb") as file:
        return file.read()


def store(directory, name, data, like):
    """Replaces the object by rename, with owner and mode of the stat result like."""
    path = os.path.join(directory, name)
    if data is None:
        os.unlink(path)
        return
    part = f"{os.path.dirname(path)}/.mutilate-{os.getpid()}"
    with open(part, "wb") as file:
        file.write(data)
    os.chmod(part, like.st_mode & 0o7777)
    if os.geteuid() == 0:
        os.chown(part, like.st_uid, like.st_gid)
    os.rename(part, path)


@contextlib.contextmanager
def mutilated(case):
    """Does the damage and undoes it, whatever happens in between."""
    undo = []
    try:
        for name, data in case.changes.items():
            old = load(case.directory, name)
            like = os.stat(os.path.join(case.directory, name))
            undo.append((name, old, like))
            store(case.directory, name, data, like)
        yield case
    finally:
        for name, old, like in reversed(undo):
            store(case.directory, name, old, like)


class Places:
    """Where the parts of a snapshot lie: (object, first byte, length) of each kind."""

    def __init__(self, directory, snapshot):
        self.directory = directory
        self.repository = reader.Repository(directory)
        self.record = reader.find_record(self.repository, snapshot)
        self.manifests, self.tables, self.chunks, packs = [], [], [], set()
        for entry in self.record["volumes"]:
            volume = reader.Volume(self.repository, self.record, entry["name"])
            self.manifests.append(f"volume/{volume.id_text}/{self.record['id']}")
            for index, (owner, number, offset, size, _, _) in enumerate(volume.places):
                name = f"table/{volume.id_text}/{owner.hex()}/{number:08x}"
                self.tables.append((name, offset, size, f"region {index}"))
                references, entries, lengths = volume.region(index)
                for i, (_, pack, at, word, _) in enumerate(entries):
                    if word >> 24 in (0, reader.RAW):
                        owner, number, _ = references[pack]
                        name = f"pack/{volume.id_text}/{owner.hex()}/{number:08x}"
                        packs.add(name)
                        self.chunks.append((name, at, word & 0xFFFFFF, f"region {index} chunk {i}",
                                            0 if word >> 24 else lengths[i]))
        self.packs = sorted(packs)
        self.record_name = "snapshot/{cluster}/{node}/{id}.json".format(**self.record)
        self.wal = self.wal_names()

    def objects(self, pattern):
        return sorted(os.path.relpath(path, self.directory)
                      for path in glob.glob(os.path.join(self.directory, pattern)))

    def wal_names(self):
        """Objects of the segments from start to tag; of a repository without them, any."""
        server = self.record["postgresql"]
        segment = server["segment_size"]
        first, last = (int(a, 16) << 32 | int(b, 16) for a, b in
                       (server["start_lsn"].split("/"), server["tag_lsn"].split("/")))
        per_log = (1 << 32) // segment
        found = []
        for number in range(first // segment, (last - 1) // segment + 1):
            name = (f"wal/{self.record['cluster']}/{server['system_id']}/{server['timeline']:08X}/"
                    f"{server['timeline']:08X}{number // per_log:08X}{number % per_log:08X}")
            if os.path.exists(os.path.join(self.directory, name)):
                found.append(name)
        return found or self.objects("wal/*/*/*/*")


# --- what one flipped bit, a cut, … is ------------------------------------------------------------
def flip(data, bit):
    return data[:bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1:]


def block_means(stored, plain_len):
    """Plain bytes of an LZ4 block, or None; plain_len 0: stored raw."""
    if not plain_len:
        return stored
    try:
        return reader.lz4_decompress(stored, plain_len)
    except reader.Bad:
        return None


def flip_block(rng, data, at, size, plain_len):
    """One bit of a stored block whose change is a change of the plain bytes."""
    old = block_means(data[at:at + size], plain_len)
    while True:
        bit = rng.randrange(8 * size)
        if block_means(flip(data[at:at + size], bit), plain_len) != old:
            return flip(data, 8 * at + bit), f"bit {bit % 8} of byte {at + bit // 8}"


def overlay(data, at, size, other):
    """Another's stored bytes in this place, as many as fit."""
    other = other[:size]
    return data[:at] + other + data[at + len(other):]


def another(rng, places, own, candidates, golden):
    """Bytes of another object of the same kind: of this repository, else of the golden one."""
    mine = load(places.directory, own)
    others = [n for n in candidates if n != own and load(places.directory, n) != mine]
    if others:
        name = rng.choice(others)
        return load(places.directory, name), name
    name = sorted(os.path.relpath(path, GOLDEN)
                  for path in glob.glob(os.path.join(GOLDEN, golden)))[0]
    return load(GOLDEN, name), f"{name} of another repository"


def whole(rng, places, kind, way, name, candidates, golden):
    """Mutilation of an object of which every byte counts."""
    data = load(places.directory, name)
    if way == "bit":
        bit = rng.randrange(8 * len(data))
        changed, text = flip(data, bit), f"bit {bit % 8} of byte {bit // 8}"
    elif way == "cut":
        keep = rng.randrange(len(data))
        changed, text = data[:keep], f"cut to {keep} of {len(data)} bytes"
    elif way == "missing":
        changed, text = None, "removed"
    else:
        changed, other = another(rng, places, name, candidates, golden)
        text = f"replaced by {other}"
    return Case(places.directory, kind, way, {name: changed}, f"{name}: {text}")


def header_case(rng, places, way):
    """The header of a pack or of a table pack: the only kinds whose headers cover nothing else."""
    tables = sorted({name for name, *_ in places.tables})
    name = rng.choice(places.packs + tables)
    data = load(places.directory, name)
    if way == "bit":
        bit = rng.randrange(8 * 192)
        changed, text = flip(data, bit), f"bit {bit % 8} of byte {bit // 8}"
    elif way == "cut":
        keep = rng.randrange(192)
        changed, text = data[:keep], f"cut to {keep} bytes"
    elif way == "missing":
        changed, text = data[192:], "without its header"
    else:
        kind = name.split("/")[0]
        other, source = another(rng, places, name, places.objects(f"{kind}/*/*/*"), f"{kind}/*/*/*")
        changed, text = other[:192] + data[192:], f"with the header of {source}"
    return Case(places.directory, "header", way, {name: changed}, f"{name}: {text}")


def part_case(rng, places, kind, way, parts):
    """A chunk in a pack, or a region table in a table pack."""
    part = rng.choice(parts)
    name, at, size, where = part[:4]
    data = load(places.directory, name)
    own = data[at:at + size]
    if way == "bit":
        changed, text = flip_block(rng, data, at, size, part[4] if kind == "chunk" else 0)
    elif way == "cut":
        keep = at + rng.randrange(size)
        changed, text = data[:keep], f"cut to {keep} of {len(data)} bytes"
    elif way == "missing":
        changed, text = None, "removed"
    else:
        plain_len = part[4] if kind == "chunk" else 0
        for other in rng.sample(parts, len(parts)):
            stored = load(places.directory, other[0])[other[1]:other[1] + other[2]]
            new = overlay(own, 0, size, stored)
            if new != own and block_means(new, plain_len) != block_means(own, plain_len):
                changed, text = overlay(data, at, size, stored), f"bytes of {other[0]} {other[3]}"
                break
        else:
            changed, text = overlay(data, at, size, bytes(b ^ 0xFF for b in own)), "other bytes"
    return Case(places.directory, kind, way, {name: changed}, f"{name} {where}: {text}")


def wal_case(rng, places, way):
    name = rng.choice(places.wal)
    if way != "bit":
        return whole(rng, places, "wal", way, name, places.objects("wal/*/*/*/*"), "wal/*/*/*/*")
    data = load(places.directory, name)
    blocks, at = [(0, 384, 0)], 384
    raw_len = int.from_bytes(data[192:200], "little")
    while raw_len:
        plain, word = min(raw_len, 65536), int.from_bytes(data[at:at + 4], "little")
        size = word & 0x7FFFFFFF
        blocks += [(at, 4, 0), (at + 4, size, 0 if word >> 31 else plain)]
        at, raw_len = at + 4 + size, raw_len - plain
    changed, text = flip_block(rng, data, *rng.choice(blocks))
    return Case(places.directory, "wal", way, {name: changed}, f"{name}: {text}")


def repo_case(rng, places, way):
    """Both copies: one alone is made good by the other."""
    case = whole(rng, places, "repo", way, "tidemark.repo", [], "tidemark.repo")
    if way == "swapped":  # a good one, of a repository with another id
        own = load(places.directory, "tidemark.repo")
        head = own[:32] + bytes(b ^ 0xFF for b in own[32:48]) + own[48:176]
        case.changes["tidemark.repo"] = head + reader.PLAIN.digest(head) + own[192:]
        case.text = "tidemark.repo: replaced by one with another id"
        case.statuses = {CORRUPT, MISSING, REFUSED}
    case.changes["tidemark.repo.copy"] = case.changes["tidemark.repo"]
    case.text += ", and its copy"
    return case


def make_case(rng, places, kind, way):
    if kind == "header":
        return header_case(rng, places, way)
    if kind == "chunk":
        return part_case(rng, places, kind, way, places.chunks)
    if kind == "table":
        return part_case(rng, places, kind, way, places.tables)
    if kind == "manifest":
        return whole(rng, places, kind, way, rng.choice(places.manifests),
                     places.objects("volume/*/*"), "volume/*/*")
    if kind == "record":
        return whole(rng, places, kind, way, places.record_name,
                     places.objects("snapshot/*/*/*.json"), "snapshot/*/*/*.json")
    return wal_case(rng, places, way) if kind == "wal" else repo_case(rng, places, way)


def cases(directory, snapshot, rng, kinds=KINDS, ways=WAYS):
    """Every kind x way of this snapshot, as a list. Kinds of which the repository has no object
    (WAL of a snapshot without archive) are left out. rng: random.Random of the caller's seed."""
    places = Places(directory, snapshot)
    has = {"wal": places.wal, "chunk": places.chunks}
    return [make_case(rng, places, kind, way)
            for kind in kinds if has.get(kind, True) for way in ways]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("repository")
    parser.add_argument("snapshot", help="id or tag")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--apply", nargs=2, metavar=("KIND", "WAY"))
    options = parser.parse_args()
    for case in cases(options.repository, options.snapshot, random.Random(options.seed)):
        if not options.apply:
            print(case)
        elif [case.kind, case.way] == options.apply:
            print(case)
            for name, data in case.changes.items():
                like = os.stat(os.path.join(options.repository, name))
                store(options.repository, name, data, like)


if __name__ == "__main__":
    main()
