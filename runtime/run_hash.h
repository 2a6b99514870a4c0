/* run_hash.h - private to runtime/: one number for all that decides the numbers of a training run.
 *
 * Two runs of one hash on one kind of card (on the host: of processor) have the same losses, norms, held-out
 * losses and weights to the last bit, in float32 or where `deterministic` is true. The hash is made of
 * parts, so that two logs, or two run folders, tell which of them differ:
 *
 *     config      keys of base/config.def that are not UNHASHED and of the model, as resolved
 *     weights     those that `model` brings along; none where they follow from the seed, which is a key
 *     data        the texts of data.train and data.valid and the weights of their mixtures
 *     device      what computes: operations, versions of this program and of libraries, the card
 *     algorithms  the table of product algorithms (algorithms.c); none where nobody asked for one
 *
 * What a path names is hashed, not the path. UNHASHED are paths, then, and what is told about a run (logging,
 * profile), what it waits for (health), and how it is spread out: of the group `parallel` only
 * `microbatches`, the size of a step, decides numbers, and with several replicas their number and what adds up
 * their gradients. In float32 that is the law (docs/model.md). In bf16
 * order of microbatches, transport and recomputation change nothing either, but a sum of gradients is
 * rounded where it passes to another stage: there the cuts between stages count, in `config`. So they do
 * where ranks have unlike devices, whose list then is the device.
 *
 * Texts and weights beyond a size are sampled, so that a start is quick: unlike hashes prove that something
 * differs, like ones that nobody changed it by accident.
 */
#ifndef RUNTIME_RUN_HASH_H
#define RUNTIME_RUN_HASH_H

#include "runtime/setup.h"

enum run_part { RUN_CONFIG, RUN_WEIGHTS, RUN_DATA, RUN_DEVICE, RUN_ALGORITHMS, RUN_PARTS };

struct run_hash {
    uint64_t run, part[RUN_PARTS]; /* part: 0 = none */
    char *text;                    /* owned: what device and config stand for, a line each */
};

/* The same on every rank. Another config.json, other weights, or on the same device another table of
 * algorithms than other ranks': STATUS_MISMATCH, and a message that says what differs. Collective. */
MUST_USE status_t run_hash_create(const struct setup *setup, struct run_hash *out);
void run_hash_free(struct run_hash *hash);

/* "run 0123456789abcdef: config 01234567, weights none, .." with the first digits of the parts; returns
 * `buffer`. */
const char *run_hash_print(const struct run_hash *hash, char *buffer, size_t size);
/* hash.txt in a run folder: all digits, and the text. */
MUST_USE status_t run_hash_keep(const struct run_hash *hash, const char *folder);

#endif
