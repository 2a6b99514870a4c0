/* options_print.c - values and tables of options as text. */
#include "base/config.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { VALUE_SIZE = CONFIG_STRING, RANGE_SIZE = 96 };

static const char *const type_names[] = {
    [OPTION_BOOL] = "bool",     [OPTION_INT] = "int",   [OPTION_REAL] = "real",
    [OPTION_STRING] = "string", [OPTION_NAME] = "name", [OPTION_CHOICE] = "choice",
};

static void choice_print(const char *choices, int index, char *buffer, size_t size)
{
    for (; index > 0 && strchr(choices, '|') != NULL; index--) {
        choices = strchr(choices, '|') + 1;
    }
    snprintf(buffer, size, "%.*s", (int)strcspn(choices, "|"), choices);
}

/* The fewest digits that read back as the same number. */
static void real_print(double value, char *buffer, size_t size)
{
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(buffer, size, "%.*g", digits, value);
        if (strtod(buffer, NULL) == value) {
            return;
        }
    }
}

const char *option_print(const struct option *option, const void *base, char *buffer, size_t size)
{
    const void *field = (const char *)base + option->offset;

    switch (option->type) {
    case OPTION_BOOL:
        snprintf(buffer, size, "%s", *(const bool *)field ? "true" : "false");
        break;
    case OPTION_INT:
        snprintf(buffer, size, "%" PRId64, *(const int64_t *)field);
        break;
    case OPTION_REAL:
        real_print(*(const double *)field, buffer, size);
        break;
    case OPTION_STRING:
    case OPTION_NAME:
        snprintf(buffer, size, "%s", (const char *)field);
        break;
    case OPTION_CHOICE:
        choice_print(option->choices, *(const int *)field, buffer, size);
        break;
    }
    return buffer;
}

static const char *range_print(const struct option *option, char *buffer, size_t size)
{
    const double no_limit = 9.2e18;

    buffer[0] = '\0';
    if (option->type == OPTION_CHOICE) {
        return option->choices;
    }
    if (option->type == OPTION_NAME && option_names(option)) {
        snprintf(buffer, size, "%s%s", option_names(option), option->file ? "|FILE" : "");
    }
    if (option->type == OPTION_INT || option->type == OPTION_REAL) {
        if (option->max < no_limit) {
            snprintf(buffer, size, "%.10g..%.10g", option->min, option->max);
        } else if (option->min > -no_limit) {
            snprintf(buffer, size, ">= %.10g", option->min);
        }
    }
    return buffer;
}

static const char *default_print(const struct option *option)
{
    if (option->default_value == NULL || option->default_value[0] == '\0') {
        return "-";
    }
    return option->default_value;
}

void option_help(const struct option *table, size_t count, const char *prefix, FILE *out)
{
    int key_width = 3, default_width = 7, range_width = 5;
    char range[RANGE_SIZE];

    for (size_t i = 0; i < count; i++) {
        int key = (int)(strlen(prefix) + strlen(table[i].name));
        int text = (int)strlen(default_print(&table[i]));
        int bounds = (int)strlen(range_print(&table[i], range, sizeof range));
        key_width = key > key_width ? key : key_width;
        default_width = text > default_width ? text : default_width;
        range_width = bounds > range_width ? bounds : range_width;
    }
    fprintf(out, "  %-*s  %-6s  %-*s  %-*s  %s\n", key_width, "key", "type", default_width,
            "default", range_width, "range", "meaning");
    for (size_t i = 0; i < count; i++) {
        int name_width = key_width - (int)strlen(prefix);
        fprintf(out, "  %s%-*s  %-6s  %-*s  %-*s  %s\n", prefix, name_width, table[i].name,
                type_names[table[i].type], default_width, default_print(&table[i]), range_width,
                range_print(&table[i], range, sizeof range), table[i].help);
    }
}
