/* options.c - text to fields and back, by a table. */
#include "base/config.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { PLACE_SIZE = CONFIG_STRING + 32, EXPECTATION_SIZE = 160 };

static const double no_limit = 9.2e18; /* bounds beyond are not worth printing */

const char *location_print(const struct location *where, char *buffer, size_t size)
{
    if (where->file[0] == '\0') {
        snprintf(buffer, size, "argument %d", where->line);
    } else {
        snprintf(buffer, size, "%s:%d:%d", where->file, where->line, where->column);
    }
    return buffer;
}

const struct option *option_find(const struct option *table, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(table[i].name, name) == 0) {
            return &table[i];
        }
    }
    return NULL;
}

/* ---- the nearest name ---- */

/* Levenshtein distance; names longer than a key may be are nowhere near. */
static size_t name_distance(const char *a, const char *b)
{
    size_t row[CONFIG_KEY + 1];
    size_t na = strlen(a), nb = strlen(b);

    if (na > CONFIG_KEY || nb > CONFIG_KEY) {
        return SIZE_MAX;
    }
    for (size_t j = 0; j <= nb; j++) {
        row[j] = j;
    }
    for (size_t i = 1; i <= na; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best) {
                best = row[j] + 1;
            }
            if (row[j - 1] + 1 < best) {
                best = row[j - 1] + 1;
            }
            row[j] = best;
        }
    }
    return row[nb];
}

static const char *last_part(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot != NULL ? dot + 1 : name;
}

/* People mistype a letter or forget the group: compare whole names and the parts after the dot. */
const char *option_nearest(const struct option *table, size_t count, const char *name)
{
    const char *nearest = NULL;
    size_t limit = strlen(name) / 3;
    size_t best = (limit > 2 ? limit : 2) + 1;

    for (size_t i = 0; i < count; i++) {
        size_t whole = name_distance(name, table[i].name);
        size_t part = name_distance(last_part(name), last_part(table[i].name));
        size_t part_limit = strlen(last_part(table[i].name)) / 3;
        size_t distance = part <= part_limit && part + 2 < whole ? part + 2 : whole;
        if (distance < best) {
            best = distance;
            nearest = table[i].name;
        }
    }
    return nearest;
}

/* ---- parsing ---- */

static bool parse_bool(const char *text, bool *out)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcasecmp(text, words[i]) == 0) {
            *out = i % 2 == 1;
            return true;
        }
    }
    return false;
}

static bool parse_int(const char *text, double min, double max, int64_t *out)
{
    char *end;

    if (strchr("0123456789+-", text[0]) == NULL) {
        return false; /* strtoll would skip blanks */
    }
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0) {
        return false;
    }
    *out = value;
    return (double)value >= min && (double)value <= max;
}

/* Open bounds are those of the float32 that the value becomes. */
static bool real_fits(const struct option *option, double value)
{
    return value >= option->min && value <= option->max &&
           !(option->above_min && (float)value <= (float)option->min) &&
           !(option->below_max && (float)value >= (float)option->max);
}

static bool parse_real(const char *text, const struct option *option, double *out)
{
    char *end;

    if (strchr("0123456789+-.", text[0]) == NULL) {
        return false;
    }
    errno = 0;
    double value = strtod(text, &end);
    bool vanished = errno == ERANGE && value == 0; /* 1e-400 is not 0 */
    if (end == text || *end != '\0' || !isfinite(value) || vanished) {
        return false;
    }
    *out = value;
    return real_fits(option, value);
}

/* Does the sequence that begins here end after *length bytes, all as UTF-8 has them? */
static bool utf8_step(const unsigned char *at, size_t *length)
{
    unsigned first = at[0];
    *length = first < 0x80   ? 1
              : first < 0xc2 ? 0
              : first < 0xe0 ? 2
              : first < 0xf0 ? 3
              : first < 0xf5 ? 4
                             : 0;
    for (size_t i = 1; i < *length; i++) {
        if ((at[i] & 0xc0) != 0x80) {
            return false;
        }
    }
    return *length > 0 && !(first == 0xe0 && at[1] < 0xa0) && !(first == 0xed && at[1] > 0x9f) &&
           !(first == 0xf0 && at[1] < 0x90) && !(first == 0xf4 && at[1] > 0x8f);
}

/* What config.yaml could not hold would be read by nobody again. */
static bool is_utf8(const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    for (size_t length; *at; at += length) {
        if (!utf8_step(at, &length)) {
            return false;
        }
    }
    return true;
}

static bool parse_choice(const char *text, const char *choices, int *out)
{
    size_t length = strlen(text);

    for (int i = 0;; i++) {
        size_t word = strcspn(choices, "|");
        if (word == length && strncmp(choices, text, word) == 0) {
            *out = i;
            return true;
        }
        if (choices[word] == '\0') {
            return false;
        }
        choices += word + 1;
    }
}

/* ---- names that another room knows ---- */

static struct {
    const char *option, *names;
} names_of[4];

void option_names_set(const char *option, const char *names)
{
    size_t i = 0, most = sizeof names_of / sizeof names_of[0];
    while (i < most && names_of[i].option != NULL && strcmp(names_of[i].option, option) != 0) {
        i++;
    }
    CHECK(i < most, "more than %zu options have names from elsewhere", most);
    names_of[i].option = option;
    names_of[i].names = names;
}

