/* norm_exchange.h - private to runtime/: the one exchange of a step among all ranks.
 *
 * Each rank gives the squares of its gradients (with replicas of its share), the head's rank the losses too, and
 * each what a step before cost it. Every rank gets everything and adds it up in the order of the parameter table,
 * shares and parts in their order, losses replica after replica, so norm and loss are the same bits on every rank and for any
 * length of the pipeline.
 *
 * `depth` exchanges may be under way, and the cost that one carries is that of `depth` steps before:
 *
 *     host     1   the walk makes the exchange itself, where the plan says
 *     device   2   the stream leaves the squares, a thread (norm_thread.c) makes the exchange, and the stream
 *                  goes on when the clipping factor is there; whoever enqueues takes the outcome later
 */
#ifndef RUNTIME_NORM_EXCHANGE_H
#define RUNTIME_NORM_EXCHANGE_H

#include "base/arena.h"
#include "runtime/worker.h"

struct trainer;

/* What a rank reports about itself in every exchange, after its squares and losses. Costs are of the
 * newest step whose are known. */
struct report {
    double stop;   /* 1: asked to stop */
    double saved;  /* saver_reached */
    double due;    /* 1: saver_clock_due */
    double failed; /* enum status, by trainer_fail */
    double seconds;
    double ns[TRACE_CATEGORIES];
    double bytes_plain, bytes_dense;         /* put by this rank */
    double bytes_collective;                 /* received from other replicas */
    double bytes_tensor;                     /* from ranks that compute the same stages with it */
    double sm_mhz, watts, celsius, throttle; /* of this rank's GPU now; sm_mhz 0 = not asked */
};

struct norm_request {
    int64_t step;
    int microbatches;
    double clip; /* 0 = none */
    struct report report;
    bool flush;    /* after the last step: costs only */
    int64_t begun; /* ns; when the step's enqueueing began */
};

/* What an exchange told this rank. */
struct norm_outcome {
    int64_t step;
    status_t status;
    char why[320]; /* of a status that is ours to explain; "" = said already */
    struct step_result result;
    struct step_cost cost;
    bool has_cost;
    char slow[240]; /* about a rank that has become slower; "" = nothing */
    double scale;   /* clipping factor; negative: the step is refused */
    double seconds; /* of the step, on a device */
};

struct norm_thread;

struct norm_exchange {
    int depth;
    size_t *counts;              /* [ranks] bytes */
    size_t own_count, all_count; /* doubles */
    double *all;
    struct arena memory;          /* of what follows; on a device pinned */
    double *own[WALKS_IN_FLIGHT]; /* [depth] this rank's share */
    float *scale; /* [depth] the clipping factor that AdamW reads; negative: leave all as it is */
    uint32_t *ready, *go;                         /* steps; written by the stream, by the thread */
    struct norm_outcome outcome[WALKS_IN_FLIGHT]; /* [depth] */
    int skipped;                                  /* steps in a row */
    int64_t collected;                            /* steps whose outcome was taken */
    struct norm_thread *thread;                   /* on a device */
    struct straggler *straggler;                  /* NULL = not asked for */
};

MUST_USE status_t norm_exchange_create(struct trainer *trainer);
void norm_exchange_destroy(struct trainer *trainer);
/* An exchange of nothing, which gives collectives the memory that they keep. */
MUST_USE status_t norm_exchange_rehearse(struct trainer *trainer);
/* The first step will be the one after `step`. Before any. */
void norm_exchange_resume(struct trainer *trainer, int64_t step);
/* The hook of OP_NORM. */
status_t norm_exchange_step(void *trainer);
/* Squares and losses of the walk just made, to `own`; on a device the stream does it. */
MUST_USE status_t norm_exchange_fill(struct trainer *trainer, double *own);
/* Collective; `own` is complete but for the report. */
void norm_exchange_resolve(struct trainer *trainer, double *own, const struct norm_request *request,
                           struct norm_outcome *out);
/* Takes the outcomes of exchanges up to that of `step`, waiting for them: until then the group's collectives
 * are not main's. */
MUST_USE status_t norm_exchange_collect(struct trainer *trainer, int64_t step);
/* Tells the costs that no exchange has carried yet. Collective. */
MUST_USE status_t norm_exchange_flush(struct trainer *trainer);
/* Where AdamW of `step` finds the clipping factor. */
const float *norm_exchange_scale(const struct trainer *trainer, int64_t step);

/* norm_thread.c */
MUST_USE status_t norm_thread_create(struct trainer *trainer);
void norm_thread_destroy(struct trainer *trainer);
void norm_thread_resume(struct trainer *trainer, int64_t step);
/* Enqueues the step's word and the wait for its factor, and has the exchange made. */
MUST_USE status_t norm_thread_request(struct trainer *trainer, const struct norm_request *request);
/* Until the outcome of `step` is there. */
void norm_thread_wait(struct trainer *trainer, int64_t step);

#endif
