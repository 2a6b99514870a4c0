/* data_look.c - muddpipe data inspect and check. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/data.h"
#include "tools/data.h"

/* ---- inspect ---- */

enum { SOME = 4096, IDS = 1 << 20, FREQUENT = 8, BEGINNING = 320 };

struct summary {
    int64_t *times; /* [IDS] of the ids below IDS */
    int64_t tokens, distinct, least, most;
};

struct lengths { /* of documents */
    int64_t documents, empty, least, most;
};

static void lengths_add(struct lengths *lengths, int64_t length)
{
    lengths->documents++;
    lengths->empty += length == 0;
    lengths->least = lengths->documents == 1 || length < lengths->least ? length : lengths->least;
    lengths->most = length > lengths->most ? length : lengths->most;
}

static void lengths_by_index(const struct tokens *tokens, struct lengths *out)
{
    for (int64_t d = 0; d < tokens_documents(tokens); d++) {
        lengths_add(out, tokens_document(tokens, d + 1) - tokens_document(tokens, d));
    }
}

static status_t lengths_by_token(const struct tokens *tokens, int64_t eod, struct lengths *out)
{
    static int32_t chunk[SOME];
    int64_t all = tokens_count(tokens), begun = 0;

    for (int64_t at = 0; at < all; at += SOME) {
        int64_t count = all - at < SOME ? all - at : SOME;
        TRY(tokens_read(tokens, at, count, chunk));
        for (int64_t i = 0; i < count; i++) {
            if (chunk[i] == eod || at + i + 1 == all) {
                lengths_add(out, at + i + 1 - begun);
                begun = at + i + 1;
            }
        }
    }
    return STATUS_OK;
}

static void lengths_print(const struct lengths *lengths, int64_t tokens, int64_t eod)
{
    printf("documents      %" PRId64, lengths->documents);
    if (eod >= 0) {
        printf(", each up to a token %" PRId64, eod);
    }
    if (lengths->documents > 0) {
        printf("; %" PRId64 " to %" PRId64 " tokens, mean %.1f, %" PRId64 " empty", lengths->least,
               lengths->most, (double)tokens / (double)lengths->documents, lengths->empty);
    }
    printf("\n");
}

static status_t documents_print(const struct tokens *tokens, int64_t eod)
{
    struct lengths lengths = {0};

    if (eod >= 0) {
        TRY(lengths_by_token(tokens, eod, &lengths));
    } else if (tokens_documents(tokens) >= 0) {
        lengths_by_index(tokens, &lengths);
    } else {
        printf("documents      not told by the format; --eod ID counts them\n");
        return STATUS_OK;
    }
    lengths_print(&lengths, tokens_count(tokens), eod);
    return STATUS_OK;
}

static status_t summary_fill(const struct tokens *tokens, struct summary *out)
{
    static int32_t chunk[SOME];

    out->tokens = tokens_count(tokens);
    out->least = INT64_MAX;
    out->most = -1;
    for (int64_t at = 0; at < out->tokens; at += SOME) {
        int64_t count = out->tokens - at < SOME ? out->tokens - at : SOME;
        TRY(tokens_read(tokens, at, count, chunk));
        for (int64_t i = 0; i < count; i++) {
            out->least = chunk[i] < out->least ? chunk[i] : out->least;
            out->most = chunk[i] > out->most ? chunk[i] : out->most;
            if (chunk[i] < IDS) {
                out->distinct += out->times[chunk[i]]++ == 0;
            }
        }
    }
    return STATUS_OK;
}

static void token_print(int64_t id, bool letters)
{
    if (letters && id < 256 && isprint((int)id)) {
        printf("'%c'", (int)id);
    } else {
        printf("%" PRId64, id);
    }
}

static void frequent_print(const struct summary *summary, bool letters)
{
    int64_t last = -1, bound = INT64_MAX;

    printf("most frequent");
    for (int shown = 0; shown < FREQUENT && shown < summary->distinct; shown++) {
        int64_t best = -1; /* the next in the order of (times descending, id ascending) */
        for (int64_t id = 0; id < IDS && id <= summary->most; id++) {
            int64_t times = summary->times[id];
            bool after = times < bound || (times == bound && id > last);
            if (times > 0 && after && (best < 0 || times > summary->times[best])) {
                best = id;
            }
        }
        last = best;
        bound = summary->times[best];
        printf("%s", shown > 0 ? ", " : "  ");
        token_print(best, letters);
        printf(" %.1f %%", 100.0 * (double)bound / (double)summary->tokens);
    }
    printf("\n");
}

