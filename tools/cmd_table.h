/* A table for people: columns as wide as what is in them. A terminal that is too narrow for all
 * gets those that matter most; a pipe gets every one. One thread. */
#ifndef TIDEMARK_TOOLS_CMD_TABLE_H
#define TIDEMARK_TOOLS_CMD_TABLE_H

#include <stdbool.h>
#include <stddef.h>

enum { CMD_TABLE_COLUMNS_MAX = 12, CMD_TABLE_CELL_MAX = 64 };

struct cmd_table_column {
    const char *title;
    bool right;         /* numbers */
    unsigned leaves_as; /* 1 leaves first where there is no room; 0 = never */
};

struct cmd_table {
    const struct cmd_table_column *columns;
    size_t column_count;
    char (*cells)[CMD_TABLE_CELL_MAX]; /* row by row, malloc'ed */
    size_t row_count, row_max;
};

/* The cells of a new row, all empty; valid until the next call. */
char (*cmd_table_row(struct cmd_table *table))[CMD_TABLE_CELL_MAX];
/* To stdout, with the titles. */
void cmd_table_print(const struct cmd_table *table);
void cmd_table_release(struct cmd_table *table);

#endif
