/* trainer.h - private to runtime/: what a trainer holds, and its steps that have files of their own. */
#ifndef RUNTIME_TRAINER_H
#define RUNTIME_TRAINER_H

#include "runtime/stage.h"

/* What a rank reports about itself in every exchange, after its squares and losses. */
struct report {
    double stop;    /* 1: asked to stop */
    double failed;  /* enum status, by trainer_fail */
    double seconds; /* of the step before */
    double ns[TRACE_CATEGORIES];
    double bytes_plain, bytes_dense; /* put by this rank in the step before */
};

struct exchange {
    size_t *counts; /* [ranks] bytes */
    double *own, *all;
    size_t own_count, all_count; /* doubles */
};

struct trainer {
    struct run_config config;
    const struct kernels *kernels;
    struct group *group;
    struct model *model;
    struct trace trace;
    struct stage *train;      /* NULL when evaluating only */
    struct stage *evaluation; /* made when first wanted; shares train's weights */
    struct stage *sampling;   /* one microbatch a walk */
    struct device *device;    /* NULL = the host */
    void *stream;
    int threads, microbatches;
    bool training;
    _Atomic(const struct stage *) walking; /* the last that did; for the liveness thread */

    struct exchange exchange;
    const struct optimizer_args *optimizer; /* of the step being walked */
    double gradient_scale;
    struct step_result result;
    _Atomic int64_t step;
    int64_t step_start;                 /* ns */
    struct report last;                 /* of the step before */
    int64_t plain_so_far, dense_so_far; /* bytes put */
    struct step_cost cost;
    bool has_cost;
    trainer_cost_fn on_cost;
    void *cost_arg;
    status_t failed;
};

/* exchange.c */
MUST_USE status_t exchange_create(struct trainer *trainer);
void exchange_destroy(struct exchange *exchange);
status_t exchange_norm(void *trainer); /* the hook of OP_NORM */
MUST_USE status_t exchange_flush(struct trainer *trainer);

/* trainer.c */
/* stage_walk, in view of the liveness thread. */
MUST_USE status_t trainer_walk(struct trainer *trainer, struct stage *stage,
                               const struct batch *batch, float loss_scale,
                               const struct stage_hooks *hooks);
MUST_USE status_t trainer_evaluation_stage(struct trainer *trainer, int microbatches,
                                           struct stage **slot);

#endif
