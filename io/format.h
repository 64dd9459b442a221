/* The repository format as pure code: bounds-checked encode and decode of every structure of
 * FORMAT.md, which is the normative text. No I/O, no allocation, any thread.
 *
 * Decoders validate length, magic, version, flags and checksum before any other field and write
 * *ret only on success. Wrong bytes give ERR_CORRUPT; a newer version or an unknown flag gives
 * ERR_REFUSED, so that a reader never guesses. */
#ifndef TIDEMARK_IO_FORMAT_H
#define TIDEMARK_IO_FORMAT_H

#include "io/repo.h"

enum {
    FMT_VERSION = 1,
    FMT_HEADER_LEN = 192,
    FMT_REGION_HEADER_LEN = 64,
    FMT_REGION_ALIGN = 8, /* of a region table in its object */
    FMT_PACK_REF_LEN = 24,
    FMT_ENTRY_LEN = 32,
    FMT_MANIFEST_FIXED_LEN = 256,
    FMT_MANIFEST_REGION_LEN = 64,
    FMT_MANIFEST_PACK_LEN = 40,
    FMT_REPO_BODY_LEN = 64,
    FMT_WAL_FIXED_LEN = 192,
    FMT_SHA256_LEN = 32,
    FMT_DIGEST_LEN = 16,
    FMT_SALT_LEN = 32,
    FMT_TAG_LEN = 16, /* bytes behind each ciphertext */
    FMT_MANIFEST_ORIGIN_LEN = 56,
    FMT_KEYS_FIXED_LEN = 16,
    FMT_KEY_LEN = 112,
    FMT_KEYS_MAX = 256,
    FMT_REPO_LEN = FMT_HEADER_LEN + FMT_REPO_BODY_LEN,
    FMT_MARKER_LEN = 4096,
    FMT_REGION_SIZE = 64 << 20,
    FMT_SECTOR = 512, /* bytes: volume sizes are multiples of it */
    FMT_CHUNK_SIZE_MIN = 16 << 10,
    FMT_CHUNK_SIZE_MAX = 64 << 10,
    FMT_WAL_BLOCK_SIZE = 64 << 10,
    FMT_WAL_RAW_MAX = 1 << 30,  /* bytes: the largest WAL segment that initdb allows */
    FMT_PACK_TARGET = 16 << 20, /* bytes: a pack is closed before it would grow past this */
};

/* Of a key ring: the next one would be 0. */
#define FMT_GENERATION_MAX (UINT32_MAX - 1)

/* True for 16, 32 and 64 KiB. */
static inline bool fmt_chunk_size_valid(uint32_t size)
{
    return size >= FMT_CHUNK_SIZE_MIN && size <= FMT_CHUNK_SIZE_MAX && (size & (size - 1)) == 0;
}

enum fmt_kind {
    FMT_REPO,     /* magic "TMREPO\0\0" */
    FMT_PACK,     /* "TMPACK\0\0": header | chunk payloads */
    FMT_TABLES,   /* "TMTABLE\0": header | region tables */
    FMT_MANIFEST, /* "TMVOLUME": header | fixed part | regions | packs */
    FMT_JSON,     /* "TMJSON\0\0": header | JSON; number = enum fmt_json */
    FMT_WAL,      /* "TMWAL\0\0\0": header | fixed part | blocks */
    FMT_KEYS,     /* "TMKEYS\0\0": header | wrapped keys; number = generation */
    FMT_KIND_COUNT
};

enum fmt_json { FMT_JSON_RECORD = 1, FMT_JSON_DRILL = 2, FMT_JSON_JOB = 3, FMT_JSON_MARK = 4 };

/* 0 magic 8 | 8 version 4 | 12 header_len 4 | 16 key_id 4 | 20 flags 4 | 24 body_len 8 |
 * 32 repository 16 | 48 volume 16 | 64 snapshot 16 | 80 number 4 | 84 zero 4 | 88 digest 32 |
 * 120 salt 32 (zero when key_id = 0) | 152 zero 24 | 176 checksum 16 = XXH3-128 of [0, 176) */
struct fmt_header {
    enum fmt_kind kind;
    uint32_t key_id; /* of the master key that seals the body; 0 = plain */
    uint64_t body_len;
    uint8_t repository[ID_LEN];
    uint8_t volume[ID_LEN];   /* zero where the kind has none */
    uint8_t snapshot[ID_LEN]; /* zero where the kind has none */
    uint32_t number;          /* pack number, or enum fmt_json */
    /* SHA-256 of the body (repo, manifest, JSON), of the raw file (WAL), zero for packs and table
     * packs: their parts are covered by the digests of whoever refers to them. Zero when sealed: it
     * would tell what is inside. */
    uint8_t digest[FMT_SHA256_LEN];
    uint8_t salt[FMT_SALT_LEN]; /* sealed objects only */
};

