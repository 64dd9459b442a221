/* tidemark-inspect: prints an object of the repository format in readable lines and checks every
 * checksum on the way. What was read before a fault is printed, then the fault.
 *
 *     tidemark-inspect [--entries] FILE            an object's file, or a device with a marker
 *     tidemark-inspect [--entries] --repository=URL NAME
 *
 * Exit status as everywhere: 0, 2 usage, 11 cannot be read, 14 corrupt, 15 missing, 19 unknown
 * version or flags (README "Exit statuses"). Contents of configuration files are not printed. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

#include "agent/key_file.h"
#include "agent/record.h"
#include "io/codec.h"
#include "io/crypt.h"

enum { OBJECT_LEN_MAX = 1 << 30, OPTION_ACCESS = 0x100 };

static const char usage[] =
    "usage: tidemark-inspect [--entries] FILE\n"
    "       tidemark-inspect [--entries] --repository=URL NAME\n"
    "Prints an object of a repository, or the marker of a device, and checks its checksums.\n"
    "  --entries         every chunk of a region table\n"
    "  --repository=URL  NAME is an object of this repository (file:///DIR, s3://BUCKET/PREFIX)\n"
    "  --endpoint=URL --region=NAME --addressing=WORD --ca-file=FILE --credentials-file=FILE\n"
    "                    of an s3:// repository; default: as in tidemark.conf\n"
    "  --key-file=FILE   of an encrypted one; without it only headers are shown\n"
    "  --help, --version\n";

struct options {
    const char *repository;
    const char *access[16]; /* pairs of a configuration key and its value */
    size_t access_count;
    const char *name; /* file, device or object */
    bool entries;
};

static void print_hex(const char *key, const uint8_t *bytes, size_t len)
{
    printf("%s: ", key);
    for (size_t i = 0; i < len; i++)
        printf("%02x", bytes[i]);
    printf("\n");
}

static void print_id(const char *key, const uint8_t id[ID_LEN])
{
    if (id_is_zero(id))
        printf("%s: none\n", key);
    else
        print_hex(key, id, ID_LEN);
}

/* "<snapshot>/<number>": the end of the name of a pack or table pack. */
static void print_pack(const uint8_t snapshot[ID_LEN], uint32_t number)
{
    char text[ID_TEXT_LEN];
    id_to_text(snapshot, text);
    printf("%s/%08" PRIx32, text, number);
}

