/* data_convert.c - muddpipe data convert and split: from token files to token files. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "data/data.h"
#include "tools/data.h"

enum { SOME = 4096 };

/* ---- the text that is read ---- */

static status_t corpus_open_paths(const struct sources *sources, int64_t eod, struct corpus **out)
{
    struct corpus_options options = {.eod = eod, .documents = eod >= 0};
    const char **paths = calloc((size_t)sources->files, sizeof *paths);

    if (paths == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for %d files", sources->files);
    }
    for (int i = 0; i < sources->files; i++) {
        paths[i] = sources->file[i].path;
    }
    status_t status = corpus_open(paths, sources->files, &options, out);
    free(paths);
    return status;
}

/* Documents by the files' indexes, else by the token, else unknown. */
static status_t text_open(const char *list, int64_t eod, struct corpus **out)
{
    struct sources sources;
    struct corpus *corpus = NULL;

    TRY(sources_parse("the list of files", list, &sources));
    status_t status = !sources.weighted
                          ? corpus_open_paths(&sources, -1, &corpus)
                          : FAIL(STATUS_INVALID,
                                 "%s: files to be copied take no weights: all tokens of each "
                                 "are copied, one file after another",
                                 list);
    if (status == STATUS_OK && corpus_documents(corpus) < 0 && eod >= 0) {
        corpus_close(corpus);
        corpus = NULL;
        status = corpus_open_paths(&sources, eod, &corpus);
    }
    sources_free(&sources);
    if (status == STATUS_OK) {
        *out = corpus;
    }
    return status;
}

/* Whether 16 bits are too few for some token, or for `eod`. */
static status_t text_is_wide(const struct corpus *corpus, int64_t eod, bool *out)
{
    static int32_t some[SOME];
    bool wide = eod > UINT16_MAX;

    for (int64_t at = 0, all = corpus_count(corpus); at < all && !wide; at += SOME) {
        int64_t count = all - at < SOME ? all - at : SOME;
        TRY(corpus_read(corpus, at, count, some));
        for (int64_t i = 0; i < count; i++) {
            wide = wide || some[i] > UINT16_MAX;
        }
    }
    *out = wide;
    return STATUS_OK;
}

/* Tokens [from, to), not empty; *out_last is the last of them. */
static status_t copy_tokens(const struct corpus *corpus, int64_t from, int64_t to,
                            struct token_file *file, int32_t *out_last)
{
    static int32_t some[SOME];

    for (int64_t at = from, count; at < to; at += count) {
        count = to - at < SOME ? to - at : SOME;
        TRY(corpus_read(corpus, at, count, some));
        TRY(token_file_put(file, some, count));
        *out_last = some[count - 1];
    }
    return STATUS_OK;
}

/* Tokens [from, to) document by document, empty ones left out; the last may go on behind `to`. */
static status_t copy_documents(const struct corpus *corpus, int64_t from, int64_t to, int64_t eod,
                               struct token_file *file, int64_t *out_added)
{
    int64_t documents = corpus_documents(corpus), added = 0;
    int32_t last = -1;

    if (documents < 0) {
        *out_added = 0;
        return copy_tokens(corpus, from, to, file, &last);
    }
    for (int64_t d = 0; d < documents; d++) {
        int64_t start = corpus_document(corpus, d), end = corpus_document(corpus, d + 1);
        if (end <= from || start >= to || start == end) {
            continue;
        }
        start = start < from ? from : start;
        TRY(copy_tokens(corpus, start, end < to ? end : to, file, &last));
        if (eod >= 0 && last != eod && end <= to) {
            int32_t token = (int32_t)eod;
            TRY(token_file_put(file, &token, 1));
            added++;
        }
        TRY(token_file_end_document(file));
    }
    *out_added = added;
    return STATUS_OK;
}

/* ---- convert ---- */

static status_t convert_run(const struct data_arguments *arguments, const struct corpus *corpus)
{
    struct token_file *pair[2];
    bool wide;
    int64_t added = 0;

    TRY(text_is_wide(corpus, arguments->eod, &wide));
    TRY(token_files_create(arguments->file[1], NULL, wide, arguments->force, pair));
    TRY(token_files_finish(
        pair, copy_documents(corpus, 0, corpus_count(corpus), arguments->eod, pair[0], &added)));
    if (added > 0) {
        printf("token %" PRId64 " was put behind %" PRId64 " documents that lacked it\n",
               arguments->eod, added);
    }
    return STATUS_OK;
}

int data_convert(const struct data_arguments *arguments)
{
    struct corpus *corpus;

    if (arguments->files != 2) {
        return data_usage_failed("convert takes files to read and one to write");
    }
    if (text_open(arguments->file[0], arguments->eod, &corpus) != STATUS_OK) {
        return EXIT_FAILURE;
    }
    status_t status = convert_run(arguments, corpus);
    corpus_close(corpus);
    return status == STATUS_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* ---- split ---- */

/* The end of a document nearest to `wish`, or of windows of seq_len, or `wish` itself. */
static int64_t choose_cut(const struct corpus *corpus, int64_t wish, int64_t seq_len)
{
    int64_t all = corpus_count(corpus), best = 0;

    if (seq_len > 0) {
        int64_t windows = (wish - 1 + seq_len / 2) / seq_len;
        return windows * seq_len + 1;
    }
    if (corpus_documents(corpus) < 0) {
        return wish;
    }
    for (int64_t d = 1; d < corpus_documents(corpus); d++) {
        int64_t end = corpus_document(corpus, d);
        if (end > 0 && end < all && (best == 0 || llabs(end - wish) < llabs(best - wish))) {
            best = end;
        }
    }
    return best;
}

static status_t split_run(const struct data_arguments *arguments, const struct corpus *corpus)
{
    struct token_file *pair[2];
    int64_t all = corpus_count(corpus), added;
    int64_t wish = all - (int64_t)floor((double)all * arguments->fraction);
    int64_t cut = choose_cut(corpus, wish, arguments->seq_len);
    bool wide;

    if (cut <= 1 || cut >= all) {
        return FAIL(
            STATUS_INVALID, "%s: its %" PRId64 " tokens cannot be cut near token %" PRId64 "%s",
            arguments->file[0], all, wish,
            arguments->seq_len > 0          ? " between windows: a smaller --seq-len?"
            : corpus_documents(corpus) >= 0 ? " between documents: --seq-len T cuts between windows"
                                            : ": one part would be empty; another fraction?");
    }
    TRY(text_is_wide(corpus, -1, &wide));
    TRY(token_files_create(arguments->file[1], arguments->valid, wide, arguments->force, pair));
    status_t status = copy_documents(corpus, 0, cut, -1, pair[0], &added);
    if (status == STATUS_OK) {
        status = copy_documents(corpus, cut, all, -1, pair[1], &added);
    }
    return token_files_finish(pair, status);
}

int data_split(const struct data_arguments *arguments)
{
    struct corpus *corpus;

    if (arguments->files != 2 || arguments->valid == NULL) {
        return data_usage_failed("split takes files to read, one to write, and --valid");
    }
    if (arguments->eod >= 0 && arguments->seq_len > 0) {
        return data_usage_failed("--eod and --seq-len name two places to cut");
    }
    if (text_open(arguments->file[0], arguments->eod, &corpus) != STATUS_OK) {
        return EXIT_FAILURE;
    }
    status_t status = split_run(arguments, corpus);
    corpus_close(corpus);
    return status == STATUS_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
