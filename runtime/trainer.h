/* trainer.h - private to runtime/: what a trainer holds, and its steps that have files of their own. */
#ifndef RUNTIME_TRAINER_H
#define RUNTIME_TRAINER_H

#include <limits.h>

#include "base/timeline.h"
#include "runtime/worker.h"

/* What a rank reports about itself in every exchange, after its squares and losses. Costs are of the
 * newest step whose are known. */
struct report {
    double stop;   /* 1: asked to stop */
    double failed; /* enum status, by trainer_fail */
    double seconds;
    double ns[TRACE_CATEGORIES];
    double bytes_plain, bytes_dense;         /* put by this rank */
    double sm_mhz, watts, celsius, throttle; /* of this rank's GPU now; sm_mhz 0 = not asked */
};

struct exchanger;

struct exchange {
    size_t *counts;           /* [ranks] bytes */
    double *own[WALKS_AHEAD]; /* on the host only the first; on a device pinned */
    double *all;
    size_t own_count, all_count; /* doubles */
    struct exchanger *exchanger; /* on a device */
};

struct exchange_request {
    int64_t step;
    int microbatches;
    double clip; /* 0 = none */
    struct report report;
    bool flush;    /* after the last step: costs only */
    int64_t begun; /* ns; when the step's enqueueing began */
};

/* What an exchange told this rank. */
struct exchanged {
    int64_t step;
    status_t status;
    char why[320]; /* of a status that is ours to explain; "" = said already */
    struct step_result result;
    struct step_cost cost;
    bool has_cost;
    double scale;   /* clipping factor; negative: the step is refused */
    double seconds; /* of the step, on a device */
};

/* profile.c: which steps are recorded, and where they go. */
struct profile {
    int64_t first, last; /* steps; 0 = none */
    char folder[PATH_MAX];
    struct timeline *timeline; /* until the last recorded step is written */
    bool recording;            /* from the first on */
};

struct trainer {
    struct run_config config;
    const struct kernels *kernels;
    struct group *group;
    struct model *model;
    struct trace trace;
    struct worker *train;      /* NULL when evaluating only */
    struct worker *evaluation; /* in train's memory */
    struct worker *sampling;   /* the same; one microbatch a walk */
    struct device *device;     /* NULL = the host */
    const char *transport;     /* of all wires */
    char *algorithms;          /* text of all that is known of products; NULL = none wanted */
    void *stream;
    size_t room;        /* bytes that the device had free before anything was made here */
    bool shares_device; /* with other ranks */
    int threads, microbatches;
    bool training;
    _Atomic(const struct worker *) walking; /* the last that did; for the liveness thread */

    struct profile profile;
    struct nvml *card; /* NULL = none that can be asked */
    bool card_warned;
    struct exchange exchange;
    const struct optimizer_args *optimizer; /* of the step being walked */
    double scale;                           /* clipping factor of this step, on the host */
    struct step_result known;               /* of the newest step whose exchange was collected */
    _Atomic int64_t step;
    int64_t collected;                              /* steps whose exchange was */
    int64_t step_start;                             /* ns */
    struct report last;                             /* for the next exchange */
    int64_t plain_so_far, dense_so_far;             /* bytes put */
    int64_t plain[WALKS_AHEAD], dense[WALKS_AHEAD]; /* bytes put in a step, on a device */
    double seconds[WALKS_AHEAD];                    /* of a step, on a device */
    trainer_known_fn on_known;
    void *known_arg;
    status_t failed;
};

/* exchange.c */
MUST_USE status_t exchange_create(struct trainer *trainer);
void exchange_destroy(struct trainer *trainer);
/* An exchange of nothing, which gives collectives the memory that they keep. */
MUST_USE status_t exchange_rehearse(struct trainer *trainer);
status_t exchange_norm(void *trainer); /* the hook of OP_NORM */
MUST_USE status_t exchange_fill(struct trainer *trainer, double *own);
/* Collective; `own` is complete but for the report. */
void exchange_resolve(struct trainer *trainer, double *own, const struct exchange_request *request,
                      struct exchanged *out);
/* Takes what exchanges up to that of `step` told, waiting for them: until then the group's collectives
 * are not main's. On the host there is nothing to wait for. */
MUST_USE status_t exchange_collect(struct trainer *trainer, int64_t step);
MUST_USE status_t exchange_flush(struct trainer *trainer);

/* place.c: device, stream, operations and threads of this rank, told to the others; every rank logs its
 * own. Collective. */
MUST_USE status_t place_choose(struct trainer *trainer);

/* algorithms.c: can the file that kernels.algorithms names be read, or made if there is none? Rank 0,
 * before anything is made, wherever the run computes. */
MUST_USE status_t algorithms_check(const struct run_config *config);
/* When the stage is made, before the first walk; collective. Does something for bf16 on GPUs
 * where kernels.algorithms asks for it. */
MUST_USE status_t algorithms_prepare(struct trainer *trainer);
/* Of this rank's table: its products and algorithms, in any order, without their times; 0 = none. */
uint64_t algorithms_hash(const struct trainer *trainer);

/* profile.c: around the enqueueing of a step. */
MUST_USE status_t profile_before(struct trainer *trainer, int64_t step);
MUST_USE status_t profile_after(struct trainer *trainer, int64_t step);
/* Around a walk that belongs to no step. */
void profile_pause(struct trainer *trainer);
void profile_go_on(struct trainer *trainer);
void profile_destroy(struct trainer *trainer);

/* card.c: every logging.card_every steps. */
void card_open(struct trainer *trainer);
void card_close(struct trainer *trainer);
void card_report(struct trainer *trainer, int64_t step);
void card_add(const struct report *report, struct step_cost *cost);

/* exchanger.c */
MUST_USE status_t exchanger_create(struct trainer *trainer);
void exchanger_destroy(struct trainer *trainer);
/* Enqueues step `request->step`'s squares and the wait for its factor, and has the exchange made. */
MUST_USE status_t exchanger_request(struct trainer *trainer,
                                    const struct exchange_request *request);
MUST_USE status_t exchanger_wait(struct trainer *trainer, int64_t step, struct exchanged *out);
/* Where AdamW of `step` finds the factor. */
const float *exchanger_scale(const struct trainer *trainer, int64_t step);

/* trainer.c */
/* Puts what a step cost into trainer->last; on the host it is there already. Zeros before step 1. */
MUST_USE status_t trainer_cost_of(struct trainer *trainer, int64_t step);
/* worker_walk, in view of the liveness thread. */
MUST_USE status_t trainer_walk(struct trainer *trainer, struct worker *worker,
                               const struct batch *batch, float loss_scale,
                               const struct worker_hooks *hooks);
/* Of forwards only, into *slot unless it is there. Collective. */
MUST_USE status_t trainer_forward_worker(struct trainer *trainer, int microbatches,
                                         struct worker **slot);

#endif
