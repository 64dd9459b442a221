/* The cluster for a browser: GET / of a coordinator, see cluster.h. Everything that is not a
 * literal here goes through put(): names, errors and hints come from other hosts. */
#include "agent/cluster.h"

#include <stdio.h>
#include <time.h>

#include "agent/log.h"
#include "agent/pg_names.h"

enum { SNAPSHOTS_MAX = 5 };

static const char head[] = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                           "<meta http-equiv=\"refresh\" content=\"5\">"
                           "<meta name=\"viewport\" content=\"width=device-width\">\n<title>";
static const char style[] =
    "</title>\n<style>body{font:15px/1.4 sans-serif;margin:2em;color:#222}"
    "table{border-collapse:collapse;margin:.5em 0 1.5em}"
    "th,td{text-align:left;padding:.25em 1em .25em 0;border-bottom:1px solid #ddd;"
    "vertical-align:top}"
    ".ok{color:#060}.restoring,.recovering{color:#850}"
    ".partial,.diverged,.failed,.down,.unreachable{color:#a00;font-weight:bold}"
    ".hint{color:#555}</style></head>\n<body>\n";

/* --- text ------------------------------------------------------------------------------------- */

static void put(FILE *to, const char *text)
{
    for (; *text; text++) {
        if (*text == '<')
            (void)fputs("&lt;", to);
        else if (*text == '>')
            (void)fputs("&gt;", to);
        else if (*text == '&')
            (void)fputs("&amp;", to);
        else if (*text == '"')
            (void)fputs("&quot;", to);
        else if (*text == '\'')
            (void)fputs("&#39;", to);
        else
            (void)fputc(*text, to);
    }
}

static void put_cell(FILE *to, const char *text)
{
    (void)fputs("<td>", to);
    put(to, text[0] ? text : "–");
    (void)fputs("</td>", to);
}

static void put_number(FILE *to, const json_t *number)
{
    char text[24] = "";
    if (json_is_integer(number))
        (void)snprintf(text, sizeof(text), "%lld", (long long)json_integer_value(number));
    put_cell(to, text);
}

static void put_time(FILE *to, const json_t *seconds)
{
    char text[32] = "";
    time_t at = (time_t)json_integer_value(seconds);
    struct tm utc;
    if (seconds && gmtime_r(&at, &utc))
        (void)strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S UTC", &utc);
    put_cell(to, text);
}

/* A status as a word of its own class. */
static void put_status(FILE *to, const char *status)
{
    (void)fputs("<span class=\"", to);
    put(to, status);
    (void)fputs("\">", to);
    put(to, status);
    (void)fputs("</span>", to);
}

static void put_cause(FILE *to, const char *cause, const char *hint)
{
    put(to, cause);
    if (hint[0]) {
        (void)fputs("<div class=\"hint\">", to);
        put(to, hint);
        (void)fputs("</div>", to);
    }
}

/* --- nodes ------------------------------------------------------------------------------------ */

static const json_t *find_primary(const json_t *members)
{
    for (size_t i = 0; i < json_array_size(members); i++)
        if (json_is(json_array_get(members, i), "role", "primary"))
            return json_array_get(members, i);
    return NULL;
}

/* How far a standby's replay is behind its primary, in bytes. */
static void put_lag(FILE *to, const json_t *member, const json_t *primary)
{
    char text[24] = "";
    uint64_t here, there;
    if (json_is(member, "role", "standby") && pg_lsn_parse(json_str(member, "lsn"), &here) &&
        pg_lsn_parse(json_str(primary, "lsn"), &there))
        (void)snprintf(text, sizeof(text), "%llu",
                       (unsigned long long)(there > here ? there - here : 0));
    put_cell(to, text);
}

static void put_nodes(FILE *to, const json_t *members)
{
    const json_t *primary = find_primary(members);
    (void)fputs("<h2>Nodes</h2>\n<table><tr><th>Node<th>Health<th>Role<th>Timeline<th>LSN"
                "<th>Lag, bytes<th>Address<th>Cause</tr>\n",
                to);
    for (size_t i = 0; i < json_array_size(members); i++) {
        const json_t *member = json_array_get(members, i);
        (void)fputs("<tr>", to);
        put_cell(to, json_str(member, "name"));
        (void)fputs("<td>", to);
        put_status(to, json_str(member, "status"));
        (void)fputs("</td>", to);
        put_cell(to, json_str(member, "role"));
        put_number(to, json_object_get(member, "timeline"));
        put_cell(to, json_str(member, "lsn"));
        put_lag(to, member, primary);
        put_cell(to, json_str(member, "address"));
        (void)fputs("<td>", to);
        put_cause(to, json_str(member, "cause"), json_str(member, "hint"));
        (void)fputs("</td></tr>\n", to);
    }
    (void)fputs("</table>\n", to);
}