/* Bytes from the device or the label: what a terminal could take as a command becomes '?'. */
static void print_text(const char *key, const char *text)
{
    printf("%s: ", key);
    for (; *text; text++)
        putchar((unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text);
    printf("\n");
}

static void print_header(const struct fmt_header *header)
{
    printf("object: %s\n", fmt_kind_name(header->kind));
    printf("key id: %" PRIu32 "\n", header->key_id);
    printf("body: %" PRIu64 " bytes\n", header->body_len);
    print_id("repository", header->repository);
    print_id("volume", header->volume);
    print_id("snapshot", header->snapshot);
    printf("number: %" PRIu32 "\n", header->number);
    if (codec_is_zero(header->digest, sizeof(header->digest)))
        printf("digest: none\n");
    else
        print_hex("digest", header->digest, sizeof(header->digest));
}

static int print_repo(const uint8_t *from, size_t len, struct err *err)
{
    struct repo repo;
    int rc = fmt_repo_decode(from, len, &repo, err);
    if (rc < 0)
        return rc;
    printf("chunk size: %" PRIu32 "\n", repo.chunk_size);
    printf("region size: %" PRIu32 "\n", repo.region_size);
    printf("digest seed: %016" PRIx64 "\n", repo.digest_seed);
    printf("created: %" PRId64 "\n", repo.created_s);
    printf("cipher: %s\n", repo.cipher == REPO_PLAIN ? "none" : "AES-256-GCM");
    return 0;
}

static const char *entry_kind(const struct fmt_entry *entry)
{
    switch (fmt_entry_flags(entry)) {
    case FMT_ZERO:
        return "zero";
    case FMT_FREE:
        return "free";
    case FMT_RAW:
        return "raw";
    default:
        return "lz4";
    }
}

/* One line a chunk with data, one line a run of chunks without. */
static void print_entries(const struct fmt_region *region)
{
    for (uint32_t i = 0; i < region->chunk_count; i++) {
        const struct fmt_entry *entry = &region->entries[i];
        if (fmt_entry_flags(entry) & (FMT_ZERO | FMT_FREE)) {
            uint32_t first = i;
            while (i + 1 < region->chunk_count &&
                   region->entries[i + 1].len_flags == entry->len_flags)
                i++;
            if (first == i)
                printf("  chunk %" PRIu32 ": %s\n", i, entry_kind(entry));
            else
                printf("  chunks %" PRIu32 "-%" PRIu32 ": %s\n", first, i, entry_kind(entry));
            continue;
        }
        printf("  chunk %" PRIu32 ": %s pack %" PRIu32 " offset %" PRIu32 " stored %" PRIu32, i,
               entry_kind(entry), entry->pack, entry->offset, fmt_entry_len(entry));
        print_hex(" digest", entry->digest, FMT_DIGEST_LEN);
    }
}

static void print_region(const struct fmt_region *region, bool entries)
{
    uint32_t kinds[FMT_FLAGS_KNOWN + 1] = {0};
    uint64_t stored = 0;
    for (uint32_t i = 0; i < region->chunk_count; i++) {
        kinds[fmt_entry_flags(&region->entries[i])]++;
        stored += fmt_entry_len(&region->entries[i]);
    }
    printf("region %" PRIu32 ": %" PRIu32 " chunks of %" PRIu32 " bytes, the last of %" PRIu32 "\n",
           region->region_index, region->chunk_count, region->chunk_size, region->last_chunk_len);
    printf("  lz4 %" PRIu32 ", raw %" PRIu32 ", zero %" PRIu32 ", free %" PRIu32 ", stored %" PRIu64
           " bytes\n",
           kinds[0], kinds[FMT_RAW], kinds[FMT_ZERO], kinds[FMT_FREE], stored);
    for (uint32_t i = 0; i < region->pack_count; i++) {
        printf("  pack %" PRIu32 ": ", i);
        print_pack(region->packs[i].snapshot, region->packs[i].number);
        printf("\n");
    }
    if (entries)
        print_entries(region);
}

/* Length of the region table at the start of from; its counts are checked by the decoder, which
 * wants the exact length. 0 when there is no room for a header. */
static size_t region_len_at(const uint8_t *from, size_t len)
{
    if (len < FMT_REGION_HEADER_LEN)
        return 0;
    uint64_t chunks = get_le32(from + 24), packs = get_le32(from + 28);
    uint64_t want = FMT_REGION_HEADER_LEN + chunks * FMT_ENTRY_LEN + packs * FMT_PACK_REF_LEN;
    return min_u64(want, len);
}

static int print_tables(const uint8_t *from, size_t len, bool entries, struct err *err)
{
    struct fmt_header header;
    int rc = fmt_header_expect_whole(from, len, FMT_TABLES, NULL, &header, err);
    if (rc < 0 || header.key_id != 0) /* where sealed tables lie, only the manifest says */
        return rc;
    for (size_t at = FMT_HEADER_LEN; at < len;) {
        struct fmt_region region;
        size_t region_len = region_len_at(from + at, len - at);
        rc = region_len == 0 ? err_set(err, ERR_CORRUPT, "region table: cut")
                             : fmt_region_decode(from + at, region_len, &region, err);
        if (rc < 0)
            return err_prefix(err, "at %zu", at);
        printf("at %zu, %zu bytes, ", at, region_len);
        uint8_t digest[FMT_SHA256_LEN];
        sha256(from + at, region_len, digest);
        print_hex("SHA-256", digest, sizeof(digest));
        print_region(&region, entries);
        at += region_len;
    }
    return 0;
}

static void print_manifest_lists(const struct fmt_manifest *manifest)
{
    for (uint32_t i = 0; i < manifest->region_count; i++) {
        const struct fmt_manifest_region *region = &manifest->regions[i];
        printf("region %" PRIu32 ": table ", i);
        print_pack(region->snapshot, region->number);
        printf(" offset %" PRIu32 " len %" PRIu32, region->offset, region->len);
        print_hex(" SHA-256", region->sha256, FMT_SHA256_LEN);
    }
    for (uint32_t i = 0; i < manifest->pack_count; i++) {
        const struct fmt_manifest_pack *pack = &manifest->packs[i];
        printf("pack %" PRIu32 ": ", i);
        print_pack(pack->snapshot, pack->number);
        printf(" stored %" PRIu64 " live %" PRIu64 "\n", pack->stored_len, pack->live_len);
    }
}

static int print_manifest(const uint8_t *from, size_t len, struct err *err)
{
    struct fmt_manifest manifest;
    uint8_t digest[FMT_SHA256_LEN];
    int rc = fmt_manifest_decode(from, len, NULL, &manifest, err);
    if (rc < 0)
        return rc;
    sha256(from, len, digest);
    print_hex("SHA-256 of the object", digest, sizeof(digest));
    printf("size: %" PRIu64 "\n", manifest.size);
    printf("chunk size: %" PRIu32 "\n", manifest.chunk_size);
    printf("region size: %" PRIu32 "\n", manifest.region_size);
    printf("regions: %" PRIu32 "\n", manifest.region_count);
    printf("packs: %" PRIu32 "\n", manifest.pack_count);
    printf("sectors: logical %" PRIu32 ", physical %" PRIu32 "\n", manifest.logical_sector,
           manifest.physical_sector);
    print_id("parent", manifest.parent);
    print_text("filesystem", manifest.fs_type);
    print_text("filesystem uuid", manifest.fs_uuid);
    print_text("filesystem label", manifest.fs_label);
    print_manifest_lists(&manifest);
    return 0;
}

/* The record as `tidemark show` prints it; other JSON as it is. */
static int print_json(const uint8_t *from, size_t len, const struct fmt_header *header,
                      struct err *err)
{
    struct fmt_header again;
    const char *text;
    size_t text_len;
    free_json json_t *json = NULL, *shown = NULL;
    int rc = fmt_json_decode(from, len, (enum fmt_json)header->number, NULL, &again, &text,
                             &text_len, err);
    if (rc == 0)
        rc = json_parse(text, text_len, ERR_CORRUPT, &json, err);
    if (rc < 0)
        return rc;
    if (header->number == FMT_JSON_RECORD) {
        struct record *record = calloc(1, sizeof(*record));
        if (!record)
            return err_set(err, ERR_INTERNAL, "out of memory for a snapshot record");
        rc = record_from_json(json, record, err);
        if (rc == 0) {
            shown = record_to_public_json(record);
            record_release(record);
        }
        free(record);
        if (rc < 0)
            return rc;
    }
    free_mem char *lines = json_dumps(shown ? shown : json, JSON_INDENT(2) | JSON_SORT_KEYS);
    if (!lines)
        return err_set(err, ERR_INTERNAL, "out of memory for a JSON object");
    printf("%s\n", lines);
    return 0;
}

static int print_wal(const uint8_t *from, size_t len, struct err *err)
{
    struct fmt_wal wal;
    int rc = fmt_wal_decode_header(from, len, NULL, &wal, err);
    if (rc < 0)
        return rc;
    printf("raw length: %" PRIu64 "\n", wal.raw_len);
    printf("system identifier: %" PRIu64 "\n", wal.system_id);
    printf("timeline: %" PRIu32 "\n", wal.timeline);
    printf("block size: %" PRIu32 "\n", wal.block_size);
    print_text("name", wal.name);
    print_text("cluster", wal.cluster);
    free_mem uint8_t *raw = malloc(max_u64(wal.raw_len, 1));
    if (!raw)
        return err_sys(err, ERR_INTERNAL, "%" PRIu64 " bytes of WAL", wal.raw_len);
    rc = fmt_wal_decode_body(from, len, &wal, raw, err);
    if (rc < 0)
        return rc;
    printf("blocks: %" PRIu64 ", SHA-256 of the raw file is right\n",
           div_round_up(wal.raw_len, wal.block_size));
    return 0;
}

/* What a key ring tells without a key file. */
static int print_keys(const uint8_t *from, size_t len, struct err *err)
{
    const struct fmt_key *keys;
    uint32_t generation, count;
    int rc = fmt_keys_decode(from, len, NULL, &generation, &keys, &count, err);
    for (uint32_t i = 0; rc == 0 && i < count; i++) {
        printf("key %" PRIu32 ": %s, made %" PRId64, keys[i].id,
               keys[i].role == FMT_ROLE_WAL ? "WAL" : "data", keys[i].created_s);
        print_hex(", key file", keys[i].file_id, 8);
    }
    return rc;
}

static int print_pack_object(const uint8_t *from, size_t len, struct err *err)
{
    struct fmt_header header;
    return fmt_header_expect_whole(from, len, FMT_PACK, NULL, &header, err);
}

static int print_object(const uint8_t *from, size_t len, bool entries, struct err *err)
{
    struct fmt_header header;
    int rc = fmt_header_decode(from, len, &header, err);
    if (rc < 0)
        return rc;
    print_header(&header);
    switch (header.kind) {
    case FMT_REPO:
        return print_repo(from, len, err);
    case FMT_PACK:
        return print_pack_object(from, len, err);
    case FMT_TABLES:
        return print_tables(from, len, entries, err);
    case FMT_MANIFEST:
        return print_manifest(from, len, err);
    case FMT_JSON:
        return print_json(from, len, &header, err);
    case FMT_WAL:
        return print_wal(from, len, err);
    case FMT_KEYS:
        return print_keys(from, len, err);
    case FMT_KIND_COUNT:
        break;
    }
    abort();
}

static int print_marker(const uint8_t *from, size_t len, struct err *err)
{
    uint8_t job[ID_LEN];
    uint64_t size;
    int rc = fmt_marker_decode(from, len, job, &size, err);
    if (rc < 0)
        return rc;
    printf("device marker: a restore into this device is not finished\n");
    print_hex("job", job, ID_LEN);
    printf("volume size: %" PRIu64 "\n", size);
    return 0;
}

/* Reads the file, or the first 4 KiB of a device. */
static int read_file(const char *path, void **ret_buf, size_t *ret_len, struct err *err)
{
    struct stat stat_buf;
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &stat_buf) < 0)
        return err_sys(err, errno == ENOENT ? ERR_MISSING : ERR_DEVICE, "open '%s'", path);
    bool device = S_ISBLK(stat_buf.st_mode);
    if (!device && !S_ISREG(stat_buf.st_mode))
        return err_set(err, ERR_USAGE, "'%s' is neither a file nor a block device", path);
    if (!device && stat_buf.st_size > OBJECT_LEN_MAX)
        return err_set(err, ERR_CORRUPT, "'%s' is too large for an object", path);
    size_t len = device ? FMT_MARKER_LEN : (size_t)stat_buf.st_size, got = 0;
    free_mem uint8_t *buf = malloc(max_u64(len, 1));
    if (!buf)
        return err_sys(err, ERR_INTERNAL, "%zu bytes of '%s'", len, path);
    while (got < len) {
        ssize_t done = pread(fd, buf + got, len - got, (off_t)got);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return err_sys(err, ERR_DEVICE, "read '%s'", path);
        if (done == 0)
            break;
        got += (size_t)done;
    }
    *ret_buf = take_ptr(&buf);
    *ret_len = got;
    return 0;
}

