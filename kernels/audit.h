/* audit.h - operations computed twice, to find a processor or memory that gives wrong results in silence.
 *
 * A table of kernels_audit runs each operation of another table, puts back what it wrote over, runs it again, and
 * compares the bits of the two results. It also remembers a hash of what every operation wrote: an operation that
 * reads it later must find the same. All this is made from the rows of operations.def.
 *
 *     found      results that differ between two runs of one operation; a tensor that has changed between the
 *                operation that wrote it and one that reads it
 *     not found  an error that is the same in both runs; changes of weights, whose operation lies steps before; of
 *                a tensor that only parts of are read, or that is read by way of a struct of arguments
 *
 * One thread. Operations whose result depends on the moment (bf16 on a GPU without `deterministic`) cannot be
 * audited. Part of kernels/kernels.h, which includes this.
 */
#ifndef KERNELS_AUDIT_H
#define KERNELS_AUDIT_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct kernels;

/* Where tensors live: copies from there to the host and back, done on return. */
struct audit_memory {
    status_t (*fetch)(void *arg, void *dst, const void *src, size_t bytes);
    status_t (*store)(void *arg, void *dst, const void *src, size_t bytes);
    void *arg;
};

struct audit_range {
    const void *at;
    size_t bytes;
};

struct audit;

/* memory NULL: tensors are on the host. Takes as much host memory as the largest operation writes, or on a device
 * twice that, when the first one needs it. */
MUST_USE status_t audit_create(const struct audit_memory *memory, struct audit **out);
void audit_destroy(struct audit *audit);

/* A table whose ops are those of ctx->audited (which must be `real`) under ctx->audit. */
void kernels_audit(const struct kernels *real, struct kernels *out);

/* What runs now, for messages; copied. */
void audit_say(struct audit *audit, const char *what);
/* Somebody else has written this (a message that arrived, say): from now on it may not change. *out: its hash. */
MUST_USE status_t audit_written(struct audit *audit, const void *at, size_t bytes, uint64_t *out);
MUST_USE status_t audit_hash(struct audit *audit, const void *at, size_t bytes, uint64_t *out);
/* Forgets every tensor outside of these ranges: others may write there unseen. */
void audit_keep(struct audit *audit, const struct audit_range *range, int ranges);
/* Of all since it was created: STATUS_MISMATCH when something was found, which is told here, once; or why a tensor
 * could not be fetched. */
MUST_USE status_t audit_result(struct audit *audit);
/* Operations run twice, and bytes of their results compared, so far. */
void audit_counts(const struct audit *audit, int64_t *out_operations, int64_t *out_bytes);

#endif
