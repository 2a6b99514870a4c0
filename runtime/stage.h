/* stage.h - private to runtime/: this rank's stages of a plan, with all their memory and the wire.
 *
 *     arrival[s][slot]    where shipment s (to this rank) lands
 *     sum[i][slot]        where sum i of the plan (of this rank) is formed: the arrival slot itself where a
 *                         running sum is received, else memory of its own
 *
 * A stage of forwards only can work in another's memory and over its wire, between that one's walks: a plan
 * without backwards has no more frames and slots than one of training, and its shipments are the first of
 * that one's.
 *
 * A stage is made whole: plans of all sizes, memory, the wire with its books. Walks then allocate nothing, on
 * the host or on a device, and so the steps of a run do not: tests/tools/test_allocations.sh counts.
 * What libraries (MPI, UCX, cuBLASLt, the driver) do with memory of their own is their business.
 */
#ifndef RUNTIME_STAGE_H
#define RUNTIME_STAGE_H

#include <stdatomic.h>

#include "base/arena.h"
#include "runtime/runtime.h"

struct stage_options {
    const struct model *model;
    const struct kernels *kernels;
    struct group *group;
    const char *transport;
    const char *purpose; /* for messages; "" = training steps */
    struct plan_options plan;
    bool training;
    int threads;
    struct trace *trace;
    struct device *device; /* NULL = the host */
    void *stream;
    struct stage *lender; /* work in its memory and over its wire (it outlives us); NULL = own */
};

/* Walks that the host may have enqueued and the device not finished: while it enqueues one, the one
 * before it runs. */
enum { WALKS_AHEAD = 2 };

/* What a walk on a device leaves behind for its end: one of WALKS_AHEAD in turn. */
struct walked {
    int32_t *tokens; /* pinned [4][microbatches * B*T]: inputs, targets, first, position */
    struct device_event *done;          /* the stream has done all of it */
    struct device_event **begin, **end; /* [waits] around what may hold up the stream */
    bool *dense;                        /* [waits] of dense shipments */
    int waits;
    struct plan *_Atomic plan; /* that it walks */
};
struct ahead {
    struct walked walked[WALKS_AHEAD];
    int64_t walks;             /* enqueued so far */
    uint32_t *reached;         /* pinned: what the stream waits in (place_of); 0 between walks */
    int waits;                 /* most of a walk */
    struct device_event *mark; /* of stage_settle */
    void *pinned;
};

struct stage {
    const struct model *model;
    struct stage *lender;        /* whose part, wire, arrivals and batch these are; NULL = own */
    struct plan *plan;           /* with all microbatches: what memory was made for */
    struct plan *_Atomic active; /* of the walk: the same, or one of `shorter` */
    struct plan **shorter;       /* [microbatches] of stage_add_size; [m] has m microbatches */
    struct plan_options plan_options;
    struct part *part;
    struct wire *wire; /* NULL with one rank */
    struct group *group;
    struct trace *trace;
    struct timeline *timeline; /* of a profiled step; else NULL */
    int rank;
    void ***arrival; /* [shipments][slots] */
    void ***sum;     /* [sums][slots] */
    int *arrives;    /* [keys] shipment that brings the key to this rank; -1 */
    int *local;      /* [stages] place among this rank's, which is the part's; -1: another rank's */
    struct arena memory;
    int64_t arrival_bytes, gradient_bytes; /* used */
    int64_t workspace;       /* bytes that the part's operations want beside its own */
    int64_t transport_bytes; /* of the GPU, taken by the transport while it connected */
    bool refused;            /* by stage_check_room */
    int64_t messages[2];     /* [backward] so far in each shipment, which number them; lender's */
    const struct plan *expected;    /* whose puts the wire was told to expect; lender's */
    _Atomic(const struct op *) now; /* for the liveness thread */
    const char *purpose, *transport;

    trainer_head_fn on_head;
    void *head_arg;
    double *loss; /* [microbatches] sums, on the host after stage_read_loss; the head's rank only */