/* Of an encrypted repository: objects come in their plain form from here. */
static int unlock(const struct conf *conf, struct store *store, struct err *err)
{
    struct repo repo;
    bool used_copy;
    int rc = repo_open(store, &repo, &used_copy, err);
    if (rc == 0)
        rc = key_file_unlock(conf, REPOSITORY_JOBS, store, &repo, err);
    if (rc < 0)
        store_close(store);
    return rc;
}

static int open_store(const struct options *options, struct store **ret, struct err *err)
{
    static struct conf conf;
    struct repository_access access;
    /* A directory needs no configuration: this is the tool for when that is broken. */
    bool plain = strncmp(options->repository, "file://", 7) == 0;
    int rc = plain ? conf_parse("defaults", "", 0, &conf, err) : conf_load(NULL, &conf, err);
    if (rc == 0)
        rc = conf_set(&conf, "repository.url", options->repository, err);
    for (size_t i = 0; rc == 0 && i < options->access_count; i += 2)
        rc = conf_set(&conf, options->access[i], options->access[i + 1], err);
    if (rc == 0)
        rc = repository_access_load(&conf, REPOSITORY_JOBS, 0, &access, err);
    if (rc < 0)
        return rc;
    rc = store_open(conf.repository_url, &access.options, false, ret, err);
    repository_access_free(&access);
    return rc < 0 || !conf.repository_key_file[0] ? rc : unlock(&conf, *ret, err);
}

