/* trainer.h - private to runtime/: what a trainer holds, and its steps that have files of their own. */
#ifndef RUNTIME_TRAINER_H
#define RUNTIME_TRAINER_H

#include <limits.h>

#include "base/timeline.h"
#include "runtime/mesh.h"
#include "runtime/norm_exchange.h"

/* profile.c: which steps are recorded, and where they go. */
struct profile {
    int64_t first, last; /* steps; 0 = none */
    char folder[PATH_MAX];
    struct timeline *timeline; /* until the last recorded step is written */
    bool recording;            /* from the first on */
};

/* place.c: where this rank computes, and by what. */
struct place {
    const struct kernels *kernels;
    struct device *device; /* NULL = the host */
    void *stream;
    size_t room;        /* bytes that the device had free before anything was made here */
    bool shares_device; /* with other ranks */
    int threads;
};

/* What steps cost this rank. */
struct step_costs {
    int64_t begun;                       /* ns; of the step being enqueued */
    int64_t plain, dense;                /* bytes put before it */
    struct report step[WALKS_IN_FLIGHT]; /* of the newest steps; on a device not complete */
    struct report last;                  /* for the next exchange */
};

/* Plans and what they walk in. */
struct workers {
    struct worker *train;                   /* NULL when evaluating only */
    struct worker *evaluation;              /* in train's memory */
    struct worker *sampling;                /* the same; one microbatch a walk */
    _Atomic(const struct worker *) walking; /* the last that did; for the liveness thread */
};

struct trainer {
    struct run_config config;
    struct group *group; /* the job's */
    struct mesh mesh;
    struct model *model;
    struct place place;
    const char *transport; /* of all wires */
    struct wire_links links;
    char *algorithms; /* text of all that is known of products; NULL = none wanted */
    int microbatches;
    bool training;
    struct workers workers;

    struct trace trace;
    struct profile profile;
    struct nvml *card; /* NULL = none that can be asked */
    bool card_warned;

    const struct optimizer_args *optimizer; /* of the step being walked */
    _Atomic int64_t step;                   /* of the run: the newest one begun */
    int64_t before;                         /* of it, those that came before this process */
    struct saver *saver;                    /* save.h; NULL = no checkpoints */
    struct watch *watch;                    /* watch.c */
    _Atomic int64_t usual_step;             /* ns, a running mean; 0 = not known */
    struct step_costs costs;
    struct norm_exchange exchange;
    struct step_result known; /* of the newest step whose outcome was collected */
    trainer_known_fn on_known;
    void *known_arg;
    status_t failed;
};

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

/* watch.c: from now on a thread says when an operation takes longer than health.slow_s. */
void watch_start(struct trainer *trainer);
void watch_stop(struct trainer *trainer);

/* trainer.c */
/* Puts what a step cost into costs.last; zeros before step 1. */
MUST_USE status_t trainer_cost_of(struct trainer *trainer, int64_t step);
/* Of what replicas exchange: "nccl" or "host"; "" with one. */
const char *trainer_carrier(const struct trainer *trainer);
/* Of what the ranks of a tensor group exchange, in the same way. */
const char *trainer_tp_carrier(const struct trainer *trainer);
/* The first step of this process will be the one after `step`. Before any. */
void trainer_resume(struct trainer *trainer, int64_t step);
/* worker_walk, in view of the liveness thread. */
MUST_USE status_t trainer_walk(struct trainer *trainer, struct worker *worker,
                               const struct batch *batch, float loss_scale,
                               const struct worker_hooks *hooks);
/* Of forwards only, into *slot unless it is there. Collective. */
MUST_USE status_t trainer_forward_worker(struct trainer *trainer, int microbatches,
                                         struct worker **slot);

#endif
