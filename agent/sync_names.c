/* See sync_names.h: a list of names, with "NUM (…)", "FIRST NUM (…)" or "ANY NUM (…)" around it. */
#include "agent/sync_names.h"

#include <ctype.h>
#include <stdio.h>
#include <strings.h>

enum token { TOKEN_END, TOKEN_NAME, TOKEN_KEYWORD, TOKEN_NUMBER, TOKEN_MARK, TOKEN_JUNK };

struct scan {
    const char *at;
    enum token token;
    char text[64]; /* of the token */
};

static bool is_letter(char c)
{
    return isalpha((unsigned char)c) || c == '_' || (unsigned char)c >= 0x80;
}

static void add(struct scan *scan, size_t *len, char c)
{
    if (*len + 1 < sizeof(scan->text))
        scan->text[(*len)++] = c;
    scan->text[*len] = '\0';
}

/* A quote inside is doubled. */
static enum token quoted(struct scan *scan)
{
    size_t len = 0;
    for (scan->at++; *scan->at; scan->at++) {
        if (*scan->at == '"' && scan->at[1] != '"') {
            scan->at++;
            return TOKEN_NAME;
        }
        scan->at += *scan->at == '"';
        add(scan, &len, *scan->at);
    }
    return TOKEN_JUNK;
}

static enum token word(struct scan *scan)
{
    bool number = isdigit((unsigned char)*scan->at);
    size_t len = 0;
    while (number ? isdigit((unsigned char)*scan->at) != 0
                  : is_letter(*scan->at) || isdigit((unsigned char)*scan->at) || *scan->at == '$')
        add(scan, &len, *scan->at++);
    bool keyword = strcasecmp(scan->text, "any") == 0 || strcasecmp(scan->text, "first") == 0;
    return number ? TOKEN_NUMBER : keyword ? TOKEN_KEYWORD : TOKEN_NAME;
}

static void next(struct scan *scan)
{
    scan->at += strspn(scan->at, " \t\n\r\f\v");
    scan->text[0] = '\0';
    if (!*scan->at)
        scan->token = TOKEN_END;
    else if (*scan->at == '"')
        scan->token = quoted(scan);
    else if (is_letter(*scan->at) || isdigit((unsigned char)*scan->at))
        scan->token = word(scan);
    else {
        scan->token = strchr("*,()", *scan->at) ? TOKEN_MARK : TOKEN_JUNK;
        (void)snprintf(scan->text, sizeof(scan->text), "%c", *scan->at++);
    }
}

static bool is_mark(const struct scan *scan, const char *mark)
{
    return scan->token == TOKEN_MARK && strcmp(scan->text, mark) == 0;
}

/* name[i]: whether a name seen so far is that of standby i. */
static bool take_names(struct scan *scan, const char *const *applications, size_t count,
                       bool *named)
{
    for (;; next(scan)) {
        bool all = is_mark(scan, "*");
        if (!all && scan->token != TOKEN_NAME && scan->token != TOKEN_NUMBER)
            return false;
        for (size_t i = 0; i < count; i++)
            named[i] |= all || strcasecmp(applications[i], scan->text) == 0;
        next(scan);
        if (!is_mark(scan, ","))
            return true;
    }
}

/* "2 (a, b)" begins like the list "2, b". */
static bool take_number(struct scan *scan, unsigned *ret_wanted)
{
    struct scan ahead = *scan;
    bool keyword = scan->token == TOKEN_KEYWORD;
    if (keyword)
        next(&ahead);
    char *end;
    unsigned long number = strtoul(ahead.text, &end, 10);
    bool good = ahead.token == TOKEN_NUMBER && number > 0 && number <= INT32_MAX;
    next(&ahead);
    if (!good || !is_mark(&ahead, "("))
        return !keyword;
    next(&ahead);
    *scan = ahead;
    *ret_wanted = (unsigned)number;
    return true;
}

bool sync_names_count(const char *setting, const char *const *applications, size_t count,
                      unsigned *ret_wanted, unsigned *ret_found)
{
    struct scan scan = {.at = setting};
    bool named[64] = {false};
    unsigned wanted = 0, found = 0;
    next(&scan);
    if (count > ARRAY_LEN(named) || !take_number(&scan, &wanted) ||
        !take_names(&scan, applications, count, named))
        return false;
    if (wanted > 0) { /* the list stands in brackets */
        if (!is_mark(&scan, ")"))
            return false;
        next(&scan);
    }
    if (scan.token != TOKEN_END)
        return false;
    for (size_t i = 0; i < count; i++)
        found += named[i];
    *ret_wanted = wanted > 0 ? wanted : 1;
    *ret_found = found;
    return true;
}