static int read_named(const struct options *options, void **ret_buf, size_t *ret_len,
                      struct err *err)
{
    struct store *store;
    if (!options->repository)
        return read_file(options->name, ret_buf, ret_len, err);
    int rc = open_store(options, &store, err);
    if (rc < 0)
        return rc;
    rc = store_get_all(store, options->name, OBJECT_LEN_MAX, ret_buf, ret_len, err);
    store_close(store);
    return rc;
}

static int inspect(const struct options *options, struct err *err)
{
    free_mem void *buf = NULL;
    size_t len;
    int rc = read_named(options, &buf, &len, err);
    if (rc < 0)
        return rc;
    rc = print_marker(buf, len, err);
    if (rc == -ERR_MISSING)
        rc = print_object(buf, len, options->entries, err);
    return rc < 0 ? err_prefix(err, "%s", options->name) : 0;
}

static const char *const access_keys[] = {"repository.endpoint",         "repository.region",
                                          "repository.addressing",       "repository.ca_file",
                                          "repository.credentials_file", "repository.key_file"};

static void add_access(struct options *options, const char *key, const char *value)
{
    if (options->access_count + 2 > ARRAY_LEN(options->access))
        return; /* the same options again and again */
    options->access[options->access_count++] = key;
    options->access[options->access_count++] = value;
}