const char *option_names(const struct option *option)
{
    for (size_t i = 0; i < sizeof names_of / sizeof names_of[0]; i++) {
        if (names_of[i].option != NULL && strcmp(names_of[i].option, option->name) == 0) {
            return names_of[i].names;
        }
    }
    return NULL;
}

static bool is_name_of(const struct option *option, const char *text)
{
    const char *names = option->type == OPTION_NAME ? option_names(option) : NULL;
    int index;
    return names == NULL || (option->file && strpbrk(text, "/.")) ||
           parse_choice(text, names, &index);
}

/* Writes the field only if the text fits. */
static bool option_parse(const struct option *option, const char *text, void *base)
{
    void *field = (char *)base + option->offset;
    bool flag;
    int64_t integer;
    double real;
    int choice;

    switch (option->type) {
    case OPTION_BOOL:
        if (!parse_bool(text, &flag)) {
            return false;
        }
        *(bool *)field = flag;
        return true;
    case OPTION_INT:
        if (!parse_int(text, option->min, option->max, &integer)) {
            return false;
        }
        *(int64_t *)field = integer;
        return true;
    case OPTION_REAL:
        if (!parse_real(text, option, &real)) {
            return false;
        }
        *(double *)field = real;
        return true;
    case OPTION_CHOICE:
        if (!parse_choice(text, option->choices, &choice)) {
            return false;
        }
        *(int *)field = choice;
        return true;
    case OPTION_STRING:
    case OPTION_NAME:
        if (strlen(text) >= CONFIG_STRING || !is_utf8(text) || !is_name_of(option, text)) {
            return false;
        }
        memset(field, 0, CONFIG_STRING);
        memcpy(field, text, strlen(text));
        return true;
    }
    return false;
}

/* The bounds of a number; the largest value of the type only to whom it stopped. */
static void bounds_print(const struct option *option, const char *text, char *buffer, size_t size)
{
    bool integer = option->type == OPTION_INT;
    double value = strtod(text, NULL);
    bool endless = !integer && isinf(value) && strchr("0123456789+-.", text[0]) != NULL;
    const char *noun = integer ? "an integer" : endless ? "a finite number" : "a number";

    if (option->above_min || option->below_max) {
        snprintf(buffer, size, "%s %s %.10g and %s %.10g (%s)", noun,
                 option->above_min ? "above" : "of at least", option->min,
                 option->below_max ? "below" : "at most", option->max, option->why);
    } else if (option->max < no_limit) {
        snprintf(buffer, size, "%s from %.10g to %.10g", noun, option->min, option->max);
    } else if (value > no_limit && integer) {
        snprintf(buffer, size, "%s of at most %lld", noun, (long long)INT64_MAX);
    } else if (value > option->max && !endless) {
        snprintf(buffer, size, "%s of at most %.10g", noun, option->max);
    } else if (option->min > -no_limit) {
        snprintf(buffer, size, "%s of at least %.10g", noun, option->min);
    } else {
        snprintf(buffer, size, "%s", noun);
    }
}

/* What the option wants, for a text that is not it. */
static const char *option_expectation(const struct option *option, const char *text, char *buffer,
                                      size_t size)
{
    switch (option->type) {
    case OPTION_BOOL:
        return "true or false";
    case OPTION_NAME:
        if (option_names(option) && strlen(text) < CONFIG_STRING) {
            snprintf(buffer, size, "one of %s%s", option_names(option),
                     option->file ? ", or the path of a file with a '/' or a '.' in it" : "");
            break;
        }
        snprintf(buffer, size, "at most %d bytes of text", CONFIG_STRING - 1);
        break;
    case OPTION_STRING:
        snprintf(buffer, size, "at most %d bytes of UTF-8 text", CONFIG_STRING - 1);
        break;
    case OPTION_CHOICE:
        snprintf(buffer, size, "one of %s", option->choices);
        break;
    case OPTION_INT:
    case OPTION_REAL:
        bounds_print(option, text, buffer, size);
        break;
    }
    return buffer;
}

void option_defaults(const struct option *table, size_t count, void *base)
{
    for (size_t i = 0; i < count; i++) {
        if (table[i].default_value != NULL) {
            CHECK(option_parse(&table[i], table[i].default_value, base), "default '%s' of %s",
                  table[i].default_value, table[i].name);
        }
    }
}

status_t option_set(const struct option *table, size_t count, void *base, const char *prefix,
                    const char *name, const char *text, const struct location *where)
{
    char place[PLACE_SIZE], expected[EXPECTATION_SIZE];
    const struct option *option = option_find(table, count, name);

    location_print(where, place, sizeof place);
    if (option == NULL) {
        const char *nearest = option_nearest(table, count, name);
        if (nearest != NULL) {
            return FAIL(STATUS_INVALID, "%s: unknown key %s%s; did you mean %s%s?", place, prefix,
                        name, prefix, nearest);
        }
        return FAIL(STATUS_INVALID, "%s: unknown key %s%s; `muddpipe --help-config` lists the keys",
                    place, prefix, name);
    }
    if (!option_parse(option, text, base)) {
        return FAIL(STATUS_INVALID, "%s: %s%s must be %s, not '%.80s'", place, prefix, name,
                    option_expectation(option, text, expected, sizeof expected), text);
    }
    return STATUS_OK;
}
