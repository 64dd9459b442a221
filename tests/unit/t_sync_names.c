/* agent/sync_names: for how many standbys a commit waits, and how many of them are there. */
#include "agent/sync_names.h"
#include "tests/tap.h"

static const char *const present[] = {"db2", "db3", "walreceiver"};

static const struct {
    const char *setting;
    unsigned wanted, found; /* wanted 0: no such setting */
} rows[] = {
    {"db2", 1, 1},
    {" db2 , DB3 ", 1, 2},
    {"nobody", 1, 0},
    {"*", 1, 3},
    {"db2, *", 1, 3},
    {"2 (db2, db3)", 2, 2},
    {"2(db2,\"db 3\")", 2, 1},
    {"FIRST 3 (db2, db3, db4)", 3, 2},
    {"any 1 (db4, \"walreceiver\")", 1, 1},
    {"ANY 2 (*)", 2, 3},
    {"\"d\"\"b2\"", 1, 0},
    {"\"first\"", 1, 0},
    {"2, db2", 1, 1}, /* a list of names, one of them a number */
    {"2", 1, 0},
    {"", 0, 0},
    {"db2,", 0, 0},
    {"db2 db3", 0, 0},
    {"any", 0, 0},
    {"ANY (db2)", 0, 0},
    {"0 (db2)", 0, 0},
    {"2 (db2", 0, 0},
    {"2 (db2) x", 0, 0},
    {"\"open", 0, 0},
    {"db-2", 0, 0}, /* has to be quoted */
};

int main(void)
{
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        unsigned wanted = 0, found = 0;
        bool good = sync_names_count(rows[i].setting, present, ARRAY_LEN(present), &wanted, &found);
        ok(good == (rows[i].wanted > 0), "'%s': %s", rows[i].setting, good ? "read" : "refused");
        ok(wanted == rows[i].wanted && found == rows[i].found, "it wants %u and finds %u", wanted,
           found);
    }
    return done();
}
