#!/usr/bin/env python3
"""Reads a volume out of a repository: the oracle of the tests.

Written from io/FORMAT.md alone and sharing no code with io/: Python's standard library only, with
its own LZ4 block decoder and XXH3-128. Checksums and SHA-256 of every object that it touches are
always checked; the digests of chunks as --check says.

    tidemark_reader.py REPO_DIR SNAPSHOT_ID_OR_TAG VOLUME OUT_FILE [--check=all|none|N] [--map=FILE]
                       [--key-file=FILE]

OUT_FILE becomes a sparse file of the volume's size: ZERO and FREE chunks are holes. N checks every
N-th chunk. --map writes one line a chunk: "zero", "free", or its digest, "raw" or "lz4". Exit
status 1 and one line on stderr when the repository is not what it should be.
"""
import argparse
import glob
import hashlib
import json
import os
import struct
import sys

import tidemark_cipher

M64 = (1 << 64) - 1
P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07d"
    "ccff7221b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e"
    "3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac83"
    "34d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce"
    "45cb3a8f95160428afd7fbcabb4b407e")


# --- XXH3-128 (xxHash's specification, lengths from 17 bytes) ------------------------------------
def u64(data, at):
    return int.from_bytes(data[at:at + 8], "little")


def fold(a, b):
    product = a * b
    return (product & M64) ^ (product >> 64)


def avalanche(h):
    h = (h ^ (h >> 37)) * 0x165667919E3779F9 & M64
    return h ^ (h >> 32)


