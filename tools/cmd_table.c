/* See cmd_table.h. */
#include "tools/cmd_table.h"

#include <stdio.h>

#include "tools/cmd.h"

enum { GAP = 2 };

char (*cmd_table_row(struct cmd_table *table))[CMD_TABLE_CELL_MAX]
{
    if (table->row_count == table->row_max) {
        table->row_max = table->row_max ? 2 * table->row_max : 32;
        table->cells =
            reallocarray(table->cells, table->row_max * table->column_count, CMD_TABLE_CELL_MAX);
        if (!table->cells)
            abort();
    }
    char(*row)[CMD_TABLE_CELL_MAX] = &table->cells[table->row_count++ * table->column_count];
    memset(row, 0, table->column_count * CMD_TABLE_CELL_MAX);
    return row;
}

void cmd_table_release(struct cmd_table *table)
{
    free(table->cells);
    table->cells = NULL;
    table->row_count = table->row_max = 0;
}

/* Names of ours, digits and ASCII units: bytes are columns. */
static void measure(const struct cmd_table *table, size_t widths[CMD_TABLE_COLUMNS_MAX])
{
    for (size_t c = 0; c < table->column_count; c++) {
        widths[c] = strlen(table->columns[c].title);
        for (size_t r = 0; r < table->row_count; r++) {
            size_t len = strlen(table->cells[r * table->column_count + c]);
            widths[c] = len > widths[c] ? len : widths[c];
        }
    }
}

/* A column that is left out has width 0. */
static void fit(const struct cmd_table *table, size_t columns, size_t widths[CMD_TABLE_COLUMNS_MAX])
{
    for (unsigned order = 1; columns > 0 && order <= table->column_count; order++) {
        size_t total = 0, leaves = table->column_count;
        for (size_t c = 0; c < table->column_count; c++) {
            total += widths[c] ? widths[c] + GAP : 0;
            leaves = table->columns[c].leaves_as == order ? c : leaves;
        }
        if (total <= columns + GAP)
            return;
        if (leaves < table->column_count)
            widths[leaves] = 0;
    }
}

static void print_cell(const char *text, size_t width, bool right, bool last)
{
    int pad = (int)(width - strlen(text));
    if (right)
        (void)printf("%*s", pad, "");
    cmd_print_text(text, 0, stdout);
    if (!right && !last)
        (void)printf("%*s", pad, "");
    (void)fputs(last ? "\n" : "  ", stdout);
}

static void print_line(const struct cmd_table *table, const size_t widths[CMD_TABLE_COLUMNS_MAX],
                       char (*row)[CMD_TABLE_CELL_MAX])
{
    size_t last = 0;
    for (size_t c = 0; c < table->column_count; c++)
        last = widths[c] ? c : last;
    for (size_t c = 0; c < table->column_count; c++)
        if (widths[c])
            print_cell(row ? row[c] : table->columns[c].title, widths[c], table->columns[c].right,
                       c == last);
}

void cmd_table_print(const struct cmd_table *table)
{
    size_t widths[CMD_TABLE_COLUMNS_MAX] = {0};
    measure(table, widths);
    fit(table, cmd_columns(STDOUT_FILENO), widths);
    print_line(table, widths, NULL);
    for (size_t r = 0; r < table->row_count; r++)
        print_line(table, widths, &table->cells[r * table->column_count]);
}
