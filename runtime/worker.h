/* worker.h - private to runtime/: what this rank holds of a plan: the memory of its stages, and the wire.
 *
 *     arrival[s][slot]    where shipment s (to this rank) lands
 *     sum[i][slot]        where sum i of the plan (of this rank) is formed: the arrival slot itself where a
 *                         running sum is received, else memory of its own
 *
 * A worker that only runs forwards (evaluation, samples) uses the memory and the wire of another one, between
 * that one's walks: plan_has_room says that they suffice.
 *
 * Everything is allocated in worker_create: plans of all sizes, memory, the wire's bookkeeping. A walk, and so
 * a step, allocates nothing on the host or on a device; tests/tools/test_allocations.sh counts. Libraries (MPI,
 * UCX, cuBLASLt, the driver) manage memory of their own.
 */
#ifndef RUNTIME_WORKER_H
#define RUNTIME_WORKER_H

#include <stdatomic.h>

#include "base/arena.h"
#include "runtime/runtime.h"

enum { KIND_PLAIN, KIND_DENSE }; /* of a wire's channels */

struct worker_options {
    const struct model *model;
    const struct kernels *kernels;
    struct group *job;      /* all ranks: nobody goes on alone */
    struct group *group;    /* of the pipeline */
    const char *carrier;    /* of what they exchange: collective_options */
    struct group *replicas; /* that share this one's place, for training; NULL: none */
    struct group *tensor;   /* that compute its stages with it; NULL: none */
    const char *transport;
    struct wire_links links;
    const char *purpose; /* for messages; "" = training steps */
    struct plan_options plan;
    bool training;
    int threads;
    struct trace *trace;
    struct device *device; /* NULL = the host */
    void *stream;
    int share;             /* of the model's shares */
    int tp_rank;           /* of the model's parts */
    struct worker *lender; /* work in its memory and over its wire (it outlives us); NULL = own */
};

/* Walks that the host may have enqueued and the device not finished: while it enqueues one, the one
 * before it runs. */
enum { WALKS_IN_FLIGHT = 2 };

/* What may hold up a stream: messages, all plain or some dense; what replicas, and what ranks of a stage exchange. */
enum stall { STALL_PLAIN, STALL_DENSE, STALL_REPLICAS, STALL_TENSOR, STALLS };

/* What a walk on a device leaves behind for its end: one of WALKS_IN_FLIGHT in turn. */
struct walk_record {
    int32_t *tokens; /* pinned [4][microbatches * B*T]: inputs, targets, first, position */
    struct device_event *done;          /* the stream has done all of it */
    struct device_event **begin, **end; /* [waits] around what may hold up the stream */
    enum stall *stall;                  /* [waits] for what */
    int waits;
    struct plan *_Atomic plan; /* that it walks */
};
struct in_flight {
    struct walk_record record[WALKS_IN_FLIGHT];
    int64_t walks;             /* enqueued so far */
    uint32_t *reached;         /* pinned: what the stream waits in (place_of); 0 between walks */
    int waits;                 /* most of a walk */
    struct device_event *mark; /* of worker_settle */
    void *pinned;
};

/* Where things of the plan are on this rank. */
struct worker_tables {
    void ***arrival; /* [shipments][slots] */
    void ***sum;     /* [sums][slots] */
    int *arrives;    /* [keys] shipment that brings the key to this rank; -1 */
    int *local;      /* [stages] place among this rank's, which is the part's; -1: another rank's */
};

struct worker_bytes {
    int64_t arrivals, gradients; /* used */
    int64_t workspace;           /* that the part's operations want beside its own */
    int64_t transport;           /* of the GPU, taken by the transport while it connected */
};

/* The head's rank: what it hands out. */
struct worker_head {
    trainer_head_fn fn; /* after the logits of a microbatch; NULL = nobody asks */
    void *arg;
    double *loss;           /* [microbatches] sums, on the host after worker_read_loss */
    double *loss_on_device; /* the same where the part lives */
};

/* [microbatches * B*T] the batch where the part lives; on the host only position is ours. */
struct worker_tokens {
    int32_t *inputs, *targets, *first, *position;
    int32_t *positions; /* on the host, of the walk now enqueued */
};

struct step_audit;