static status_t beginning_print(const struct tokens *tokens, bool letters)
{
    int32_t first[BEGINNING];
    int64_t most = letters ? BEGINNING : 32, count = tokens_count(tokens);

    count = count < most ? count : most;
    TRY(tokens_read(tokens, 0, count, first));
    printf("begins with\n    ");
    for (int64_t i = 0; i < count; i++) {
        if (!letters) {
            printf("%" PRId32 " ", first[i]);
        } else if (first[i] == '\n') {
            printf("\n    ");
        } else {
            putchar(first[i] == '\t' || isprint(first[i]) ? first[i] : '?');
        }
    }
    printf("\n");
    return STATUS_OK;
}

static status_t inspect_run(const struct tokens *tokens, int64_t eod, int64_t *times)
{
    char format[64];
    struct summary summary = {.times = times};

    TRY(summary_fill(tokens, &summary));
    bool letters = summary.most < 256;
    printf("file           %s\nformat         %s\ntokens         %" PRId64 "\n",
           tokens_path(tokens), tokens_format_name(tokens, format, sizeof format), summary.tokens);
    TRY(documents_print(tokens, eod));
    if (summary.tokens == 0) {
        return STATUS_OK;
    }
    printf("ids            %" PRId64 " to %" PRId64 "\n", summary.least, summary.most);
    printf("distinct       %" PRId64 "%s\n", summary.distinct,
           summary.most < IDS ? "" : " (of the ids below 1048576)");
    frequent_print(&summary, letters);
    return beginning_print(tokens, letters);
}

int data_inspect(const struct data_arguments *arguments)
{
    struct tokens *tokens = NULL;

    if (arguments->files != 1) {
        return data_usage_failed("inspect takes one file");
    }
    if (tokens_open(arguments->file[0], 0, &tokens) != STATUS_OK) {
        return EXIT_FAILURE;
    }
    int64_t *times = calloc(IDS, sizeof *times);
    status_t status = times != NULL ? inspect_run(tokens, arguments->eod, times)
                                    : FAIL(STATUS_NOMEM, "no memory to count tokens");
    free(times);
    tokens_close(tokens);
    return status == STATUS_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* ---- check ---- */

static status_t check_tokens(const struct tokens *tokens)
{
    static int32_t chunk[SOME];

    for (int64_t at = 0, all = tokens_count(tokens); at < all; at += SOME) {
        TRY(tokens_read(tokens, at, all - at < SOME ? all - at : SOME, chunk));
    }
    return STATUS_OK;
}

/* Whether `eod` stands at the end of each document of the index, and nowhere else. */
static status_t check_ends(const struct tokens *tokens, int64_t eod)
{
    static int32_t chunk[SOME];
    int64_t document = 0, documents = tokens_documents(tokens), all = tokens_count(tokens);

    if (documents < 0) {
        return FAIL(STATUS_INVALID, "%s: --eod is compared with an index, and there is none",
                    tokens_path(tokens));
    }
    for (int64_t at = 0; at < all; at += SOME) {
        int64_t count = all - at < SOME ? all - at : SOME;
        TRY(tokens_read(tokens, at, count, chunk));
        for (int64_t i = 0; i < count; i++) {
            while (document < documents && tokens_document(tokens, document + 1) <= at + i) {
                document++;
            }
            bool ends = tokens_document(tokens, document + 1) == at + i + 1;
            if (ends != (chunk[i] == eod)) {
                return FAIL(STATUS_INVALID,
                            "%s: document %" PRId64 " %s token %" PRId64 " at position %" PRId64,
                            tokens_path(tokens), document,
                            ends ? "does not end with the" : "goes on behind the", eod, at + i);
            }
        }
    }
    return STATUS_OK;
}

int data_check(const struct data_arguments *arguments)
{
    struct tokens *tokens = NULL;

    if (arguments->files != 1 || arguments->vocab == 0) {
        return data_usage_failed("check takes a file and --vocab V");
    }
    if (tokens_open(arguments->file[0], arguments->vocab, &tokens) != STATUS_OK) {
        return EXIT_FAILURE;
    }
    status_t status = check_tokens(tokens);
    if (status == STATUS_OK && arguments->eod >= 0) {
        status = check_ends(tokens, arguments->eod);
    }
    if (status == STATUS_OK) {
        printf("%s: %" PRId64 " tokens, all below %" PRId64 "\n", arguments->file[0],
               tokens_count(tokens), arguments->vocab);
    }
    tokens_close(tokens);
    return status == STATUS_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