/* 0: go on; 1: nothing left to do; < 0: usage. */
static int parse_options(int argc, char **argv, struct options *ret, struct err *err)
{
    static const struct option known[] = {
        {"entries", no_argument, NULL, 'e'},
        {"help", no_argument, NULL, 'h'},
        {"repository", required_argument, NULL, 'r'},
        {"endpoint", required_argument, NULL, OPTION_ACCESS},
        {"region", required_argument, NULL, OPTION_ACCESS + 1},
        {"addressing", required_argument, NULL, OPTION_ACCESS + 2},
        {"ca-file", required_argument, NULL, OPTION_ACCESS + 3},
        {"credentials-file", required_argument, NULL, OPTION_ACCESS + 4},
        {"key-file", required_argument, NULL, OPTION_ACCESS + 5},
        {"version", no_argument, NULL, 'V'},
        {NULL, 0, NULL, 0},
    };
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'e':
            ret->entries = true;
            break;
        case 'r':
            ret->repository = optarg;
            break;
        case 'h':
            printf("%s", usage);
            return 1;
        case 'V':
            printf("tidemark-inspect %s\n", TIDEMARK_VERSION);
            return 1;
        case OPTION_ACCESS:
        case OPTION_ACCESS + 1:
        case OPTION_ACCESS + 2:
        case OPTION_ACCESS + 3:
        case OPTION_ACCESS + 4:
        case OPTION_ACCESS + 5:
            add_access(ret, access_keys[option - OPTION_ACCESS], optarg);
            break;
        default:
            (void)err_set(err, ERR_USAGE, "unknown or incomplete option '%s'", argv[optind - 1]);
            return err_hint(err, "tidemark-inspect --help");
        }
    }
    if (argc - optind != 1) {
        (void)err_set(err, ERR_USAGE, "one file, device or object is needed");
        return err_hint(err, "tidemark-inspect --help");
    }
    ret->name = argv[optind];
    return 0;
}

int main(int argc, char **argv)
{
    struct err err = {0};
    struct options options = {0};
    int rc = parse_options(argc, argv, &options, &err);
    if (rc == 0)
        rc = inspect(&options, &err);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        if (rc >= 0)
            rc = err_sys(&err, ERR_DEVICE, "write to standard output");
    }
    if (rc >= 0)
        return 0;
    fprintf(stderr, "tidemark-inspect: %s\n", err.text);
    if (err.hint[0])
        fprintf(stderr, "hint: %s\n", err.hint);
    return err_exit_status(err.code);
}