/* --- jobs of this coordinator ----------------------------------------------------------------- */

static void put_members_of(FILE *to, const json_t *job)
{
    const char *name;
    json_t *member, *members = json_object_get(job, "members");
    (void)fputs("<table><tr><th>Node<th>Becomes<th>Has reached</tr>\n", to);
    json_object_foreach(members, name, member)
    {
        (void)fputs("<tr>", to);
        put_cell(to, name);
        put_cell(to, json_str(member, "role"));
        put_cell(to, json_str(member, "level"));
        (void)fputs("</tr>\n", to);
    }
    (void)fputs("</table>\n", to);
}

/* The newest restore; the waves of one that is not over. */
static void put_restore(FILE *to, const json_t *jobs)
{
    const json_t *job = NULL, *error;
    for (size_t i = json_array_size(jobs); !job && i-- > 0;)
        if (json_is(json_array_get(jobs, i), "type", "cluster_restore"))
            job = json_array_get(jobs, i);
    (void)fputs("<h2>Restore</h2>\n<p>", to);
    if (!job) {
        (void)fputs("None yet.</p>\n", to);
        return;
    }
    put(to, json_str(job, "id"));
    (void)fputs(" to ", to);
    put(to, json_str(json_object_get(job, "plan"), "tag"));
    (void)fputs(": ", to);
    put(to, json_str(job, "state"));
    (void)fputs(", wave: ", to);
    put(to, json_str(job, "phase"));
    (void)fputs("</p>\n", to);
    error = json_object_get(job, "error");
    if (json_is_object(error)) {
        (void)fputs("<p>", to);
        put_cause(to, json_str(error, "text"), json_str(error, "hint"));
        (void)fputs("</p>\n", to);
    }
    put_members_of(to, job);
}

static void put_snapshots(FILE *to, const json_t *jobs)
{
    size_t count = 0;
    (void)fputs("<h2>Last snapshots from here</h2>\n"
                "<table><tr><th>Tag<th>State<th>Begun<th>Ended<th>Read from<th>Cause</tr>\n",
                to);
    for (size_t i = json_array_size(jobs); count < SNAPSHOTS_MAX && i-- > 0;) {
        const json_t *job = json_array_get(jobs, i), *error = json_object_get(job, "error");
        if (!json_is(job, "type", "cluster_snapshot"))
            continue;
        count++;
        (void)fputs("<tr>", to);
        put_cell(to, json_str(job, "tag"));
        put_cell(to, json_str(job, "state"));
        put_time(to, json_object_get(job, "started_s"));
        put_time(to, json_object_get(job, "ended_s"));
        put_cell(to, json_str(job, "source"));
        (void)fputs("<td>", to);
        put_cause(to, json_str(error, "text"), json_str(error, "hint"));
        (void)fputs("</td></tr>\n", to);
    }
    (void)fputs("</table>\n", to);
}

/* --- the page --------------------------------------------------------------------------------- */

static void put_page(FILE *to, const struct cluster *cluster, const json_t *status,
                     const json_t *jobs)
{
    (void)fputs(head, to);
    put(to, cluster->conf->cluster);
    (void)fputs(": ", to);
    put(to, json_str(status, "status"));
    (void)fputs(style, to);
    (void)fputs("<h1>", to);
    put(to, cluster->conf->cluster);
    (void)fputs(": ", to);
    put_status(to, json_str(status, "status"));
    (void)fputs("</h1>\n", to);
    put_nodes(to, json_object_get(status, "members"));
    put_restore(to, jobs);
    put_snapshots(to, jobs);
    (void)fputs("<p class=\"hint\">tidemark-coordinator " TIDEMARK_VERSION "</p></body></html>\n",
                to);
}

char *cluster_page(const struct cluster *cluster)
{
    char *text = NULL;
    size_t len;
    struct err err;
    free_json json_t *status = cluster_status(cluster), *jobs = NULL;
    FILE *to = open_memstream(&text, &len);
    if (!to)
        abort();
    if (job_list(cluster->conf, &jobs, &err) < 0)
        log_error("jobs not readable: err=\"%s\"", err.text);
    put_page(to, cluster, status, jobs);
    if (fclose(to) != 0)
        abort(); /* memory ran out */
    return text;
}
