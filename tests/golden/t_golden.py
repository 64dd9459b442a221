#!/usr/bin/env python3
"""The golden objects of the format: the writer still makes them, tidemark-inspect reads them and
refuses the bad ones, and the independent reader finds the bytes that the rule below gives.

    tests/golden/t_golden.py --update           writes tests/golden/v1 anew: only when the format
                                                changes
    tests/golden/t_golden.py --update-sealed    the same of tests/golden/sealed, an encrypted
                                                repository with the same volume

check: build=asan timeout=120
"""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
from tm import BUILD, diag, is_, like, need_programs, ok, run  # noqa: E402

V1 = os.path.join(HERE, "v1")
SEALED = os.path.join(HERE, "sealed")
TOOL = "tests/golden/tool_golden"
READER = os.path.join(HERE, "..", "lib", "tidemark_reader.py")
CHUNK, REGION, LAST = 65536, 64 << 20, 1536


def files_of(directory):
    return sorted(os.path.relpath(os.path.join(base, name), directory)
                  for base, _, names in os.walk(directory) for name in names)


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


def inspect(*args):
    """What a run of tidemark-inspect says, as one text; runs in v1, so that names are short."""
    done = subprocess.run([os.path.join(BUILD, "tidemark-inspect"), *args], cwd=V1, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return f"$ tidemark-inspect {' '.join(args)}\n{done.stdout}exit {done.returncode}\n"


def good_objects():
    return [f"repo/{name}" for name in files_of(os.path.join(V1, "repo"))] + ["marker"]


def bad_objects():
    return [f"bad/{name}" for name in files_of(os.path.join(V1, "bad"))]


def transcripts():
    """File in v1 -> the inspections that it records."""
    yield "inspect.txt", [("--entries", name) if "/table/" in name else (name,)
                          for name in good_objects()]
    yield "bad.txt", [(name,) for name in bad_objects()]


def test_writer():
    """Packs and WAL depend on the version of LZ4, records on fields that were added since."""
    with tempfile.TemporaryDirectory(prefix="tidemark-golden-", dir="/var/tmp") as fresh:
        done = subprocess.run([os.path.join(BUILD, TOOL), fresh], check=False)
        is_(done.returncode, 0, "the writer runs")
        is_(files_of(os.path.join(fresh, "repo")), files_of(os.path.join(V1, "repo")),
            "it makes the same objects")
        is_(files_of(os.path.join(fresh, "bad")), files_of(os.path.join(V1, "bad")),
            "and the same bad ones")
        for name in good_objects():
            if "/pack/" in name or "/wal/" in name or "/snapshot/" in name:
                continue
            is_(read(fresh, name) == read(V1, name), True, f"{name}: the same bytes")


def test_inspect():
    for name, runs in transcripts():
        want = read(V1, name).decode().split("$ tidemark-inspect ")[1:]
        is_(len(want), len(runs), f"{name} has a part for each object")
        for part, args in zip(want, runs):
            got = inspect(*args)
            if not ok(got == "$ tidemark-inspect " + part, f"inspect {args[-1]}"):
                diag(f"got:\n{got}want:\n{part}")
    for part in read(V1, "bad.txt").decode().split("$ tidemark-inspect ")[1:]:
        like(part, r"\nexit (14|19)\n$", f"{part.split()[0]} is corrupt or refused")
    by_name = inspect(f"--repository=file://{V1}/repo", "tidemark.repo")
    is_(by_name.split("\n")[1:], inspect("repo/tidemark.repo").split("\n")[1:],
        "an object by its name in a repository")
    like(inspect(f"--repository=file://{V1}/repo", "volume/none"), r"exit 15\n$", "no such object")
    like(inspect("none"), r"exit 15\n$", "a missing file")
    like(inspect("/dev/null"), r"exit 2\n$", "neither file nor device")
    like(inspect("."), r"exit 2\n$", "a directory")
    like(inspect(), r"hint: .*\nexit 2\n$", "no argument")
    like(inspect("--nonsense", "x"), r"'--nonsense'\n.*\nexit 2\n$", "an unknown option")
    like(inspect("--help"), r"usage: (.*\n)+exit 0\n$", "help")
    like(inspect("--version"), r"tidemark-inspect \d+\.\d+\.\d+\nexit 0\n$", "version")


def chunk(version):
    """The rule of tool_golden.c's fill_chunk()."""
    return bytes((i // 16 * 37 + i % 16 * version) % 253 for i in range(CHUNK))


def noise(size):
    state, out = 1, bytearray()
    for _ in range(size):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        out.append(state >> 24)
    return bytes(out)


def device(zero_first, third):
    """The volume's bytes: 64 MiB + one chunk + 1536 bytes."""
    image = bytearray(REGION + CHUNK + LAST)
    if not zero_first:
        image[:CHUNK] = chunk(1)
    image[3 * CHUNK:4 * CHUNK] = chunk(third)
    image[REGION:REGION + CHUNK] = chunk(3)
    image[REGION + CHUNK:] = noise(LAST)
    return hashlib.sha256(image).hexdigest()


def reader(directory, snapshot, volume="pgdata", *options):
    with tempfile.TemporaryDirectory(prefix="tidemark-golden-", dir="/var/tmp") as scratch:
        out = os.path.join(scratch, "out")
        done = subprocess.run([sys.executable, READER, directory, snapshot, volume, out, *options],
                              text=True, stderr=subprocess.PIPE, check=False)
        return done.stderr if done.returncode else hashlib.sha256(read(out)).hexdigest()


def test_reader():
    repo = os.path.join(V1, "repo")
    is_(reader(repo, "first"), device(False, 2), "the reader finds the first snapshot's bytes")
    is_(reader(repo, "32" * 16), device(True, 4), "and the second's, by id")
    is_(reader(repo, "second", "pgdata", "--check=none"), device(True, 4), "and without digests")
    like(reader(repo, "third"), "no snapshot 'third'", "there is no third")
    like(reader(repo, "first", "pgwal"), "no volume 'pgwal'", "nor another volume")
    with tempfile.TemporaryDirectory(prefix="tidemark-golden-", dir="/var/tmp") as scratch:
        copy = os.path.join(scratch, "repo")
        shutil.copytree(repo, copy)
        os.makedirs(os.path.join(copy, "withdrawn"), exist_ok=True)
        shutil.copy(os.path.join(copy, "withdrawn", "33" * 16),
                    os.path.join(copy, "withdrawn", "32" * 16))
        like(reader(copy, "second"), "no snapshot 'second'", "a withdrawn one is none")
        like(reader(copy, "32" * 16), "no snapshot", "nor by its id")
        is_(reader(copy, "first"), device(False, 2), "the other is not affected")


def test_sealed():
    """The same volume, encrypted: random salts make it another one each time it is written."""
    with tempfile.TemporaryDirectory(prefix="tidemark-golden-", dir="/var/tmp") as scratch:
        fresh = os.path.join(scratch, "fresh")
        os.mkdir(fresh)
        done = subprocess.run([os.path.join(BUILD, TOOL), fresh, "--sealed"], check=False)
        is_(done.returncode, 0, "the writer makes an encrypted repository")
        is_(files_of(os.path.join(fresh, "repo")), files_of(os.path.join(SEALED, "repo")),
            "with the same objects")
        for place, what in ((SEALED, "committed"), (fresh, "fresh")):
            repo, key = os.path.join(place, "repo"), f"--key-file={os.path.join(place, 'key')}"
            is_(reader(repo, "first", "pgdata", key), device(False, 2),
                f"{what}: the reader opens it")
            is_(reader(repo, "second", "pgdata", key), device(True, 4), "and its second snapshot")
        repo, key = os.path.join(SEALED, "repo"), os.path.join(scratch, "key")
        other = f"--key-file={os.path.join(fresh, 'key')}"
        like(reader(repo, "second", "pgdata", other), "not the one of this repo",
             "a wrong key file")
        like(reader(repo, "second"), "do not fit", "no key file")
        shutil.copyfile(os.path.join(SEALED, "key"), key)
        os.chmod(key, 0o600)
        access = f"--repository=file://{repo}", f"--key-file={key}"
        for name in files_of(repo):
            like(inspect(*access, name), r"\nexit 0\n$", f"inspect opens {name}")
        like(inspect(access[0], access[1][:-3] + "none", "volume/x"), r"exit 13\n$",
             "no such key file")
        shutil.copyfile(os.path.join(SEALED, "wal.key"), key)
        like(inspect(*access, "volume/x"), r"(?s)WAL only.*exit 13\n$", "the key file of WAL")


def test_reader_refuses(place, *key):
    """Each object that the second snapshot reads: one flipped bit, one byte cut, missing."""
    with tempfile.TemporaryDirectory(prefix="tidemark-golden-", dir="/var/tmp") as scratch:
        repo = os.path.join(scratch, "repo")
        shutil.copytree(os.path.join(place, "repo"), repo)

        def read_it(snapshot):
            return reader(repo, snapshot, "pgdata", *key)

        is_(read_it("second"), device(True, 4), "the copy is intact")
        for name in files_of(repo):
            # Each part of a pack and of a table pack is covered by who refers to it, but not the
            # dead parts; the copy of tidemark.repo, WAL and marks are not read.
            if name.startswith(("wal/", "tidemark", "withdrawn/", "key/")) or "31" * 16 in name:
                continue
            path = os.path.join(repo, name)
            data = read(path)
            os.chmod(path, 0o600)
            for what, damaged in (("bit", data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]),
                                  ("header", data[:100] + bytes([data[100] ^ 1]) + data[101:]),
                                  ("cut", data[:-1])):
                with open(path, "wb") as file:
                    file.write(damaged)
                # The header of a table pack is not read: its tables stand alone.
                alone = name.startswith("table/") and what == "header"
                want = device(True, 4) if alone else None
                got = read_it("32" * 16)
                ok(got == want if want else got.startswith("tidemark_reader: "),
                   f"{name.split('/')[0]} {what}: {got.strip()}")
            with open(path, "wb") as file:
                file.write(data)
        is_(read_it("second"), device(True, 4), "put right again")


def write_anew(directory, *options):
    shutil.rmtree(directory, ignore_errors=True)
    os.mkdir(directory)
    subprocess.run([os.path.join(BUILD, TOOL), directory, *options], check=True)
    for name in files_of(directory):
        os.chmod(os.path.join(directory, name), 0o644)


def update():
    write_anew(V1)
    for name, runs in transcripts():
        with open(os.path.join(V1, name), "w", encoding="utf-8") as file:
            file.writelines([inspect(*args) for args in runs])


def main():
    need_programs("tidemark-inspect", TOOL)
    test_writer()
    test_inspect()
    test_reader()
    test_sealed()
    test_reader_refuses(V1)
    test_reader_refuses(SEALED, f"--key-file={os.path.join(SEALED, 'key')}")


if sys.argv[1:] == ["--update"]:
    update()
elif sys.argv[1:] == ["--update-sealed"]:
    write_anew(SEALED, "--sealed")
else:
    run(main)