void fmt_header_encode(const struct fmt_header *header, uint8_t to[FMT_HEADER_LEN]);
int fmt_header_decode(const uint8_t *from, size_t len, struct fmt_header *ret, struct err *err);

/* Name of a kind for messages: "pack", "volume manifest", … */
const char *fmt_kind_name(enum fmt_kind kind);

/* Decodes and also requires kind, and repository id when it is not NULL. An object that is sealed
 * as a whole, which is all but packs and table packs, must have been opened (seal.h): ERR_REFUSED.
 */
int fmt_header_expect(const uint8_t *from, size_t len, enum fmt_kind kind,
                      const uint8_t repository[ID_LEN], struct fmt_header *ret, struct err *err);

/* As fmt_header_expect() for a whole object: also requires len = header + body_len, and the digest
 * of the kinds whose digest covers the body (repo, manifest, JSON). */
int fmt_header_expect_whole(const uint8_t *from, size_t len, enum fmt_kind kind,
                            const uint8_t repository[ID_LEN], struct fmt_header *ret,
                            struct err *err);

/* --- tidemark.repo: body 64 bytes: chunk_size 4 | region_size 4 | digest_seed 8 | created_s 8 |
 * cipher 4 (enum repo_cipher) | zero 36 */
void fmt_repo_encode(const struct repo *repo, uint8_t to[FMT_REPO_LEN]);
int fmt_repo_decode(const uint8_t *from, size_t len, struct repo *ret, struct err *err);

/* --- key ring: count 4 | zero 12 | wrapped keys, 112 bytes each, ascending by id. */
enum fmt_role { FMT_ROLE_DATA = 1, FMT_ROLE_WAL = 2 };
struct fmt_key {
    uint32_t id;
    uint32_t role;
    int64_t created_s;
    uint8_t file_id[16]; /* of the key file that wraps it */
    uint8_t salt[FMT_SALT_LEN];
    uint8_t wrapped[32];
    uint8_t tag[FMT_TAG_LEN];
};
_Static_assert(sizeof(struct fmt_key) == FMT_KEY_LEN, "wire size of a wrapped key");

static inline size_t fmt_keys_len(uint32_t count)
{
    return FMT_HEADER_LEN + FMT_KEYS_FIXED_LEN + (size_t)count * FMT_KEY_LEN;
}

/* Encodes the whole object, fmt_keys_len() bytes. */
void fmt_keys_encode(const struct fmt_key *keys, uint32_t count, uint32_t generation,
                     const uint8_t repository[ID_LEN], uint8_t *to);
/* Decodes a whole object: 1 … FMT_KEYS_MAX keys. *ret points into the caller's buffer, which is
 * 8-aligned. */
int fmt_keys_decode(const uint8_t *from, size_t len, const uint8_t repository[ID_LEN],
                    uint32_t *ret_generation, const struct fmt_key **ret, uint32_t *ret_count,
                    struct err *err);

/* --- chunk entries ----------------------------------------------------------------------- */
enum fmt_chunk_flag {
    FMT_ZERO = 1, /* all bytes zero, nothing stored */
    FMT_FREE = 2, /* no file had data here, nothing stored; restore may leave or zero it */
    FMT_RAW = 4,  /* stored as it is; otherwise one LZ4 block */
    FMT_FLAGS_KNOWN = 7
};

/* In memory and on disk alike, so that a mapped table needs no decoding.
 * digest 16 | pack 4 | offset 4 | stored_len 3 + flags 1 | zero 4.
 * digest, pack, offset and stored_len are 0 for ZERO and FREE. */
struct fmt_entry {
    uint8_t digest[FMT_DIGEST_LEN]; /* XXH3-128 (seeded, canonical big-endian) of the plain chunk */
    uint32_t pack;                  /* index in the pack list of this table */
    uint32_t offset;                /* bytes from the start of the object */
    uint32_t len_flags;             /* stored_len | flags << 24 */
    uint32_t zero;
};
_Static_assert(sizeof(struct fmt_entry) == FMT_ENTRY_LEN, "wire size of a chunk entry");

static inline uint32_t fmt_entry_len(const struct fmt_entry *entry)
{
    return entry->len_flags & 0xffffff;
}

static inline uint32_t fmt_entry_flags(const struct fmt_entry *entry)
{
    return entry->len_flags >> 24;
}

/* Checks one entry of a chunk of plain_len bytes against the rules above. */
int fmt_entry_check(const struct fmt_entry *entry, uint32_t plain_len, uint32_t pack_count,
                    struct err *err);

