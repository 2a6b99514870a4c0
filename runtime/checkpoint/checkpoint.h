/* checkpoint.h - private to runtime/: checkpoints on disk (docs/checkpoints.md has the format).
 *
 *     RUN/checkpoints/step-N/       manifest, config.yaml, config.json, rank-R.shard of every rank that wrote it
 *     RUN/checkpoints/.step-N.part  the same while it is written
 *
 * The renaming is the only commit: a folder named step-N is whole. What is in it does not depend on the
 * layout: tensors have their logical shapes, and a chunk says which elements of which tensor it has: of a matrix whose
 * columns are divided (parallel.tp) a run of each row.
 */
#ifndef RUNTIME_CHECKPOINT_H
#define RUNTIME_CHECKPOINT_H

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define CHECKPOINT_FOLDER "checkpoints"
#define CHECKPOINT_MANIFEST "manifest"

enum {
    CHECKPOINT_FORMAT = 1,
    CHECKPOINT_FORMAT_RUNS = 2, /* has chunks of several runs; only then is it written */
    CHECKPOINT_KINDS =
        3, /* weights, first and second moment: the first of enum store_kind in order */
    CHECKPOINT_CHUNK = 1 << 20 /* elements at most */
};
/* Names of the kinds, as the manifest has them. */
const char *checkpoint_kind_name(int kind);

/* ---- writing ---- */

/* Elements of one tensor, where they lie in memory, of the host unless there is a fetch: runs of `run` elements of the
 * tensor, the first at `begin`, `stride` from one to the next. */
struct checkpoint_piece {
    const float *values; /* [count] */
    uint32_t tensor, kind;
    uint64_t begin, count; /* at most CHECKPOINT_CHUNK */
    uint64_t run, stride;  /* run = count: one */
};

struct shard_options {
    const char *folder;                   /* exists */
    int rank;                             /* names the file */
    const struct checkpoint_piece *piece; /* [pieces] */
    size_t pieces;
    int level;   /* of zstd; 0 = stored as it is */
    int threads; /* that encode and write */
    /* Copies a piece's values to `out` [count] of the host; several threads call it. NULL: they are there. */
    status_t (*fetch)(void *arg, const struct checkpoint_piece *piece, float *out);
    void *arg;
    const atomic_bool *cancel; /* true: no more chunks, STATUS_INTERRUPTED; may be NULL */
};

struct shard_result {
    int64_t raw, stored; /* bytes */
    double write_s, verify_s;
};

/* Writes rank-R.shard: chunks, then their table; brings it to the disk and reads it from there again.
 * A file that failed is left behind for whoever clears the folder. */
MUST_USE status_t shard_write(const struct shard_options *options, struct shard_result *out);

struct checkpoint_tensor {
    const char *name;
    const int64_t *shape;
    int dims;
    bool trained;
};

/* What the manifest says beside the shards. */
struct checkpoint_info {
    int64_t step, sequences;
    uint64_t train_data;
    const char *program, *config, *model; /* config.yaml, config.json: their texts */
    const struct checkpoint_tensor *tensor;
    int tensors, shards, level;
};

/* Makes config.yaml, config.json and the manifest of the shards in `temporary`, after a look at every element being there exactly once,
 * renames the folder to `final` and brings all that to the disk. */
MUST_USE status_t checkpoint_commit(const char *temporary, const char *final,
                                    const struct checkpoint_info *info);

/* ---- reading ---- */

struct checkpoint;

/* Opens RUN/checkpoints/step-N: manifest whole, configurations as it has them, shards there with their sizes,
 * every element once. Nothing of the chunks is read. */
MUST_USE status_t checkpoint_open(const char *folder, struct checkpoint **out);
void checkpoint_close(struct checkpoint *checkpoint);
/* Valid until close; `tensor` is the manifest's table. */
const struct checkpoint_info *checkpoint_info(const struct checkpoint *checkpoint);
/* Bytes of values and as stored, of all shards. */
void checkpoint_bytes(const struct checkpoint *checkpoint, int64_t *out_raw, int64_t *out_stored);
/* Reads the shards `first`, first + every, ... from the disk and compares the hash of every chunk. */
MUST_USE status_t checkpoint_verify(const struct checkpoint *checkpoint, int first, int every);
/* All elements of one kind of a tensor; out [elements]. Compares hashes on the way. Threads may read side by
 * side. */
MUST_USE status_t checkpoint_read(const struct checkpoint *checkpoint, int tensor, int kind,
                                  float *out);
/* Index of the tensor; -1 = none. */
int checkpoint_find(const struct checkpoint *checkpoint, const char *name);
int64_t checkpoint_elements(const struct checkpoint_tensor *tensor);

/* ---- folders ---- */

/* Is there a manifest? */
bool checkpoint_here(const char *folder);
/* A number that tells checkpoints apart: of the manifest, which has the hashes of all chunks. */
MUST_USE status_t checkpoint_fingerprint(const char *folder, uint64_t *out);
/* Steps of the whole checkpoints of a run, newest first; malloc'ed. None is no failure. */
MUST_USE status_t checkpoint_list(const char *run, int64_t **out, int *out_count);
/* RUN/checkpoints/step-N; RUN/checkpoints/.step-N.part. out [PATH_MAX] */
MUST_USE status_t checkpoint_path(const char *run, int64_t step, bool temporary, char *out);
/* Makes the temporary folder and its parent, unless another rank has. */
MUST_USE status_t checkpoint_begin(const char *run, int64_t step);
/* Removes the folder with what it holds. */
void checkpoint_remove(const char *folder);
/* Removes temporary folders that dead jobs left. */
void checkpoint_sweep(const char *run);
/* Removes all but the `keep` newest. */
void checkpoint_prune(const char *run, int keep);

#endif
