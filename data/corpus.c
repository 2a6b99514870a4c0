/* corpus.c - several files as one text, and its windows. */
#include "data/corpus.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "data/corpus_internal.h"

/* ---- the text ---- */

/* The shard that holds token (or, by `document`, document) `at`. */
static const struct shard *find_shard(const struct corpus *corpus, bool document, int64_t at)
{
    int low = 0, high = corpus->files; /* low begins at or before `at`, high behind it */

    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        const struct shard *shard = &corpus->shard[middle];
        if ((document ? shard->document : shard->start) <= at) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return &corpus->shard[low];
}

status_t corpus_read(const struct corpus *corpus, int64_t start, int64_t count, int32_t *out)
{
    CHECK(start >= 0 && count >= 0 && start <= corpus->count - count,
          "tokens %" PRId64 " and %" PRId64 " more of %" PRId64, start, count, corpus->count);
    while (count > 0) {
        const struct shard *shard = find_shard(corpus, false, start);
        int64_t rest = shard[1].start - start, part = count < rest ? count : rest;
        TRY(tokens_read(shard->tokens, start - shard->start, part, out));
        start += part;
        out += part;
        count -= part;
    }
    return STATUS_OK;
}

int64_t corpus_count(const struct corpus *corpus)
{
    return corpus->count;
}

int64_t corpus_documents(const struct corpus *corpus)
{
    return corpus->documents;
}

int64_t corpus_document(const struct corpus *corpus, int64_t document)
{
    if (corpus->start != NULL) {
        return corpus->start[document];
    }
    if (document == corpus->documents) {
        return corpus->count;
    }
    const struct shard *shard = find_shard(corpus, true, document);
    return shard->start + tokens_document(shard->tokens, document - shard->document);
}

uint64_t corpus_fingerprint(const struct corpus *corpus)
{
    enum { PLACES = 64, RUN = 4096 };
    int64_t shape[] = {corpus->count, corpus->documents, corpus->files};
    uint64_t hash = hash_bytes(shape, sizeof shape, 0);
    int32_t tokens[RUN];

    for (int64_t i = 0; i < PLACES; i++) {
        int64_t at = (int64_t)((unsigned __int128)corpus->count * (unsigned)i / PLACES);
        int64_t run = corpus->count - at < RUN ? corpus->count - at : RUN;
        if (corpus_read(corpus, at, run, tokens) == STATUS_OK) {
            hash = hash_bytes(tokens, (size_t)run * sizeof *tokens, hash);
        }
    }
    return hash;
}

/* ---- opening ---- */

static status_t open_shards(const char *const *paths, int files, struct corpus *corpus)
{
    corpus->shard = calloc((size_t)files + 1, sizeof *corpus->shard);
    if (corpus->shard == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to open %d token files", files);
    }
    for (int i = 0; i < files; i++) {
        struct shard *shard = &corpus->shard[i];
        TRY(tokens_open(paths[i], corpus->options.vocab, &shard->tokens));
        corpus->files++;
        int64_t documents = tokens_documents(shard->tokens);
        corpus->documents =
            documents < 0 || corpus->documents < 0 ? -1 : shard->document + documents;
        shard[1].start = corpus->count = shard->start + tokens_count(shard->tokens);
        shard[1].document = corpus->documents;
    }
    return STATUS_OK;
}

static status_t check_known(const struct corpus *corpus)
{
    for (int i = 0; i < corpus->files; i++) {
        const struct tokens *tokens = corpus->shard[i].tokens;
        if (tokens_documents(tokens) < 0) {
            return FAIL(STATUS_INVALID,
                        "%s: its format does not say where documents end, which %s needs; name the "
                        "token that ends them (data.eod=ID), or convert it to Megatron's format",
                        tokens_path(tokens),
                        corpus->options.documents ? "data.order=documents" : "data.mask_documents");
        }
    }
    return STATUS_OK;
}

/* Counts the documents, to `most` of them, if `start` is NULL; else notes where they begin. */
static status_t scan_documents(const struct corpus *corpus, int64_t most, int64_t *start,
                               int64_t *out_documents)
{
    static const int64_t chunk = 1 << 16;
    int32_t *tokens = malloc((size_t)chunk * sizeof *tokens);
    int64_t documents = 0, begun = 0; /* begun: first token of the document that is open */
    status_t status =
        tokens != NULL ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory to look for documents");

    for (int64_t at = 0; at < corpus->count && documents < most && status == STATUS_OK;
         at += chunk) {
        int64_t count = corpus->count - at < chunk ? corpus->count - at : chunk;
        status = corpus_read(corpus, at, count, tokens);
        for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
            if (tokens[i] == corpus->options.eod || at + i + 1 == corpus->count) {
                if (start != NULL) {
                    start[documents] = begun;
                }
                begun = at + i + 1;
                documents++;
            }
        }
    }
    free(tokens);
    if (status == STATUS_OK && start != NULL) {
        start[documents] = corpus->count;
    }
    *out_documents = documents;
    return status;
}

static status_t warn_endless(const struct corpus *corpus)
{
    int32_t last;

    TRY(corpus_read(corpus, corpus->count - 1, 1, &last));
    if (last != corpus->options.eod && log_rank() <= 0) {
        log_warn("%s: no token %" PRId64 " ends a document here, so the whole text is one; is "
                 "another token meant?",
                 tokens_path(corpus->shard[0].tokens), corpus->options.eod);
    }
    return STATUS_OK;
}

