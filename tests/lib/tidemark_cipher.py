"""AES-256-GCM, HKDF and key rings for the independent reader: written from FORMAT.md section 13,
FIPS 197, NIST SP 800-38D and RFC 5869 alone. Slow: a second a megabyte and more."""
import hashlib
import hmac
import struct


def hkdf(secret, info, size, salt=b""):
    key = hmac.new(salt or bytes(32), secret, hashlib.sha256).digest()
    out, block, counter = b"", b"", 1
    while len(out) < size:
        block = hmac.new(key, block + info + bytes([counter]), hashlib.sha256).digest()
        out, counter = out + block, counter + 1
    return out[:size]


# --- AES-256, encryption only --------------------------------------------------------------------
def _make_tables():
    exp, value = [0] * 512, 1
    log = [0] * 256
    for i in range(255):
        exp[i] = exp[i + 255] = value
        log[value] = i
        value ^= (value << 1) ^ (0x11B if value & 0x80 else 0)
    sbox = []
    for byte in range(256):
        inverse = exp[255 - log[byte]] if byte else 0
        mixed = 0x63
        for shift in range(5):
            mixed ^= (inverse << shift | inverse >> (8 - shift)) & 0xFF
        sbox.append(mixed)
    rows = [[], [], [], []]
    for byte in sbox:
        twice = (byte << 1) ^ (0x11B if byte & 0x80 else 0)
        word = twice << 24 | byte << 16 | byte << 8 | (byte ^ twice)
        for i in range(4):
            rows[i].append((word >> 8 * i | word << 32 - 8 * i) & 0xFFFFFFFF)
    return sbox, rows


SBOX, (T0, T1, T2, T3) = _make_tables()


class Aes256:
    def __init__(self, key):
        words = list(struct.unpack(">8I", key))
        constant = 1
        for i in range(8, 60):
            word = words[i - 1]
            if i % 8 == 0:
                word = (word << 8 | word >> 24) & 0xFFFFFFFF
            if i % 4 == 0:
                word = sum(SBOX[word >> shift & 0xFF] << shift for shift in (0, 8, 16, 24))
            if i % 8 == 0:
                word ^= constant << 24
                constant <<= 1
            words.append(words[i - 8] ^ word)
        self.words = words

    def encrypt(self, block):
        keys = self.words
        a, b, c, d = (x ^ k for x, k in zip(struct.unpack(">4I", block), keys))
        for i in range(4, 56, 4):
            a, b, c, d = (
                T0[a >> 24] ^ T1[b >> 16 & 255] ^ T2[c >> 8 & 255] ^ T3[d & 255] ^ keys[i],
                T0[b >> 24] ^ T1[c >> 16 & 255] ^ T2[d >> 8 & 255] ^ T3[a & 255] ^ keys[i + 1],
                T0[c >> 24] ^ T1[d >> 16 & 255] ^ T2[a >> 8 & 255] ^ T3[b & 255] ^ keys[i + 2],
                T0[d >> 24] ^ T1[a >> 16 & 255] ^ T2[b >> 8 & 255] ^ T3[c & 255] ^ keys[i + 3])
        out = bytearray()
        for x, y, z, w, key in ((a, b, c, d, 56), (b, c, d, a, 57), (c, d, a, b, 58),
                                (d, a, b, c, 59)):
            word = (SBOX[x >> 24] << 24 | SBOX[y >> 16 & 255] << 16 | SBOX[z >> 8 & 255] << 8
                    | SBOX[w & 255])
            out += struct.pack(">I", word ^ keys[key])
        return bytes(out)


# --- GCM -----------------------------------------------------------------------------------------
POLYNOMIAL = 0xE1 << 120


def times_x(value):
    return value >> 1 ^ (POLYNOMIAL if value & 1 else 0)


# What leaves a block by a shift of eight bits comes back as.
def _make_reduction():
    out = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = times_x(value)
        out.append(value)
    return out


REDUCTION = _make_reduction()


