/* dataset.h - all that data.train or data.valid names: sources, mixed by weight, sequence by sequence.
 *
 * A run's position in its data is one number, the sequences read so far; every sequence follows from
 * it alone (mixture.h, then corpus.h).
 */
#ifndef RUNTIME_DATASET_H
#define RUNTIME_DATASET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct dataset;

struct dataset_options {
    const char *key; /* for messages: "data.train" */
    int64_t vocab, T;
    int64_t eod;    /* -1: none */
    bool documents; /* order over documents */
    bool starts;    /* `first` is wanted */
    uint64_t seed;
};

MUST_USE status_t dataset_open(const char *list, const struct dataset_options *options,
                               struct dataset **out);
void dataset_close(struct dataset *dataset);
/* Tells apart data that ranks, or two runs, should see alike: texts and the weights of a mixture. */
uint64_t dataset_fingerprint(const struct dataset *dataset);

/* Sequence s of the run. inputs, targets, first: [T] each; first may be NULL (struct batch says what it
 * is). Targets go over the ends of documents, as the text does. */
MUST_USE status_t dataset_sequence(struct dataset *dataset, int64_t s, int32_t *inputs,
                                   int32_t *targets, int32_t *first);

/* Without repetition and in the order of the files: the windows that an evaluation can use. With
 * weights they end where the first source does, so that the proportions hold. */
int64_t dataset_windows(const struct dataset *dataset);
MUST_USE status_t dataset_window(struct dataset *dataset, int64_t window, int32_t *inputs,
                                 int32_t *targets, int32_t *first);

#endif
