/* dataset.c - sources and their mixture. */
#include "data/dataset.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "data/corpus.h"
#include "data/mixture.h"
#include "data/sources.h"

struct dataset {
    struct corpus **corpus; /* [sources] */
    int sources;
    struct mixture *mixture;
    int64_t T, windows;
    uint64_t weights; /* their hash */
    int32_t *row;     /* [T + 1] */
};

/* The files of source `source`, which stand together. */
static status_t open_source(const struct sources *sources, int source,
                            const struct dataset_options *options, struct corpus **out)
{
    const char **paths = calloc((size_t)sources->files, sizeof *paths);
    int count = 0;
    struct corpus_options corpus = {.vocab = options->vocab,
                                    .T = options->T,
                                    .eod = options->eod,
                                    .documents = options->documents,
                                    .starts = options->starts,
                                    .seed = options->seed,
                                    .source = source};

    if (paths == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to open %d token files", sources->files);
    }
    for (int i = 0; i < sources->files; i++) {
        if (sources->file[i].source == source) {
            paths[count++] = sources->file[i].path;
        }
    }
    status_t status = corpus_open(paths, count, &corpus, out);
    free(paths);
    return status;
}

static void count_windows(struct dataset *dataset)
{
    int source;
    int64_t index;

    if (dataset->sources == 1) {
        dataset->windows = corpus_windows(dataset->corpus[0]);
        return;
    }
    do {
        mixture_at(dataset->mixture, dataset->windows++, &source, &index);
    } while (index < corpus_windows(dataset->corpus[source]));
    dataset->windows--;
}

static status_t open_all(const struct sources *sources, const struct dataset_options *options,
                         struct dataset *dataset)
{
    dataset->T = options->T;
    dataset->weights =
        hash_bytes(sources->weight, (size_t)sources->sources * sizeof *sources->weight, 0);
    dataset->corpus = calloc((size_t)sources->sources, sizeof(struct corpus *));
    dataset->row = calloc((size_t)options->T + 1, sizeof *dataset->row);
    if (dataset->corpus == NULL || dataset->row == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to open the files of %s", options->key);
    }
    for (; dataset->sources < sources->sources; dataset->sources++) {
        TRY(open_source(sources, dataset->sources, options, &dataset->corpus[dataset->sources]));
    }
    TRY(mixture_create(sources->weight, sources->sources, &dataset->mixture));
    count_windows(dataset);
    return STATUS_OK;
}

status_t dataset_open(const char *list, const struct dataset_options *options, struct dataset **out)
{
    struct sources sources;
    struct dataset *dataset;

    TRY(sources_parse(options->key, list, &sources));
    dataset = calloc(1, sizeof *dataset);
    status_t status = dataset != NULL ? open_all(&sources, options, dataset)
                                      : FAIL(STATUS_NOMEM, "no memory for %s", options->key);
    sources_free(&sources);
    if (status != STATUS_OK) {
        dataset_close(dataset);
        return status;
    }
    *out = dataset;
    return STATUS_OK;
}

void dataset_close(struct dataset *dataset)
{
    if (dataset == NULL) {
        return;
    }
    for (int i = 0; i < dataset->sources; i++) {
        corpus_close(dataset->corpus[i]);
    }
    free(dataset->corpus);
    free(dataset->row);
    mixture_destroy(dataset->mixture);
    free(dataset);
}

uint64_t dataset_fingerprint(const struct dataset *dataset)
{
    uint64_t hash = dataset->weights;

    for (int i = 0; i < dataset->sources; i++) {
        uint64_t own = corpus_fingerprint(dataset->corpus[i]);
        hash = hash_bytes(&own, sizeof own, hash);
    }
    return hash;
}

static void hand_out(const struct dataset *dataset, int32_t *inputs, int32_t *targets)
{
    size_t size = (size_t)dataset->T * sizeof *inputs;
    memcpy(inputs, dataset->row, size);
    memcpy(targets, dataset->row + 1, size);
}

status_t dataset_sequence(struct dataset *dataset, int64_t s, int32_t *inputs, int32_t *targets,
                          int32_t *first)
{
    int source;
    int64_t index;

    mixture_at(dataset->mixture, s, &source, &index);
    TRY(corpus_sequence(dataset->corpus[source], index, dataset->row, first));
    hand_out(dataset, inputs, targets);
    return STATUS_OK;
}

int64_t dataset_windows(const struct dataset *dataset)
{
    return dataset->windows;
}

status_t dataset_window(struct dataset *dataset, int64_t window, int32_t *inputs, int32_t *targets,
                        int32_t *first)
{
    int source;
    int64_t index;

    CHECK(window >= 0 && window < dataset->windows, "window %lld of %lld", (long long)window,
          (long long)dataset->windows);
    mixture_at(dataset->mixture, window, &source, &index);
    TRY(corpus_window(dataset->corpus[source], index, dataset->row, first));
    hand_out(dataset, inputs, targets);
    return STATUS_OK;
}