/* snapshot 16 | number 4 | zero 4; the pack's volume is the table's volume. */
struct fmt_pack_ref {
    uint8_t snapshot[ID_LEN];
    uint32_t number;
    uint32_t zero;
};
_Static_assert(sizeof(struct fmt_pack_ref) == FMT_PACK_REF_LEN, "wire size of a pack ref");

/* --- region table: 0 magic "TMREGION" 8 | 8 version 4 | 12 header_len 4 | 16 region_index 4 |
 * 20 chunk_size 4 | 24 chunk_count 4 | 28 pack_count 4 | 32 last_chunk_len 4 | 36 flags 4 |
 * 40 zero 8 | 48 checksum 16 = XXH3-128 of [0, 48) ; then pack refs, then entries.
 * The whole table is covered by the SHA-256 in the manifest. */
struct fmt_region {
    uint32_t region_index;
    uint32_t chunk_size;
    uint32_t chunk_count;
    uint32_t pack_count;
    uint32_t last_chunk_len;          /* bytes; chunk_size unless this is the volume's last */
    const struct fmt_pack_ref *packs; /* decode: point into the caller's buffer (8-aligned) */
    const struct fmt_entry *entries;
};

static inline size_t fmt_region_len(uint32_t chunk_count, uint32_t pack_count)
{
    return FMT_REGION_HEADER_LEN + (size_t)pack_count * FMT_PACK_REF_LEN +
           (size_t)chunk_count * FMT_ENTRY_LEN;
}

/* Writes fmt_region_len() bytes. */
void fmt_region_encode(const struct fmt_region *region, uint8_t *to);
/* len must be exact; every entry is validated (flags, pack < pack_count, lengths, offset). */
int fmt_region_decode(const uint8_t *from, size_t len, struct fmt_region *ret, struct err *err);

/* --- volume manifest. Fixed part (256 bytes): size 8 | chunk_size 4 | region_size 4 |
 * region_count 4 | pack_count 4 | logical_sector 4 | physical_sector 4 | parent snapshot 16 |
 * fs_type text 16 | fs_uuid text 40 | fs_label text 64 | zero. Texts are NUL-padded.
 * Region (64): snapshot 16 | table pack number 4 | offset 4 | len 4 | zero 4 | SHA-256 32.
 * Pack (40): snapshot 16 | number 4 | zero 4 | stored_len 8 | live_len 8; sorted by
 * (snapshot, number), stored_len is the whole object, live_len the sum of chunks reached.
 * Origin (56), in encrypted repositories: snapshot 16 | key id 4 | zero 4 | salt 32; sorted. */
struct fmt_manifest_region {
    uint8_t snapshot[ID_LEN];
    uint32_t number;
    uint32_t offset;
    uint32_t len;
    uint32_t zero;
    uint8_t sha256[FMT_SHA256_LEN];
};
_Static_assert(sizeof(struct fmt_manifest_region) == FMT_MANIFEST_REGION_LEN, "wire size");

struct fmt_manifest_pack {
    uint8_t snapshot[ID_LEN];
    uint32_t number;
    uint32_t zero;
    uint64_t stored_len;
    uint64_t live_len;
};
_Static_assert(sizeof(struct fmt_manifest_pack) == FMT_MANIFEST_PACK_LEN, "wire size");

/* What seals the packs and table packs that a snapshot wrote for this volume: a ranged GET does not
 * see their headers. */
struct fmt_manifest_origin {
    uint8_t snapshot[ID_LEN];
    uint32_t key_id;
    uint32_t zero;
    uint8_t salt[FMT_SALT_LEN];
};
_Static_assert(sizeof(struct fmt_manifest_origin) == FMT_MANIFEST_ORIGIN_LEN, "wire size");

/* Order of the pack list: snapshot id as bytes, then number. */
static inline int fmt_manifest_pack_compare(const struct fmt_manifest_pack *a,
                                            const struct fmt_manifest_pack *b)
{
    int order = memcmp(a->snapshot, b->snapshot, ID_LEN);
    return order ? order : (a->number > b->number) - (a->number < b->number);
}

struct fmt_manifest {
    uint8_t volume[ID_LEN]; /* these two stand in the object header */
    uint8_t snapshot[ID_LEN];
    uint64_t size; /* bytes of the device, a multiple of FMT_SECTOR */
    uint32_t chunk_size;
    uint32_t region_size;
    uint32_t region_count;
    uint32_t pack_count;
    uint32_t logical_sector;
    uint32_t physical_sector;
    uint8_t parent[ID_LEN]; /* zero for a full snapshot */
    char fs_type[16];
    char fs_uuid[40];
    char fs_label[64];
    const struct fmt_manifest_region *regions; /* decode: into the caller's buffer (8-aligned) */
    const struct fmt_manifest_pack *packs;
    const struct fmt_manifest_origin *origins; /* of every snapshot in regions and packs */
    uint32_t origin_count;                     /* 0 in a plain repository */
};