    struct device *device; /* NULL = the host */
    void *stream;
    struct ahead ahead; /* on a device */
    double *loss_there; /* the same where the part lives */
    /* [microbatches * B*T] the batch where the part lives; on the host only position is ours. */
    int32_t *inputs, *targets, *first, *position;
    int32_t *positions; /* on the host, of the walk now enqueued */
    int *puts;          /* [shipments to this rank * microbatches] scratch: an order of puts */
};

/* Everything that the walk calls back for: the norm's exchange and the optimizer. */
struct stage_hooks {
    status_t (*norm)(void *arg);
    status_t (*step)(void *arg);
    void *arg;
};

MUST_USE status_t stage_create(const struct stage_options *options, struct stage **out);
void stage_destroy(struct stage *stage);
/* Walks this rank's operations once. loss_scale multiplies gradients. */
MUST_USE status_t stage_walk(struct stage *stage, const struct batch *batch, float loss_scale,
                             const struct stage_hooks *hooks);
/* stage_room.c: what the plan and the operations of all ranks on this one's GPU need beside what it has
 * free, when the transport has connected (evaluation and samples of a run that trains need no more):
 * STATUS_NOMEM names both and what to change. Collective; at once on the host. */
MUST_USE status_t stage_check_room(struct stage *stage);
/* An allocation of the stage's has failed even so, or on the host, and has said which: says what was
 * predicted, what is free and which keys to change. Nothing where stage_check_room did. */
void stage_explain_memory(const struct stage *stage);
/* stage_device.c: of a device. */
MUST_USE status_t ahead_create(struct stage *stage);
void ahead_destroy(struct stage *stage);
/* Takes the next of the walks in turn; waits until the device has left it. */
MUST_USE status_t ahead_begin(struct stage *stage, struct walked **out);
MUST_USE status_t ahead_end(struct stage *stage, struct walked *walked);
/* Around what the stream may wait in, one operation or several; `op` the first, for messages. `dense`:
 * some of it is of a dense shipment. */
MUST_USE status_t ahead_wait_begin(struct stage *stage, struct walked *walked, const struct op *op,
                                   bool dense);
MUST_USE status_t ahead_wait_end(struct stage *stage, struct walked *walked);
/* How long the stream stood still in walk number `walk` (from 0, the last or the one before), ns; waits
 * until it is done. */
MUST_USE status_t ahead_stalls(struct stage *stage, int64_t walk, int64_t *out_plain,
                               int64_t *out_dense);
/* Waits until the device has done everything enqueued: STATUS_PEER when a peer is lost meanwhile,
 * STATUS_TIMEOUT after the deadline. At once on the host. */
MUST_USE status_t stage_settle(struct stage *stage);
/* The device has not come to an end within the deadline: gives up, says so. Any thread. */
status_t stage_too_late(struct stage *stage);
/* Waits until the stream has nothing left to do, so that memory can go, whatever became of the group:
 * gives up after the deadline. False if the stream stands still even so. */
bool stage_drain(struct stage *stage);
/* What this rank, or its stream, does now, of which plan; NULL between walks. Any thread. */
const struct op *stage_doing(const struct stage *stage, const struct plan **out_plan);

/* On a device, before anything is sent: runs every operation of one microbatch. A kernel's first launch
 * loads it, which may wait for all streams of the device (for ever, behind one that waits for a peer),
 * and libraries choose and allocate at their first call. Frames, slots and gradients hold garbage after. */
MUST_USE status_t stage_rehearse(struct stage *stage);

/* Fetches the losses of the last walk into stage->loss. */
MUST_USE status_t stage_read_loss(struct stage *stage);
bool stage_hosts(const struct stage *stage, int unit);
/* Tells part and wire which plan is walked next. */
MUST_USE status_t stage_prepare(struct stage *stage);
/* Makes the plan of walks with fewer microbatches, before the first step: then stage_set_microbatches has
 * it at hand. */
MUST_USE status_t stage_add_size(struct stage *stage, int microbatches);
/* Microbatches of the walks from now on, at most those of the plan. A size that was not added is made now. */
MUST_USE status_t stage_set_microbatches(struct stage *stage, int microbatches);
/* Compares the wire's counters with the plan after the walks so far. */
MUST_USE status_t stage_check_traffic(const struct stage *stage);

#endif
