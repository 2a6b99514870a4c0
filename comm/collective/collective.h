/* collective.h - private to comm/collective: what the verbs and their classes share. */
#ifndef COMM_COLLECTIVE_H
#define COMM_COLLECTIVE_H

#include "comm/transport.h"

/* A call under way. */
struct pending_call {
    struct collective_call call; /* its counts are `counts`, its `in` is never NULL */
    size_t *counts;              /* [ranks] */
    size_t total, before;        /* elements of all; of the ranks before this one */
    int64_t number;
    bool open; /* started and not awaited */
};

struct collective_class {
    const char *name;   /* "host": in host memory, or by way of it */
    const char *absent; /* why this build has it not; NULL: it has */
    bool unordered;     /* sums are not in the order of the ranks */
    status_t (*create)(struct collective *collective);
    void (*destroy)(struct collective *collective);
    status_t (*room)(struct collective *collective,
                     int64_t number); /* for one more call; or NULL */
    status_t (*start)(struct collective *collective, struct pending_call *pending);
    status_t (*wait)(struct collective *collective, struct pending_call *pending);
};

struct collective {
    const struct collective_class *class; /* NULL: one rank */
    struct group *group;
    struct device *device; /* of the GPU whose stream the verbs belong to; NULL = the host */
    void *stream;
    const char *whose; /* for messages */
    size_t pinned;
    int under_way;
    size_t chunk;
    struct pending_call *pending; /* [under_way] by number, in turn */
    int64_t started, awaited;
    int64_t bytes;
    void *state; /* of the class */
};

extern const struct collective_class threads_collective_class, mpi_collective_class,
    nccl_collective_class;

/* out[i] = ((x_0[i] + x_1[i]) + x_2[i]) + ..., of float, or of bfloat16 rounded once; out may be one of the x. */
void collective_add(const void *const *x, int ranks, size_t count, bool bf16, void *out);
/* Why a wait has ended that did not complete: STATUS_PEER or STATUS_TIMEOUT. */
status_t collective_give_up(const struct collective *collective,
                            const struct pending_call *pending);

#endif
