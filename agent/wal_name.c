/* Names of WAL files, apart from the archive so that the path of a prefetch hit does not link
 * libcrypto. See wal.h. */
#include "agent/wal.h"

static bool is_hex(const char *text, size_t count)
{
    return strspn(text, "0123456789ABCDEF") >= count;
}

static uint32_t hex32(const char *text)
{
    char digits[9] = "";
    memcpy(digits, text, 8);
    return (uint32_t)strtoul(digits, NULL, 16);
}

bool wal_name_parse(const char *name, enum wal_kind *ret_kind, uint32_t *ret_timeline)
{
    enum wal_kind kind;
    const char *rest = is_hex(name, 24) ? name + 24 : "-";
    const char *numbered = rest[0] == '.' && is_hex(rest + 1, 8) ? rest + 9 : "-";
    if (rest[0] == '\0')
        kind = WAL_SEGMENT;
    else if (strcmp(rest, ".partial") == 0 || strcmp(numbered, ".partial") == 0)
        kind = WAL_PARTIAL;
    else if (strcmp(numbered, ".backup") == 0)
        kind = WAL_BACKUP;
    else if (is_hex(name, 8) && strcmp(name + 8, ".history") == 0)
        kind = WAL_HISTORY;
    else
        return false;
    uint32_t timeline = hex32(name);
    if (timeline == 0)
        return false;
    if (ret_kind)
        *ret_kind = kind;
    if (ret_timeline)
        *ret_timeline = timeline;
    return true;
}

bool wal_name_valid(const char *name, uint32_t *ret_timeline)
{
    return wal_name_parse(name, NULL, ret_timeline);
}
