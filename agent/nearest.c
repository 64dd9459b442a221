/* Nearest names: see nearest.h. Case does not count, so that "Socket" finds "socket". */
#include "agent/nearest.h"

#include <ctype.h>

#include "io/base.h"

enum { WORD_MAX = 64 };

static unsigned min3(unsigned a, unsigned b, unsigned c)
{
    unsigned ab = a < b ? a : b;
    return ab < c ? ab : c;
}

/* Levenshtein distance, one row at a time; both words are at most WORD_MAX long. */
static unsigned edit_distance(const char *a, const char *b)
{
    size_t a_len = strlen(a), b_len = strlen(b);
    unsigned row[WORD_MAX + 1];
    for (size_t j = 0; j <= b_len; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= a_len; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= b_len; j++) {
            unsigned above = row[j];
            bool same = tolower((unsigned char)a[i - 1]) == tolower((unsigned char)b[j - 1]);
            row[j] = min3(above + 1, row[j - 1] + 1, diagonal + (same ? 0 : 1));
            diagonal = above;
        }
    }
    return row[b_len];
}

const char *nearest_name(const char *word, const char *const *known)
{
    size_t len = strlen(word);
    if (len == 0 || len > WORD_MAX)
        return NULL;
    unsigned limit = len / 3 > 2 ? (unsigned)(len / 3) : 2;
    const char *best = NULL;
    unsigned best_distance = limit + 1;
    for (; *known; known++) {
        if (strlen(*known) > WORD_MAX)
            continue;
        unsigned distance = edit_distance(word, *known);
        if (distance < best_distance && distance < strlen(*known)) {
            best_distance = distance;
            best = *known;
        }
    }
    return best;
}
