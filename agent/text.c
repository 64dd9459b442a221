/* See text.h. */
#include "agent/text.h"

#include <stdio.h>
#include <time.h>

#include "io/base.h"

void text_size(uint64_t bytes, char ret[TEXT_SIZE_LEN])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    size_t unit = 0;
    for (; value >= 1024 && unit + 1 < ARRAY_LEN(units); unit++)
        value /= 1024;
    (void)snprintf(ret, TEXT_SIZE_LEN, unit == 0 || value >= 100 ? "%.0f %s" : "%.1f %s", value,
                   units[unit]);
}

void text_time(int64_t time_s, char ret[TEXT_TIME_LEN])
{
    struct tm utc;
    time_t when = (time_t)time_s;
    if (time_s <= 0 || !gmtime_r(&when, &utc) ||
        strftime(ret, TEXT_TIME_LEN, "%Y-%m-%d %H:%M:%S UTC", &utc) == 0)
        (void)snprintf(ret, TEXT_TIME_LEN, "-");
}

void text_age(int64_t seconds, char ret[TEXT_AGE_LEN])
{
    static const struct {
        int64_t seconds;
        const char *name;
    } units[] = {{86400, "d"}, {3600, "h"}, {60, "min"}, {1, "s"}};
    size_t i = 0;
    if (seconds < 0)
        seconds = 0;
    /* Two of a unit at least: "90 min" says more than "1 h". */
    while (i + 1 < ARRAY_LEN(units) && seconds < 2 * units[i].seconds)
        i++;
    (void)snprintf(ret, TEXT_AGE_LEN, "%lld %s", (long long)(seconds / units[i].seconds),
                   units[i].name);
}
