/* data.c - muddpipe data: token files from text, and a look into them. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/runtime.h"
#include "tools/tools.h"

static int data_help(FILE *out, int code)
{
    fprintf(
        out,
        "usage: muddpipe data encode TEXT... OUT.bin [--valid FRACTION VALID.bin]\n"
        "           bytes of the texts as an llm.c token file (u16, vocabulary 256), '-' being\n"
        "           standard input; --valid holds back the last FRACTION of them\n"
        "       muddpipe data inspect FILE\n"
        "           format, number and range of tokens, the most frequent ones, the beginning\n"
        "       muddpipe data check FILE --vocab V\n"
        "           whether every token is below V\n");
    return code;
}

int data_usage_failed(const char *what)
{
    fprintf(stderr, "muddpipe data: %s\n\n", what);
    return data_help(stderr, EXIT_USAGE);
}

/* ---- inspect ---- */

enum { SOME = 4096, IDS = 1 << 20, FREQUENT = 8, BEGINNING = 320 };

struct summary {
    int64_t *times; /* [IDS] of the ids below IDS */
    int64_t tokens, distinct, least, most;
};

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

static status_t inspect_run(const struct tokens *tokens, int64_t *times)
{
    char format[64];
    struct summary summary = {.times = times};

    TRY(summary_fill(tokens, &summary));
    bool letters = summary.most < 256;
    printf("file           %s\nformat         %s\ntokens         %" PRId64 "\n",
           tokens_path(tokens), tokens_format_name(tokens, format, sizeof format), summary.tokens);
    if (summary.tokens == 0) {
        return STATUS_OK;
    }
    printf("ids            %" PRId64 " to %" PRId64 "\n", summary.least, summary.most);
    printf("distinct       %" PRId64 "%s\n", summary.distinct,
           summary.most < IDS ? "" : " (of the ids below 1048576)");
    frequent_print(&summary, letters);
    return beginning_print(tokens, letters);
}

static int data_inspect(int argc, char **argv)
{
    struct tokens *tokens = NULL;

    if (argc != 1) {
        return data_usage_failed("inspect takes one file");
    }
    log_set_level(LOG_WARN); /* the format is printed anyway */
    if (tokens_open(argv[0], 0, &tokens) != STATUS_OK) {
        return EXIT_FAILURE;
    }
    int64_t *times = calloc(IDS, sizeof *times);
    status_t status = times != NULL ? inspect_run(tokens, times)
                                    : FAIL(STATUS_NOMEM, "no memory to count tokens");
    free(times);
    tokens_close(tokens);
    return status == STATUS_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* ---- check ---- */

static status_t check_run(const struct tokens *tokens)
{
    static int32_t chunk[SOME];

    for (int64_t at = 0, all = tokens_count(tokens); at < all; at += SOME) {
        TRY(tokens_read(tokens, at, all - at < SOME ? all - at : SOME, chunk));
    }
    return STATUS_OK;
}

static int data_check(int argc, char **argv)
{
    struct tokens *tokens = NULL;
    char *end = NULL;
    long long vocab = argc == 3 && strcmp(argv[1], "--vocab") == 0 ? strtoll(argv[2], &end, 10) : 0;

    if (end == NULL || *end != '\0' || vocab < 1 || vocab > INT32_MAX) {
        return data_usage_failed("check takes a file and --vocab V, V at least 1");
    }
    if (tokens_open(argv[0], vocab, &tokens) != STATUS_OK) {
        return EXIT_FAILURE;
    }
    status_t status = check_run(tokens);
    if (status == STATUS_OK) {
        printf("%s: %" PRId64 " tokens, all below %lld\n", argv[0], tokens_count(tokens), vocab);
    }
    tokens_close(tokens);
    return status == STATUS_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}

int data_main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    if (strcmp(what, "encode") == 0) {
        return data_encode(argc - 2, argv + 2);
    }
    if (strcmp(what, "inspect") == 0) {
        return data_inspect(argc - 2, argv + 2);
    }
    if (strcmp(what, "check") == 0) {
        return data_check(argc - 2, argv + 2);
    }
    if (strcmp(what, "--help") == 0 || strcmp(what, "-h") == 0) {
        return data_help(stdout, EXIT_SUCCESS);
    }
    return data_usage_failed(what[0] != '\0' ? "there are encode, inspect and check"
                                             : "what to do?");
}