def xxh3_short(data, seed):
    """17 to 240 bytes."""
    size = len(data)
    low, high = size * P64_1 & M64, 0

    def mix16(at, key, seed):
        return fold(u64(data, at) ^ (u64(SECRET, key) + seed & M64),
                    u64(data, at + 8) ^ (u64(SECRET, key + 8) - seed & M64))

    def mix32(first, second, key, seed):
        nonlocal low, high
        low, high = low + mix16(first, key, seed), high + mix16(second, key + 16, seed)
        low = low & M64 ^ (u64(data, second) + u64(data, second + 8) & M64)
        high = high & M64 ^ (u64(data, first) + u64(data, first + 8) & M64)

    if size <= 128:
        for i in range((size - 1) // 32, -1, -1):
            mix32(16 * i, size - 16 * (i + 1), 32 * i, seed)
    else:
        for i in range(size // 32):
            mix32(32 * i, 32 * i + 16, 32 * i if i < 4 else 3 + 32 * (i - 4), seed)
            if i == 3:
                low, high = avalanche(low), avalanche(high)
        mix32(size - 16, size - 32, 103, -seed & M64)
    last = low * P64_1 + high * P64_4 + (size - seed) * P64_2
    return (-avalanche(last & M64) & M64) << 64 | avalanche(low + high & M64)


class Xxh3:
    """Lengths above 240 bytes with one seed; the secret is derived once."""

    def __init__(self, seed):
        self.seed = seed
        self.key = key = b"".join(
            struct.pack("<QQ", u64(SECRET, i) + seed & M64, u64(SECRET, i + 8) - seed & M64)
            for i in range(0, 192, 16))
        self.words = [u64(key, 8 * (n + lane)) for n in range(16) for lane in range(8)]
        self.last = struct.unpack_from("<8Q", key, 121)
        self.scramble = struct.unpack_from("<8Q", key, 128)

    @staticmethod
    def accumulate(acc, values, words):
        mixed = [v ^ w for v, w in zip(values, words)]
        products = [(m & 0xFFFFFFFF) * (m >> 32) for m in mixed]
        return [(acc[i] + sum(products[i::8]) + sum(values[i ^ 1::8])) & M64 for i in range(8)]

    def merge(self, acc, at, start):
        words = struct.unpack_from("<8Q", self.key, at)
        for i in range(0, 8, 2):
            start += fold(acc[i] ^ words[i], acc[i + 1] ^ words[i + 1])
        return avalanche(start & M64)

    def digest(self, data):
        size = len(data)
        if size <= 240:
            return xxh3_short(data, self.seed).to_bytes(16, "big")
        acc = [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1]
        blocks = (size - 1) // 1024
        for block in range(blocks):
            acc = self.accumulate(acc, struct.unpack_from("<128Q", data, 1024 * block), self.words)
            acc = [((a ^ (a >> 47)) ^ s) * P32_1 & M64 for a, s in zip(acc, self.scramble)]
        stripes = (size - 1 - 1024 * blocks) // 64
        if stripes:
            rest = struct.unpack_from("<%dQ" % (8 * stripes), data, 1024 * blocks)
            acc = self.accumulate(acc, rest, self.words)
        acc = self.accumulate(acc, struct.unpack_from("<8Q", data, size - 64), self.last)
        low = self.merge(acc, 11, size * P64_1)
        high = self.merge(acc, 192 - 64 - 11, ~(size * P64_2) & M64)
        return (high << 64 | low).to_bytes(16, "big")


# --- LZ4 block format ----------------------------------------------------------------------------
def lz4_decompress(data, size):
    out = bytearray()
    at, end = 0, len(data)

    def length(nibble):
        nonlocal at
        total = nibble
        while nibble == 15:
            extra = data[at]
            at += 1
            total += extra
            if extra != 255:
                break
        return total

    try:
        while True:
            token = data[at]
            at += 1
            literals = length(token >> 4)
            if at + literals > end:
                raise Bad("LZ4: literals behind the end")
            out += data[at:at + literals]
            at += literals
            if at == end:
                break
            distance = data[at] | data[at + 1] << 8
            at += 2
            match = length(token & 15) + 4
            if distance == 0 or distance > len(out) or len(out) + match > size:
                raise Bad("LZ4: match outside of the block")
            start = len(out) - distance
            if match > distance:  # the match overlaps itself: it repeats its first bytes
                out += (out[start:] * (match // distance + 1))[:match]
            else:
                out += out[start:start + match]
    except IndexError:
        raise Bad("LZ4: cut") from None
    if len(out) != size:
        raise Bad(f"LZ4: {len(out)} bytes instead of {size}")
    return bytes(out)


# --- the structures of FORMAT.md -----------------------------------------------------------------
class Bad(Exception):
    """The repository is not what it should be."""


def need(condition, text):
    if not condition:
        raise Bad(text)


PLAIN = Xxh3(0)
ZERO_ID = bytes(16)
ZERO, FREE, RAW = 1, 2, 4


class Header:
    """FORMAT.md section 3."""

    def __init__(self, data, magic, what):
        need(len(data) >= 192, f"{what}: cut")
        need(data[:8] == magic.ljust(8, b"\0"), f"{what}: wrong magic {data[:8]!r}")
        need(PLAIN.digest(data[:176]) == data[176:192], f"{what}: wrong header checksum")
        version, size, key, flags, self.body_len = struct.unpack_from("<IIIIQ", data, 8)
        need((version, size, flags) == (1, 192, 0), f"{what}: unknown version or flags")
        self.key, self.salt = key, data[120:152]
        need(bool(key) == any(self.salt), f"{what}: salt and key do not fit")
        need(not any(data[84:88]) and not any(data[152:176]), f"{what}: reserved bytes")
        self.repository, self.volume, self.snapshot = data[32:48], data[48:64], data[64:80]
        self.number = struct.unpack_from("<I", data, 80)[0]
        self.digest = data[88:120]

    def whole(self, data, what):
        need(len(data) == 192 + self.body_len, f"{what}: wrong length {len(data)}")
        need(hashlib.sha256(data[192:]).digest() == self.digest, f"{what}: wrong SHA-256")


class Repository:
    """Section 4, and access to objects by name."""

    def __init__(self, directory, key_file=None):
        self.directory = directory
        self.keys = None
        try:
            self.parse(self.read("tidemark.repo"))
        except (Bad, OSError):
            self.parse(self.read("tidemark.repo.copy"))
        need(bool(key_file) == bool(self.cipher), "key file and cipher do not fit")
        if self.cipher:
            with open(key_file, encoding="utf-8") as file:
                self.read_ring(tidemark_cipher.read_key_file(file.read()))

    def read_ring(self, secrets):
        """Section 13: the newest generation, or its copy."""
        names = [name.split(".")[0] for name in os.listdir(self.path("key"))]
        name = f"key/{max(names)}"
        try:
            data = self.read(name)
            header = self.header(data, b"TMKEYS", name, number=int(max(names), 16))
            header.whole(data, name)
        except (Bad, OSError):
            data = self.read(name + ".copy")
            header = self.header(data, b"TMKEYS", name, number=int(max(names), 16))
            header.whole(data, name)
        self.keys = tidemark_cipher.Keys(self.object, secrets, header.number, data[192:])

    def plain(self, data, magic, name):
        """The plain form of a manifest or a JSON object."""
        if not self.keys:
            return data
        header = Header(data, magic, name)
        need(header.key and len(data) == 192 + header.body_len, f"{name}: not sealed, or cut")
        gcm = self.keys.of_object(name, header.key, header.salt)
        body = self.keys.open_part(gcm, name, 192, data[192:], data[:192])
        head = (data[:16] + bytes(8) + struct.pack("<Q", len(body)) + data[32:88]
                + hashlib.sha256(body).digest() + bytes(56))
        return head + PLAIN.digest(head) + body

    def parse(self, data):
        header = Header(data, b"TMREPO", "tidemark.repo")
        header.whole(data, "tidemark.repo")
        need(len(data) == 256, "tidemark.repo: wrong length")
        self.chunk_size, self.region_size, seed, _, self.cipher = struct.unpack_from(
            "<IIQqI", data, 192)
        need(self.chunk_size in (16384, 32768, 65536) and self.region_size == 64 << 20, "geometry")
        need(self.cipher in (0, 1) and not any(data[220:]), "tidemark.repo: cipher or reserved")
        self.id, self.hash, self.object = header.repository, Xxh3(seed), data

    def path(self, name):
        return os.path.join(self.directory, name)

    def read(self, name, offset=0, size=-1):
        with open(self.path(name), "rb") as file:
            file.seek(offset)
            data = file.read(size)
        need(size < 0 or len(data) == size, f"{name}: cut: {len(data)} of {size} bytes at {offset}")
        return data

    def header(self, data, magic, name, volume=ZERO_ID, snapshot=ZERO_ID, number=0):
        """The header of an object, which must be the one that its name says."""
        header = Header(data, magic, name)
        need(header.repository == self.id, f"{name}: of another repository")
        need((header.volume, header.snapshot, header.number) == (volume, snapshot, number),
             f"{name}: it is another object")
        return header


def text_id(text):
    return bytes.fromhex(text) if len(text) == 32 else ZERO_ID


def find_record(repository, wanted):
    """Section 8: the record with this id or tag."""
    found = []
    for path in sorted(glob.glob(repository.path("snapshot/*/*/*.json"))):
        name = os.path.relpath(path, repository.directory)
        identity = os.path.basename(path)[:-len(".json")]
        if os.path.exists(repository.path(f"withdrawn/{identity}")):
            continue  # section 2: no snapshot any more
        by_id = wanted == identity
        try:
            data = repository.plain(repository.read(name), b"TMJSON", name)
            header = repository.header(data, b"TMJSON", name, ZERO_ID, text_id(identity), 1)
            header.whole(data, name)
            record = json.loads(data[192:])
            need(record["format"] == 1 and record["id"] == identity, f"{name}: wrong id or format")
        except (Bad, ValueError, KeyError) as error:
            if by_id:
                raise Bad(str(error)) from None
            continue  # another snapshot's damage is not ours
        if by_id or record["tag"] == wanted:
            found.append(record)
    need(found, f"no snapshot '{wanted}'")
    need(len(found) == 1, f"'{wanted}' is ambiguous")
    return found[0]


class Volume:
    """Sections 5 to 7: one volume of a snapshot."""

    def __init__(self, repository, record, name):
        self.repository = repository
        entry = [v for v in record["volumes"] if v["name"] == name]
        need(len(entry) == 1, f"no volume '{name}' in this snapshot")
        self.id = text_id(entry[0]["id"])
        self.id_text = self.id.hex()
        what = f"volume/{self.id_text}/{record['id']}"
        data = repository.plain(repository.read(what), b"TMVOLUME", what)
        digest = hashlib.sha256(data).hexdigest()
        need(digest == entry[0]["manifest_sha256"], f"{what}: not the record's")
        header = repository.header(data, b"TMVOLUME", what, self.id, text_id(record["id"]))
        header.whole(data, what)
        need(len(data) >= 448, f"{what}: cut")
        self.size, chunk_size, region_size, regions, packs = struct.unpack_from("<QIIII", data, 192)
        need(chunk_size == repository.chunk_size and region_size == repository.region_size,
             f"{what}: other geometry than the repository's")
        need(self.size and self.size % 512 == 0 and regions == -(-self.size // region_size),
             f"{what}: impossible size")
        origins = struct.unpack_from("<I", data, 192 + 168)[0]
        ends = 448 + 64 * regions, 448 + 64 * regions + 40 * packs
        need(len(data) == ends[1] + 56 * origins, f"{what}: wrong length")
        need(bool(origins) == bool(repository.keys), f"{what}: origins and cipher do not fit")
        need(not any(data[192 + 172:448]), f"{what}: reserved bytes")
        self.places = list(struct.iter_unpack("<16sIIII32s", data[448:ends[0]]))
        listed = list(struct.iter_unpack("<16sIIQQ", data[ends[0]:ends[1]]))
        self.origins = {snapshot: (key, salt) for snapshot, key, _, salt
                        in struct.iter_unpack("<16sII32s", data[ends[1]:])}
        self.tag_len = 16 if repository.keys else 0
        self.ciphers = {}
        need(all(a[:2] < b[:2] for a, b in zip(listed, listed[1:])), f"{what}: packs not in order")
        self.packs = {pack[:2]: pack for pack in listed}
        self.files = {}

    def open_part(self, name, snapshot, offset, data):
        """The plain bytes of a part of a pack or a table pack."""
        keys = self.repository.keys
        if not keys:
            return data
        if name not in self.ciphers:
            need(snapshot in self.origins, f"{name}: has no origin")
            self.ciphers[name] = keys.of_object(name, *self.origins[snapshot])
        return keys.open_part(self.ciphers[name], name, offset, data)

    def region(self, index):
        """The (pack list, entries, plain lengths) of one region."""
        snapshot, number, offset, size, zero, digest = self.places[index]
        what = f"table/{self.id_text}/{snapshot.hex()}/{number:08x} region {index}"
        need(zero == 0 and offset >= 192, f"{what}: impossible place")
        data = self.repository.read(what.split()[0], offset, size + self.tag_len)
        data = self.open_part(what.split()[0], snapshot, offset, data)
        need(hashlib.sha256(data).digest() == digest, f"{what}: wrong SHA-256")
        need(size >= 64 and data[:8] == b"TMREGION" and PLAIN.digest(data[:48]) == data[48:64],
             f"{what}: no region table")
        version, header_len, position, chunk_size, chunks, packs, last, flags = struct.unpack_from(
            "<8I", data, 8)
        need((version, header_len, flags) == (1, 64, 0) and not any(data[40:48]), f"{what}: new")
        bytes_here = min(64 << 20, self.size - index * (64 << 20))
        need(position == index and chunk_size == self.repository.chunk_size
             and chunks == -(-bytes_here // chunk_size)
             and last == bytes_here - (chunks - 1) * chunk_size
             and size == 64 + 24 * packs + 32 * chunks, f"{what}: not the table of this place")
        references = list(struct.iter_unpack("<16sII", data[64:64 + 24 * packs]))
        entries = list(struct.iter_unpack("<16sIIII", data[64 + 24 * packs:]))
        return references, entries, [chunk_size] * (chunks - 1) + [last]

    def stored(self, reference, offset, size):
        """Bytes of a pack, whose header is checked when it is opened."""
        snapshot, number, zero = reference
        name = f"pack/{self.id_text}/{snapshot.hex()}/{number:08x}"
        if name not in self.files:
            need(zero == 0 and (snapshot, number) in self.packs, f"{name}: not in the manifest")
            if len(self.files) >= 64:
                self.files.pop(next(iter(self.files))).close()
            file = self.files[name] = open(self.repository.path(name), "rb")
            head = file.read(192)
            header = self.repository.header(head, b"TMPACK", name, self.id, snapshot, number)
            need((header.key, header.salt) == self.origins.get(snapshot, (0, bytes(32))),
                 f"{name}: not sealed as the manifest says")
            size_now = os.fstat(file.fileno()).st_size
            need(size_now == 192 + header.body_len == self.packs[snapshot, number][3],
                 f"{name}: wrong length")
        self.files[name].seek(offset)
        data = self.files[name].read(size + self.tag_len)
        need(len(data) == size + self.tag_len, f"{name}: cut")
        return self.open_part(name, snapshot, offset, data)

    def chunk(self, references, entry, plain_len, check):
        """The plain bytes of a chunk, or None for ZERO and FREE."""
        digest, pack, offset, len_flags, zero = entry
        size, flags = len_flags & 0xFFFFFF, len_flags >> 24
        need(zero == 0 and flags in (0, ZERO, FREE, RAW), f"unknown flags {flags}")
        if flags & (ZERO | FREE):
            need(entry[:4] == (ZERO_ID, 0, 0, flags << 24), "no data, but a place")
            return None
        need(pack < len(references) and offset >= 192, "impossible place")
        need(size == plain_len if flags & RAW else 0 < size < plain_len, f"{size} stored bytes")
        data = self.stored(references[pack], offset, size)
        if not flags & RAW:
            data = lz4_decompress(data, plain_len)
        need(not check or self.repository.hash.digest(data) == digest, "wrong digest")
        return data

    def read(self, check_every, out, entry_map):
        """Writes all chunks into the file out, which reads back as zeros now."""
        count = 0
        for index in range(len(self.places)):
            references, entries, lengths = self.region(index)
            for i, (entry, plain_len) in enumerate(zip(entries, lengths)):
                check = check_every and count % check_every == 0
                count += 1
                try:
                    data = self.chunk(references, entry, plain_len, check)
                except (Bad, OSError, ValueError) as error:
                    raise Bad(f"region {index} chunk {i}: {error}") from None
                flags = entry[3] >> 24
                if entry_map:
                    kind = {ZERO: "zero", FREE: "free", RAW: "raw"}.get(flags, "lz4")
                    entry_map.write(f"{entry[0].hex() + ' ' if data else ''}{kind}\n")
                if data:
                    out.seek(index * (64 << 20) + i * self.repository.chunk_size)
                    out.write(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("repository")
    parser.add_argument("snapshot", help="id or tag")
    parser.add_argument("volume", help="name")
    parser.add_argument("out")
    parser.add_argument("--check", default=1, help="digests: all, none, or every N-th chunk",
                        type=lambda text: int({"all": 1, "none": 0}.get(text, text)))
    parser.add_argument("--map", help="file for one line a chunk")
    parser.add_argument("--key-file", help="of an encrypted repository")
    options = parser.parse_args()
    try:
        repository = Repository(options.repository, options.key_file)
        volume = Volume(repository, find_record(repository, options.snapshot), options.volume)
        with open(options.out, "wb") as out, open(options.map or os.devnull, "w") as entry_map:
            out.truncate(volume.size)
            volume.read(options.check, out, entry_map if options.map else None)
    except (Bad, OSError, ValueError) as error:
        print(f"tidemark_reader: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