static status_t find_documents(struct corpus *corpus)
{
    const struct corpus_options *options = &corpus->options;

    if (options->eod < 0) {
        return options->documents || options->starts ? check_known(corpus) : STATUS_OK;
    }
    corpus->documents = -1;
    if (!options->documents && !options->starts) {
        return STATUS_OK;
    }
    int64_t documents;
    TRY(scan_documents(corpus, options->documents ? INT64_MAX : 2, NULL, &documents));
    TRY(documents == 1 ? warn_endless(corpus) : STATUS_OK);
    if (!options->documents) {
        return STATUS_OK; /* windows see the ends as they come */
    }
    corpus->start = malloc((size_t)(documents + 1) * sizeof *corpus->start);
    if (corpus->start == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for %" PRId64 " documents", documents);
    }
    return scan_documents(corpus, INT64_MAX, corpus->start, &corpus->documents);
}

/* Of both epochs that a window may lie in. */
static status_t make_marks(struct corpus *corpus)
{
    for (int parity = 0; parity < 2; parity++) {
        struct epoch *epoch = &corpus->epoch[parity];
        epoch->mark = malloc((size_t)(corpus->documents / MARK_STEP + 1) * sizeof *epoch->mark);
        if (epoch->mark == NULL) {
            return FAIL(STATUS_NOMEM, "no memory for an order of %" PRId64 " documents",
                        corpus->documents);
        }
    }
    return STATUS_OK;
}

static status_t open_all(const char *const *paths, int files, struct corpus *corpus)
{
    int64_t T = corpus->options.T;

    CHECK(T >= 0 && files > 0, "windows of %" PRId64 " tokens, %d files", T, files);
    TRY(open_shards(paths, files, corpus));
    if (corpus->count == 0) {
        return FAIL(STATUS_INVALID, "%s%s: there is no token in it", paths[0],
                    files > 1 ? " and the files after it" : "");
    }
    if (corpus->count <= T) {
        return FAIL(STATUS_INVALID,
                    "%s: its %" PRId64 " tokens are too few for one sequence of %" PRId64
                    " and the token after it; set a smaller data.seq_len or give more text",
                    paths[0], corpus->count, T);
    }
    TRY(find_documents(corpus));
    return corpus->options.documents ? make_marks(corpus) : STATUS_OK;
}

status_t corpus_open(const char *const *paths, int files, const struct corpus_options *options,
                     struct corpus **out)
{
    struct corpus *corpus = calloc(1, sizeof *corpus);

    if (corpus == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to open %s", paths[0]);
    }
    corpus->options = *options;
    corpus->epoch[0].number = corpus->epoch[1].number = -1;
    status_t status = open_all(paths, files, corpus);
    if (status != STATUS_OK) {
        corpus_close(corpus);
        return status;
    }
    *out = corpus;
    return STATUS_OK;
}

void corpus_close(struct corpus *corpus)
{
    if (corpus == NULL) {
        return;
    }
    for (int i = 0; i < corpus->files; i++) {
        tokens_close(corpus->shard[i].tokens);
    }
    free(corpus->epoch[0].mark);
    free(corpus->epoch[1].mark);
    free(corpus->start);
    free(corpus->shard);
    free(corpus);
}

/* ---- windows ---- */

int64_t corpus_windows(const struct corpus *corpus)
{
    return (corpus->count - 1) / corpus->options.T;
}

static void starts_by_token(const struct corpus *corpus, const int32_t *tokens, int32_t *first)
{
    int32_t begun = 0;

    for (int32_t t = 0; t < corpus->options.T; t++) {
        begun = t > 0 && tokens[t - 1] == corpus->options.eod ? t : begun;
        first[t] = begun;
    }
}

static void starts_by_index(const struct corpus *corpus, int64_t start, int32_t *first)
{
    int64_t low = 0, high = corpus->documents, T = corpus->options.T;
    int32_t begun = 0;

    while (high - low > 1) { /* the last document that begins at or before `start` */
        int64_t middle = low + (high - low) / 2;
        if (corpus_document(corpus, middle) <= start) {
            low = middle;
        } else {
            high = middle;
        }
    }
    int64_t next = corpus_document(corpus, low + 1);
    for (int32_t t = 0; t < T; t++) {
        for (; start + t >= next; next = corpus_document(corpus, low + 1)) { /* empty ones too */
            low++;
            begun = t;
        }
        first[t] = begun;
    }
}

static status_t read_window(const struct corpus *corpus, int64_t start, int32_t *out,
                            int32_t *first)
{
    TRY(corpus_read(corpus, start, corpus->options.T + 1, out));
    if (first != NULL && corpus->options.eod >= 0) {
        starts_by_token(corpus, out, first);
    } else if (first != NULL) {
        starts_by_index(corpus, start, first);
    }
    return STATUS_OK;
}

status_t corpus_window(const struct corpus *corpus, int64_t window, int32_t *out, int32_t *first)
{
    return read_window(corpus, window * corpus->options.T, out, first);
}

status_t corpus_sequence(struct corpus *corpus, int64_t s, int32_t *out, int32_t *first)
{
    CHECK(s >= 0, "sequence %" PRId64, s);
    if (corpus->options.documents) {
        return corpus_document_sequence(corpus, s, out, first);
    }
    int64_t windows = corpus_windows(corpus);
    uint64_t window =
        corpus_permute(corpus, "windows", s / windows, (uint64_t)(s % windows), (uint64_t)windows);
    return corpus_window(corpus, (int64_t)window, out, first);
}
