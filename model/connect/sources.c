/* sources.c - connectivity as a list: which consumer reads which keys in which ways.
 *
 *     "10=0,7; 10:r=9; 11:vr=0,9"
 *
 * Entries CONSUMER[:WAYS]=KEY,KEY.. between semicolons. A consumer may have several; without WAYS an
 * entry is about all four. A way that is named reads the keys of all its entries and X_i; ways that are
 * not named take X_i itself, as do all ways of consumers that are not listed. The last consumer has the
 * way r alone. Nothing may be said twice.
 */
#include "model/connect/sources.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WAY_R_BIT = 8 };

struct reader {
    const char *text, *at, *source;
    int64_t layers;
};

static status_t refuse(const struct reader *reader, const char *what)
{
    return FAIL(STATUS_INVALID,
                "%sdense.sources, character %d: %s (entries are CONSUMER[:WAYS]=KEY,KEY.. between "
                "semicolons, for example \"10:vr=0,7; 11:r=0,9\")",
                reader->source, (int)(reader->at - reader->text) + 1, what);
}

static void skip_blanks(struct reader *reader)
{
    while (isspace((unsigned char)*reader->at)) {
        reader->at++;
    }
}

static bool take(struct reader *reader, char c)
{
    skip_blanks(reader);
    if (*reader->at != c) {
        return false;
    }
    reader->at++;
    return true;
}

static status_t read_number(struct reader *reader, int64_t least, int64_t most, const char *what,
                            int *out)
{
    skip_blanks(reader);
    char *end;
    long long value = isdigit((unsigned char)*reader->at) ? strtoll(reader->at, &end, 10) : -1;
    if (value < least || value > most) {
        char message[128];
        snprintf(message, sizeof message, "expected %s, %lld to %lld", what, (long long)least,
                 (long long)most);
        return refuse(reader, message);
    }
    reader->at = end;
    *out = (int)value;
    return STATUS_OK;
}

static status_t read_ways(struct reader *reader, int *out)
{
    *out = 0;
    if (!take(reader, ':')) {
        *out = 15;
        return STATUS_OK;
    }
    skip_blanks(reader);
    for (const char *way; *reader->at && (way = strchr("qkvr", *reader->at)); reader->at++) {
        if (*out & 1 << (way - "qkvr")) {
            return refuse(reader, "this way is named twice");
        }
        *out |= 1 << (way - "qkvr");
    }
    return *out ? STATUS_OK : refuse(reader, "expected some of the ways qkvr");
}

/* One entry; adds to `reads` [keys] (a mask of ways each) and `ways` if it is about `consumer`. */
static status_t read_entry(struct reader *reader, int consumer, int *reads, int *ways)
{
    int of = 0, mask = 0;
    TRY(read_number(reader, 1, reader->layers, "a consumer", &of));
    TRY(read_ways(reader, &mask));
    if (of == reader->layers && !(mask & WAY_R_BIT)) {
        return refuse(reader, "the aggregate of the last layer has one way, r");
    }
    if (!take(reader, '=')) {
        return refuse(reader, "expected '='");
    }
    mask = of == reader->layers ? WAY_R_BIT : mask;
    *ways |= of == consumer ? mask : 0;
    do {
        int key = -1;
        skip_blanks(reader);
        const char *begin = reader->at;
        TRY(read_number(reader, 0, of, "a key before or of that layer", &key));
        if (of == consumer && reads[key] & mask) {
            reader->at = begin;
            return refuse(reader, "this key is named twice for a way");
        }
        reads[key] |= of == consumer ? mask : 0;
    } while (take(reader, ','));
    return STATUS_OK;
}

status_t sources_read(const char *text, int64_t layers, int consumer, const char *source,
                      int *reads, int *out_ways)
{
    struct reader reader = {text, text, source, layers};
    memset(reads, 0, (size_t)(layers + 1) * sizeof *reads);
    *out_ways = 0;
    do { /* an empty list is no list: nobody asks */
        TRY(read_entry(&reader, consumer, reads, out_ways));
        skip_blanks(&reader);
        if (*reader.at && !take(&reader, ';')) {
            return refuse(&reader, "expected ';' or the end");
        }
        skip_blanks(&reader);
    } while (*reader.at);
    reads[consumer] |= *out_ways; /* X_i is read in every way that is formed */
    return STATUS_OK;
}
