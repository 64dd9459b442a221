#!/usr/bin/env python3
"""Writes the corpora of the format's fuzz targets from the golden objects: run it after the format
changed. Other targets keep their corpora by hand; nothing of theirs is touched."""
import hashlib
import os
import shutil
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
V1 = os.path.join(HERE, "..", "golden", "v1")
SIZE_MAX = 16384  # libFuzzer is slow on large inputs


def objects():
    for base, _, names in sorted(os.walk(V1)):
        for name in sorted(names):
            path = os.path.join(base, name)
            if not name.endswith(".txt"):
                with open(path, "rb") as file:
                    yield os.path.relpath(path, V1).replace("/", "-")[-80:], file.read()


def table_cache(chunks, entries, packs):
    """A sealed table file as io/table.c lays it out: header page, entries, pack references."""
    head = struct.pack("<8sII16s16sQIIQII", b"TMCACHE", 1, 4096, b"v" * 16, b"s" * 16,
                       (chunks - 1) * 65536 + 512, 65536, 64 << 20, chunks, packs, 0)
    head = head.ljust(4096 - 32, b"\0")
    rest = b"".join(entries) + b"".join(struct.pack("<16sII", b"s" * 16, i, 0)
                                        for i in range(packs))
    return head + hashlib.sha256(head + rest).digest() + rest


def tables():
    free = struct.pack("<16sIII", bytes(16), 0, 0, 2 << 24) + bytes(4)
    lz4 = struct.pack("<16sIIII", b"d" * 16, 1, 192, 100, 0)
    raw = struct.pack("<16sIIII", b"d" * 16, 0, 292, 512 | 4 << 24, 0)
    yield "free", table_cache(2, [free, free], 0)
    yield "data", table_cache(3, [lz4, free, raw], 2)


def seeds():
    """(target, name, bytes)"""
    for name, data in objects():
        yield "header", name, data[:192]
        kind = data[:8]
        target = {b"TMREPO\0\0": "repo", b"TMVOLUME": "manifest", b"TMJSON\0\0": "json",
                  b"TMWAL\0\0\0": "wal", b"TMMARKER": "marker"}.get(kind)
        if target:
            yield target, name, data
        if kind == b"TMTABLE\0":
            yield "region", name, data[192:]
        if kind == b"TMPACK\0\0":  # the first chunk begins at 192
            yield "codec", name, b"\xff\xff" + data[192:]
        yield "codec", name, len(data).to_bytes(2, "little", signed=False) + data[:4000]
    for name, data in tables():
        yield "table", name, data


def main():
    written = set()
    for target, name, data in seeds():
        directory = os.path.join(HERE, "corpus", target)
        if target not in written:
            shutil.rmtree(directory, ignore_errors=True)
            os.makedirs(directory)
            written.add(target)
        if len(data) <= SIZE_MAX:
            with open(os.path.join(directory, name), "wb") as file:
                file.write(data)


main()
