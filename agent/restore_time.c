/* Recovery target times. PostgreSQL would read them in the zone of the restored server's own
 * configuration; they are made absolute here, so that what the plan prints is what happens. */
#include "agent/restore.h"

#include <ctype.h>
#include <stdio.h>
#include <time.h>

/* ".123456" → microseconds; the rest of the text is returned. */
static const char *parse_fraction(const char *text, int64_t *ret_us)
{
    *ret_us = 0;
    if (*text != '.')
        return text;
    int64_t unit = 100000;
    for (text++; isdigit((unsigned char)*text); text++, unit /= 10)
        *ret_us += (*text - '0') * unit;
    return text;
}

/* "Z", "UTC", "+01", "+01:30", "-0800" → seconds east of UTC; "" = local. */
static bool parse_zone(const char *text, bool *ret_local, long *ret_offset_s)
{
    while (*text == ' ')
        text++;
    *ret_local = *text == '\0';
    *ret_offset_s = 0;
    if (*ret_local || strcmp(text, "Z") == 0 || strcmp(text, "UTC") == 0 ||
        strcmp(text, "GMT") == 0)
        return true;
    if (*text != '+' && *text != '-')
        return false;
    unsigned hours = 0, minutes = 0;
    int used = 0;
    if (sscanf(text + 1, "%2u%n", &hours, &used) != 1 || hours > 15)
        return false;
    const char *rest = text + 1 + used;
    rest += *rest == ':';
    if (*rest && (sscanf(rest, "%2u%n", &minutes, &used) != 1 || rest[used] || minutes > 59))
        return false;
    long offset_s = (long)(hours * 3600 + minutes * 60);
    *ret_offset_s = *text == '-' ? -offset_s : offset_s;
    return true;
}

/* mktime(3) would make the 3rd of March of the 31st of February. */
static bool is_day(const struct tm *tm)
{
    struct tm noon = {
        .tm_year = tm->tm_year, .tm_mon = tm->tm_mon, .tm_mday = tm->tm_mday, .tm_hour = 12};
    return timegm(&noon) != (time_t)-1 && noon.tm_mday == tm->tm_mday;
}

static int refuse_time(const char *text, struct err *err)
{
    (void)err_set(err, ERR_USAGE, "'%s' is not a time", text);
    return err_hint(err, "write it like '2026-11-25 10:00:00+01'; without a zone it is local time");
}

int restore_parse_time(const char *text, int64_t *ret_us, char *ret_text, size_t size,
                       struct err *err)
{
    struct tm tm = {.tm_isdst = -1};
    char copy[128];
    if (snprintf(copy, sizeof(copy), "%s", text) >= (int)sizeof(copy))
        return refuse_time(text, err); /* its end, the zone, would be cut off */
    if (strlen(copy) > 10 && copy[10] == 'T')
        copy[10] = ' ';
    const char *rest = strptime(copy, "%Y-%m-%d %H:%M", &tm);
    if (rest && *rest == ':')
        rest = strptime(rest, ":%S", &tm);
    int64_t fraction_us;
    bool local;
    long offset_s;
    if (!rest || !is_day(&tm))
        return refuse_time(text, err);
    rest = parse_fraction(rest, &fraction_us);
    if (!parse_zone(rest, &local, &offset_s))
        return refuse_time(text, err);
    time_t seconds = local ? mktime(&tm) : timegm(&tm) - offset_s;
    struct tm utc;
    /* Only what is written with four digits is read again as the same year. */
    if (seconds < 0 || !gmtime_r(&seconds, &utc) || utc.tm_year > 9999 - 1900)
        return refuse_time(text, err);
    *ret_us = (int64_t)seconds * 1000000 + fraction_us;
    size_t len = strftime(ret_text, size, "%Y-%m-%d %H:%M:%S", &utc);
    (void)snprintf(ret_text + len, size - len, ".%06lld+00", (long long)fraction_us);
    return 0;
}