struct worker {
    const struct model *model;
    struct worker *lender;       /* whose part, wire, arrivals and batch these are; NULL = own */
    struct plan *plan;           /* with all microbatches: what memory was made for */
    struct plan *_Atomic active; /* of the walk: the same, or one of `shorter` */
    struct plan **shorter;       /* [microbatches] of worker_add_size; [m] has m microbatches */
    struct plan_options plan_options;
    struct part *part;
    struct wire *wire;         /* NULL with one rank */
    struct replicas *replicas; /* replicas.h; NULL: none, or the lender's */
    struct tp_group *tp;       /* tp_group.h; the lender's; NULL: none */
    int64_t tp_bytes;          /* received by it in steps */
    struct group *job, *group;
    struct trace *trace;
    struct timeline *timeline; /* of a profiled step; else NULL */
    int rank;                  /* of the plan; messages name group_named */
    int64_t steps;             /* walked with updates, of which bytes are counted */
    struct arena memory;
    struct worker_tables tables;
    struct worker_bytes bytes;
    struct worker_head head;
    struct worker_tokens tokens;
    bool refused;        /* by worker_check_room */
    int64_t messages[2]; /* [backward] so far in each shipment, which number them; lender's */
    int64_t
        puts_done; /* by walks before, at most: what messages are ordered by goes on from here; lender's */
    const struct plan *expected;    /* whose puts the wire was told to expect; lender's */
    _Atomic(const struct op *) now; /* for the liveness thread */
    const char *purpose, *transport;
    struct wire_links links;

    struct device *device; /* NULL = the host */
    void *stream;
    struct in_flight in_flight; /* on a device */
    struct step_audit *audit;   /* step_audit.h; NULL = never */
    int *puts; /* [shipments to this rank * microbatches] scratch: an order of puts */
};

/* Everything that the walk calls back for: the norm's exchange and the optimizer. */
struct worker_hooks {
    status_t (*norm)(void *arg);
    status_t (*step)(void *arg);
    void *arg;
};

MUST_USE status_t worker_create(const struct worker_options *options, struct worker **out);
void worker_destroy(struct worker *worker);
/* Walks this rank's operations once. loss_scale multiplies gradients. */
MUST_USE status_t worker_walk(struct worker *worker, const struct batch *batch, float loss_scale,
                              const struct worker_hooks *hooks);
/* worker_room.c: what the plan and the operations of all ranks on this one's GPU need beside what it has
 * free, when the transport has connected (evaluation and samples of a run that trains need no more):
 * STATUS_NOMEM names both and what to change. Collective; at once on the host. */
MUST_USE status_t worker_check_room(struct worker *worker);
/* An allocation of the worker's has failed even so, or on the host, and has said which: says what was
 * predicted, what is free and which keys to change. Nothing where worker_check_room did. */
void worker_explain_memory(const struct worker *worker);
/* worker_device.c: of a device. */
MUST_USE status_t in_flight_create(struct worker *worker);
void in_flight_destroy(struct worker *worker);
/* Takes the next of the walks in turn; waits until the device has left it. */
MUST_USE status_t in_flight_begin(struct worker *worker, struct walk_record **out);
MUST_USE status_t in_flight_end(struct worker *worker, struct walk_record *record);
/* Around what the stream may wait in, one operation or several; `op` the first, for messages. */
MUST_USE status_t in_flight_wait_begin(struct worker *worker, struct walk_record *record,
                                       const struct op *op, enum stall stall);
MUST_USE status_t in_flight_wait_end(struct worker *worker, struct walk_record *record);
/* How long the stream stood still in walk number `walk` (from 0, the last or the one before), ns [STALLS];
 * waits until it is done. */
MUST_USE status_t in_flight_stalls(struct worker *worker, int64_t walk, int64_t *out);
/* Waits until the device has done everything enqueued: STATUS_PEER when a peer is lost meanwhile,
 * STATUS_TIMEOUT after the deadline. At once on the host. */
MUST_USE status_t worker_settle(struct worker *worker);
/* The device has not come to an end within the deadline: gives up, says so. Any thread. */
status_t worker_too_late(struct worker *worker);
/* Waits until the stream has nothing left to do, so that memory can go, whatever became of the group:
 * gives up after the deadline. False if the stream stands still even so. */
bool worker_drain(struct worker *worker);
/* What this rank, or its stream, does now, of which plan; NULL between walks. Any thread. */
const struct op *worker_doing(const struct worker *worker, const struct plan **out_plan);

/* On a device, before anything is sent: runs every operation of one microbatch. A kernel's first launch
 * loads it, which may wait for all streams of the device (for ever, behind one that waits for a peer),
 * and libraries choose and allocate at their first call. Frames, slots and gradients hold garbage after. */
MUST_USE status_t worker_rehearse(struct worker *worker);

/* Fetches the losses of the last walk into worker->head.loss. */
MUST_USE status_t worker_read_loss(struct worker *worker);
bool worker_hosts(const struct worker *worker, int unit);
/* What a PUT sends. */
const void *worker_put_source(const struct worker *worker, const struct op *op);
/* Tells part and wire which plan is walked next. */
MUST_USE status_t worker_prepare(struct worker *worker);
/* Makes the plan of walks with fewer microbatches, before the first step: then worker_set_microbatches has
 * it at hand. */
MUST_USE status_t worker_add_size(struct worker *worker, int microbatches);
/* Microbatches of the walks from now on, at most those of the plan. A size that was not added is made now. */
MUST_USE status_t worker_set_microbatches(struct worker *worker, int microbatches);
/* Compares the wire's counters with the plan after the walks so far. */
MUST_USE status_t worker_check_traffic(const struct worker *worker);

#endif