class Gcm:
    def __init__(self, key):
        self.aes = Aes256(key)
        power = int.from_bytes(self.aes.encrypt(bytes(16)), "big")
        self.table = [0] * 256  # byte -> its product with the hash key, at the first place
        bit = 0x80
        while bit:
            self.table[bit] = power
            power, bit = times_x(power), bit >> 1
        for byte in range(256):
            low = byte & -byte
            if byte != low:
                self.table[byte] = self.table[low] ^ self.table[byte ^ low]

    def ghash(self, data):
        table, value = self.table, 0
        for at in range(0, len(data), 16):
            value ^= int.from_bytes(data[at:at + 16], "big")
            product = 0
            for shift in range(0, 128, 8):  # the last byte first
                product = product >> 8 ^ REDUCTION[product & 255] ^ table[value >> shift & 255]
            value = product
        return value

    def open(self, nonce, aad, sealed):
        """The plain bytes, or None when the tag is wrong."""
        data, tag = sealed[:-16], sealed[-16:]
        if len(sealed) < 16:
            return None
        padded = aad + bytes(-len(aad) % 16) + data + bytes(-len(data) % 16)
        value = self.ghash(padded + struct.pack(">QQ", 8 * len(aad), 8 * len(data)))
        mask = int.from_bytes(self.aes.encrypt(nonce + b"\0\0\0\1"), "big")
        if (value ^ mask).to_bytes(16, "big") != tag:
            return None
        stream = b"".join(self.aes.encrypt(nonce + struct.pack(">I", 2 + i))
                          for i in range(-(-len(data) // 16)))
        mixed = int.from_bytes(data, "big") ^ int.from_bytes(stream[:len(data)], "big")
        return mixed.to_bytes(len(data), "big")


# --- section 13 ----------------------------------------------------------------------------------
DATA, WAL = 1, 2


def read_key_file(text):
    """Role -> secret."""
    lines = [line for line in text.split("\n") if line and not line.startswith("#")]
    name, value = lines[0].split(" = ")
    secret, check = (bytes.fromhex(part) for part in value.split("-"))
    if len(lines) != 1 or hkdf(secret, b"tidemark key file check", 4) != check:
        raise ValueError("key file: wrong check digits")
    if name == "tidemark-wal-key":
        return {WAL: secret}
    return {DATA: secret, WAL: hkdf(secret, b"tidemark wal key file", 32)}


class Keys:
    """Of one repository: key id -> (role, master key). repo_object: tidemark.repo as it is."""

    def __init__(self, repo_object, secrets, generation, body):
        self.repository = repository = repo_object[32:48]
        self.masters = {}
        count = struct.unpack_from("<I", body)[0]
        if len(body) != 16 + 112 * count or any(body[4:16]):
            raise ValueError("key ring: wrong length or reserved bytes")
        if not 0 < generation < 0xFFFFFFFF:
            raise ValueError("key ring: no such generation")
        heads = b"".join(body[at:at + 16] for at in range(16, len(body), 112))
        ring = (struct.pack("<II", generation, count)
                + hashlib.sha256(repo_object + heads).digest())
        for at in range(16, len(body), 112):
            number, role, created = struct.unpack_from("<IIq", body, at)
            file_id, salt = body[at + 16:at + 32], body[at + 32:at + 64]
            sealed = body[at + 64:at + 112]
            secret = secrets.get(role)
            if secret is None or hkdf(secret, b"tidemark key file id", 16) != file_id:
                continue
            master = Gcm(hkdf(secret, b"tidemark key wrap", 32, salt)).open(
                bytes(12), repository + struct.pack("<IIq", number, role, created) + ring, sealed)
            if master is None:
                raise ValueError(f"key {number} cannot be unwrapped")
            self.masters[number] = role, master
        if not self.masters:
            raise ValueError("the key file is not the one of this repository")

    def of_object(self, name, number, salt):
        role, master = self.masters.get(number, (0, b""))
        if role != (WAL if name.startswith("wal/") else DATA):
            raise ValueError(f"{name}: key {number} does not seal it")
        return Gcm(hkdf(master, name.encode(), 32, salt))

    def open_part(self, gcm, name, offset, sealed, header=None):
        """header: of the object, whose first part answers for it."""
        plain = gcm.open(struct.pack("<QI", offset, 0), header or self.repository, sealed)
        if plain is None:
            raise ValueError(f"{name} at {offset}: wrong tag")
        return plain