static inline size_t fmt_manifest_len(uint32_t region_count, uint32_t pack_count)
{
    return FMT_HEADER_LEN + FMT_MANIFEST_FIXED_LEN +
           (size_t)region_count * FMT_MANIFEST_REGION_LEN +
           (size_t)pack_count * FMT_MANIFEST_PACK_LEN;
}

/* The origin of a snapshot that the manifest reaches; NULL in a plain repository. */
const struct fmt_manifest_origin *fmt_manifest_origin(const struct fmt_manifest *manifest,
                                                      const uint8_t snapshot[ID_LEN]);

/* Encodes the whole object, header included: fmt_manifest_len() bytes and the origins. */
void fmt_manifest_encode(const struct fmt_manifest *manifest, const uint8_t repository[ID_LEN],
                         uint8_t *to);
/* Decodes a whole object and checks its SHA-256, geometry and sort order. */
int fmt_manifest_decode(const uint8_t *from, size_t len, const uint8_t repository[ID_LEN],
                        struct fmt_manifest *ret, struct err *err);

/* --- JSON envelope: header with digest = SHA-256 of the JSON, then the JSON bytes.
 * encode writes FMT_HEADER_LEN + json_len bytes; decode returns a view into from. */
void fmt_json_encode(enum fmt_json kind, const uint8_t repository[ID_LEN],
                     const uint8_t snapshot[ID_LEN], const char *json, size_t json_len,
                     uint8_t *to);
int fmt_json_decode(const uint8_t *from, size_t len, enum fmt_json kind,
                    const uint8_t repository[ID_LEN], struct fmt_header *ret_header,
                    const char **ret_json, size_t *ret_json_len, struct err *err);

/* --- WAL object. Fixed part (192 bytes): raw_len 8 | system_id 8 | timeline 4 | block_size 4 |
 * name text 64 | cluster text 64 | zero 24 | checksum 16 = XXH3-128 of the first 368 bytes of the
 * object. Then blocks of block_size raw bytes (the last may be short): stored_len 4 (bit 31 =
 * stored raw) | bytes. header.digest = SHA-256 of the raw file. */
struct fmt_wal {
    uint64_t raw_len;
    uint64_t system_id;
    uint32_t timeline;
    uint32_t block_size; /* FMT_WAL_BLOCK_SIZE; encode fills it in */
    char name[64];
    char cluster[64];
    uint8_t raw_sha256[FMT_SHA256_LEN];
};

/* Upper bound of an object for raw_len bytes. */
size_t fmt_wal_len_max(uint64_t raw_len);
/* Builds the whole object from the raw bytes (compresses); returns its length. to has
 * fmt_wal_len_max() bytes. raw_sha256 must be set in wal. */
size_t fmt_wal_encode(const struct fmt_wal *wal, const uint8_t repository[ID_LEN], const void *raw,
                      uint8_t *to);
/* The same in parts, for a file that is not in memory: its blocks, each of FMT_WAL_BLOCK_SIZE bytes
 * but the last, from FMT_WAL_HEAD_LEN on, one behind the other; each returns the bytes written.
 * Then the head, which needs the file's digest and the length of it all. */
enum { FMT_WAL_HEAD_LEN = FMT_HEADER_LEN + FMT_WAL_FIXED_LEN };
size_t fmt_wal_encode_block(const void *raw, size_t raw_len, uint8_t *to);
void fmt_wal_encode_head(const struct fmt_wal *wal, const uint8_t repository[ID_LEN], size_t len,
                         uint8_t *to);
/* Decodes header and fixed part only. */
int fmt_wal_decode_header(const uint8_t *from, size_t len, const uint8_t repository[ID_LEN],
                          struct fmt_wal *ret, struct err *err);
/* Decodes the blocks into raw (ret->raw_len bytes, from a header that was decoded before) and
 * compares the SHA-256. */
int fmt_wal_decode_body(const uint8_t *from, size_t len, const struct fmt_wal *wal, void *raw,
                        struct err *err);

/* --- device marker: the first 4 KiB of a volume under restore. magic "TMMARKER" 8 | version 4 |
 * zero 4 | job id 16 | volume size 8 | zero 4040 | checksum 16 = XXH3-128 of [0, 4080).
 * decode: ERR_MISSING when the magic is not there, ERR_CORRUPT or ERR_REFUSED otherwise. */
void fmt_marker_encode(const uint8_t job_id[ID_LEN], uint64_t volume_size,
                       uint8_t to[FMT_MARKER_LEN]);
int fmt_marker_decode(const uint8_t *from, size_t len, uint8_t ret_job_id[ID_LEN],
                      uint64_t *ret_volume_size, struct err *err);

#endif
