/* sources.c - lists of token files. */
#include "data/sources.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/mixture.h"

enum { DECIMALS = 6, MILLION = 1000000, FILES = 1 << 16 };
static const int64_t weight_max = (int64_t)1000000 * MILLION; /* in millionths */

/* ---- an entry ---- */

/* A decimal number as millionths; false if `text` is none, has more places, or is out of range. */
static bool weight_parse(const char *text, int64_t *out)
{
    int64_t value = 0;
    int places = -1; /* behind the point; -1: before it */
    bool digits = false;

    for (; *text != '\0'; text++) {
        if (*text == '.' && places < 0) {
            places = 0;
            continue;
        }
        if (!isdigit((unsigned char)*text) || places == DECIMALS || value > weight_max / 10) {
            return false;
        }
        value = 10 * value + (*text - '0');
        places += places >= 0;
        digits = true;
    }
    for (places = places < 0 ? 0 : places; places < DECIMALS; places++) {
        value *= 10;
    }
    *out = value;
    return digits && value > 0 && value <= weight_max;
}

/* The colon of "path:weight", or NULL. What begins like a number behind the last colon is meant as one. */
static char *weight_colon(char *entry)
{
    char *colon = strrchr(entry, ':');
    return colon != NULL && strchr("0123456789.+-", colon[1]) != NULL ? colon : NULL;
}

static status_t add_source(const char *key, int64_t weight, struct sources *out)
{
    int64_t *grown = realloc(out->weight, (size_t)(out->sources + 1) * sizeof *grown);

    if (grown == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the list of %s", key);
    }
    out->weight = grown;
    if (out->sources == MIXTURE_SOURCES) {
        return FAIL(STATUS_INVALID, "%s has more than %d weights", key, MIXTURE_SOURCES);
    }
    out->weight[out->sources++] = weight; /* 0: none was given */
    return STATUS_OK;
}

static status_t add_file(const char *key, const char *path, struct sources *out)
{
    if (out->files == FILES) {
        return FAIL(STATUS_INVALID, "%s names more than %d files", key, FILES);
    }
    if (out->files == out->room) {
        int room = out->room > 0 ? 2 * out->room : 8;
        struct source_file *grown = realloc(out->file, (size_t)room * sizeof *grown);
        if (grown == NULL) {
            return FAIL(STATUS_NOMEM, "no memory for the list of %s", key);
        }
        out->file = grown;
        out->room = room;
    }
    struct source_file *file = &out->file[out->files];
    file->source = out->sources - 1;
    file->path = strdup(path);
    if (file->path == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the list of %s", key);
    }
    out->files++;
    return STATUS_OK;
}

static status_t add_entry(const char *key, char *entry, struct sources *out)
{
    int64_t weight = 0;
    char *colon = weight_colon(entry);

    if (colon != NULL) {
        if (!weight_parse(colon + 1, &weight)) {
            return FAIL(STATUS_INVALID,
                        "%s: the weight of %s must be a number above 0, up to %d, with at most %d "
                        "decimal places",
                        key, entry, MILLION, DECIMALS);
        }
        *colon = '\0';
        out->weighted = true;
        if (out->sources > 0 && out->weight[0] == 0) {
            return FAIL(STATUS_INVALID,
                        "%s: %s has a weight but the first file has none; give it one too, or none "
                        "at all to read the files one after another",
                        key, entry);
        }
    }
    if (entry[0] == '\0') {
        return FAIL(STATUS_INVALID, "%s: an empty entry among the files", key);
    }
    if (colon != NULL || out->sources == 0) {
        TRY(add_source(key, weight, out));
    }
    return add_file(key, entry, out);
}

/* ---- lists ---- */

static char *trimmed(char *text)
{
    char *end = text + strlen(text);

    while (end > text && isspace((unsigned char)end[-1])) {
        *--end = '\0';
    }
    while (isspace((unsigned char)*text)) {
        text++;
    }
    return text;
}

static status_t add_listed(const char *key, const char *path, struct sources *out)
{
    FILE *stream = fopen(path, "r");
    char *line = NULL;
    size_t size = 0;
    status_t status = STATUS_OK;

    if (stream == NULL) {
        return FAIL(STATUS_IO, "%s: cannot open the list of files %s: %s", key, path,
                    strerror(errno));
    }
    while (status == STATUS_OK && getline(&line, &size, stream) >= 0) {
        char *entry = trimmed(line);
        if (entry[0] == '@') {
            status = FAIL(STATUS_INVALID, "%s: %s names a list again: %s", key, path, entry);
        } else if (entry[0] != '\0' && entry[0] != '#') {
            status = add_entry(key, entry, out);
        }
    }
    if (status == STATUS_OK && ferror(stream)) {
        status = FAIL(STATUS_IO, "%s: cannot read %s: %s", key, path, strerror(errno));
    }
    free(line);
    fclose(stream);
    return status;
}

static int64_t common_divisor(int64_t a, int64_t b)
{
    return b == 0 ? a : common_divisor(b, a % b);
}

/* Whole numbers as small as can be; one source without a weight gets 1. */
static status_t reduce_weights(const char *key, struct sources *out)
{
    int64_t divisor = 0, sum = 0;

    for (int i = 0; i < out->sources; i++) {
        divisor = common_divisor(out->weight[i], divisor);
    }
    for (int i = 0; i < out->sources; i++) {
        out->weight[i] = divisor > 0 ? out->weight[i] / divisor : 1;
        sum += out->weight[i];
    }
    return sum <= MIXTURE_PERIOD
               ? STATUS_OK
               : FAIL(STATUS_INVALID,
                      "%s: the weights repeat only after %lld sequences; round them, so that their "
                      "sum as whole numbers is at most %d (1.23:4.57 rather than "
                      "1.234567:4.567891)",
                      key, (long long)sum, MIXTURE_PERIOD);
}

static status_t parse(const char *key, char *list, struct sources *out)
{
    for (char *entry = list, *comma; entry != NULL; entry = comma) {
        comma = strchr(entry, ',');
        if (comma != NULL) {
            *comma++ = '\0';
        }
        entry = trimmed(entry);
        TRY(entry[0] == '@' ? add_listed(key, entry + 1, out) : add_entry(key, entry, out));
    }
    if (out->files == 0) {
        return FAIL(STATUS_INVALID, "%s names no files", key);
    }
    return reduce_weights(key, out);
}

status_t sources_parse(const char *key, const char *list, struct sources *out)
{
    char *copy = strdup(list);
    struct sources sources = {0};

    if (copy == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the list of %s", key);
    }
    status_t status = parse(key, copy, &sources);
    free(copy);
    if (status == STATUS_OK && strchr(list, ',') != NULL && access(list, F_OK) == 0) {
        status = FAIL(
            STATUS_INVALID,
            "%s: `%s` is the name of a file, and a list of several for its comma: write the name "
            "into a file, a name a line, and give that as %s=@FILE",
            key, list, key);
    }
    if (status != STATUS_OK) {
        sources_free(&sources);
        return status;
    }
    *out = sources;
    return STATUS_OK;
}

void sources_free(struct sources *sources)
{
    for (int i = 0; i < sources->files; i++) {
        free(sources->file[i].path);
    }
    free(sources->file);
    free(sources->weight);
    *sources = (struct sources){0};
}
