/* schedule.h - the door of schedule/: who does what when, as plain data.
 *
 * Input: a graph (units, keys, reads), a number of stages and of microbatches.
 * Output: a plan: partition, shipments, and for every rank the exact operations of one step, in
 * order. Builders (gpipe.c, one_f_one_b.c, forward.c) emit coarse compute operations; passes.c
 * expands them to units and adds waits, puts, slots and the order in which every gradient is added
 * up; plan_check proves the result; plan_print draws it; runtime/executor.c walks it. This room
 * sees no CUDA, no MPI and no model: what a key or a read means is known to whoever fills the graph.
 *
 * Words (docs/architecture.md):
 *   unit      what a partition moves. Numbered 0..units-1 in the order of the forward pass.
 *   key       a tensor that one unit forms and that units read: later ones, or the same unit when it
 *             makes another key of it. A key that nobody reads has no gradient and is not shipped.
 *   read      a unit reads a key. It says how the key's gradient gets the unit's contribution.
 *   stage     ascending list of units (a contiguous run by the partitioner's choice). A rank hosts V of
 *             them, which share what it holds; the schedule says which.
 *   phase     (kind, stage, microbatch): forward, backward, the gradients of remote keys, of weights.
 *   shipment  (key, from stage, to stage, direction): one message per microbatch between two ranks.
 *
 * Forward a key goes from its producer straight to every other rank that reads it, once, whatever the
 * number of its stages that do. Backward the running sum of its gradient is relayed from stage to stage
 * until it reaches the producer, and each adds its own reads, units descending. In which order the
 * stages come is the plan's `sum_order`. SUM_SERIAL: descending, so that the additions happen in the
 * order of a single stage, whatever the schedule. SUM_PER_RANK: a rank adds up the reads of its higher
 * stages on its own and brings that sum in with the reads of its lowest one, so that every rank gets and
 * sends a sum once. With one stage a rank the two are the same.
 */
#ifndef SCHEDULE_SCHEDULE_H
#define SCHEDULE_SCHEDULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

/* ---- the graph: what the model says about itself ---- */

enum { GRAPH_NAME = 16 }; /* bytes of a name, the final 0 included */

/* Bytes that a unit works in. */
struct unit_bytes {
    int64_t frame;    /* of each microbatch in flight: its keys, and what F leaves for B and W */
    int64_t backward; /* of the microbatch in backward: what B leaves for GRAD and W */
    /* While F, B or W runs (B to W with weights_at_once). The units of a rank take turns in the
     * largest one's. */
    int64_t shared;
};

struct unit {
    char name[GRAPH_NAME]; /* for people: "attn 3" */
    /* Units with the same number from 1 on are kept together by the partition "layers"; the numbers
     * ascend without gaps. 0: before the first or after the last of them. */
    int layer;
    bool may_start;                                  /* a stage may begin with this unit */
    double forward_cost, backward_cost, weight_cost; /* FLOPs of a microbatch */
    int64_t parameter_bytes; /* of the weights in the compute dtype, which operations read */
    int64_t master_bytes;    /* training: of float32 weights beside them; 0: they are float32 */
    int64_t gradient_bytes;  /* training: of the weights' gradients, float32 */
    int64_t moment_bytes;    /* training: of each of the optimizer's two moments, float32 */
    struct unit_bytes training, evaluation;
};

struct key {
    char name[GRAPH_NAME]; /* for people: "X_3" */
    int producer;          /* unit */
    int order; /* of formation among the keys of its unit, ascending; no two are equal */
    /* A pipeline of plain layers would hand it on from this unit too: then its way to the next stage
     * counts as plain traffic, not as dense. */
    bool plain;
    int64_t bytes; /* of one microbatch in the compute dtype */
    /* Of a plain key those that such a pipeline would hand on; the others are dense traffic in the same
     * message. */
    int64_t plain_bytes;
};

/* How the gradient of a key gets what a read contributes. */
enum read_kind {
    READ_LEAVES, /* B of the unit leaves it in memory of its own, and a GRAD adds it */
    READ_FORMS,  /* the key has no other read: B of the unit forms its whole gradient */
    READ_MAKES /* F of the unit makes the key `made` of it; a GRAD adds it from that one's gradient */
};

struct read {
    int unit, key;
    int order; /* of this unit's additions to this key's gradient, ascending; no two are equal */
    enum read_kind kind;
    int made;     /* READ_MAKES: a key of the same unit, formed after this one; else -1 */
    bool rereads; /* READ_LEAVES: the addition reads the key itself too, which stays until then */
    int tag;      /* the model's, which gets it back with the addition */
    const char *what; /* for people: "aggregate of" the unit, "norm" of the key made; static */
};

struct graph {
    int units, keys, reads;
    struct unit *unit;
    struct key *key;
    struct read *read; /* by unit, then key, then order */
    int *first_read;   /* [units + 1] of each unit in `read` */
    int capacity;      /* of `read` */
};

/* Everything zero, to be filled in; then the reads in any order; then graph_finish, which sorts them.
 * graph_fini frees the tables, also of a graph that is all zero. */
MUST_USE status_t graph_init(struct graph *graph, int units, int keys);
MUST_USE status_t graph_add_read(struct graph *graph, const struct read *read);
void graph_finish(struct graph *graph);
void graph_fini(struct graph *graph);

bool graph_reads(const struct graph *graph, int unit, int key);
/* The key whose gradient B of the unit forms whole, or -1. */
int graph_formed_by(const struct graph *graph, int unit);

/* ---- the plan ---- */

/* OP_NORM and those behind it end a step. */
enum op_kind {
    OP_POST, /* arrival slot is free: microbatch's message may land in it (the credit) */
    OP_WAIT, /* until the message has landed; before a unit plain ones first, then dense ones as sent */
    OP_GATHERED, /* until the weights of a unit are there that the replicas have changed (OP_GATHER) */
    OP_F,        /* forward of a unit */
    OP_PUT,      /* start sending; the source stays untouched until OP_SENT */
    OP_SENT,     /* until the source of a put may be overwritten */
    OP_B,        /* gradients of a unit's inputs */
    OP_GRAD,     /* form a key's gradient on this stage: the additions add[first .. first + adds) */
    OP_W,        /* gradients of a unit's weights */
    OP_REDUCE,  /* start adding up a unit's gradients over the replicas */
    OP_REDUCED, /* until the sum is there, of which each replica has a part */
    OP_NORM,    /* exchange the gradient norm and the losses of the step, decide */
    OP_STEP,    /* optimizer, all units of the rank; with replicas on the replica's part of each */
    OP_GATHER,  /* start giving a unit's weights to all replicas, for the next step */
    OP_KINDS
};
const char *op_kind_name(enum op_kind kind);

/* An addition to a key's gradient. */
enum {
    ADD_RECEIVED = -1, /* the running sum of the stages before, already in the slot */
    ADD_PARTIAL = -2   /* what this rank's higher stages have added up by themselves */
};
struct add {
    int read; /* of graph.read, or one of the above */
};

struct op {
    enum op_kind kind;
    int stage;      /* whose work it is; -1 for OP_NORM, OP_STEP */
    int microbatch; /* -1 for OP_NORM, OP_STEP and what replicas do together */
    int unit;       /* OP_F, OP_B, OP_W, OP_REDUCE, OP_REDUCED, OP_GATHER, OP_GATHERED; else -1 */
    int key;        /* OP_POST, OP_WAIT, OP_PUT, OP_SENT, OP_GRAD; else -1 */
    int shipment;   /* OP_POST, OP_WAIT, OP_PUT, OP_SENT; else -1 */
    /* F, B, GRAD, W: the microbatch's activation frame of the stage. PUT, SENT forward: the frame that the
     * key is sent from. Else -1. */
    int frame;
    int backward_slot; /* B, GRAD, W: the microbatch's backward memory of the stage; else -1 */
    /* POST, WAIT: arrival slot. GRAD: slot of the stage's sum of the key (the arrival slot when one is
     * received). B that forms a gradient (READ_FORMS): its slot. PUT: the receiver's arrival slot.
     * Else -1. */
    int slot;
    int source; /* PUT, SENT backward: slot of the stage's sum that is sent. GRAD: slot of the partial
                   sum. Else -1 */
    /* PUT: place among those of all ranks, in the order in which they are needed by the costs of the graph; the
     * messages of a shipment ascend. Else -1. */
    int order;
    int first_add, adds; /* OP_GRAD: range of plan.add */
    /* POST, WAIT, SENT: so many from here on are one operation of a stream, waits for plain and for dense messages
     * apart; 0: part of the one before. Else 1. On the host each is one of its own. */
    int together;
};

struct shipment {
    int key, from,
        to; /* stages, of two ranks; forward `to` is the lowest of its rank that reads the key */
    bool backward;
    bool plain;          /* a plain key to the stage of the next unit, or its gradient back */
    int64_t bytes;       /* a microbatch */
    int64_t plain_bytes; /* of them; 0 if not plain */
    int slots;           /* arrival slots at `to` */
};

/* Slots in which a rank forms the gradient of a key: by one of its stages, or by several in turn. */
struct sum {
    int key, rank;
    int shipment; /* backward: its arrival slots are these; -1: memory of their own */
    int slots;
};

/* What a rank does, in coarse pieces: forward, backward with what the stage before waits for, gradients of
 * the other remote keys, gradients of weights; of a stage and a microbatch. */
enum phase_kind { PHASE_F, PHASE_B, PHASE_K, PHASE_W, PHASE_KINDS };
struct phase {
    enum phase_kind kind;
    int stage, microbatch;
};

struct rank_plan {
    struct op *op;
    int ops;
    struct phase *phase;
    int phases;
};

struct stage_plan {
    int *unit; /* [units] ascending */
    int units;
    int rank;
    int sum_rank; /* SUM_PER_RANK: its stages add up by themselves; `rank`, but for a replay, where it is
                     that of the plan replayed */
    int frames;    /* activation frames: microbatches in flight */
    int backwards; /* backward memories: microbatches between their B and their W */
    int *sum;     /* [keys] of plan.sum where the stage forms the key's gradient; -1: it does not */
    int *partial; /* [keys] of plan.sum that it adds to a received one; -1: none */
};

/* Messages to one rank that a sender's queue must hold while none of them has its slot: plan_check
 * proves that more is never needed. */
enum { PLAN_QUEUE = 16 };
enum { PLAN_TOGETHER = 64 }; /* op.together, at most */

enum sum_order { SUM_SERIAL, SUM_PER_RANK };

struct plan {
    const struct graph *graph; /* borrowed */
    int ranks, stages, microbatches;
    int replicas; /* pipelines that walk this plan side by side, each with data of its own */
    enum sum_order sum_order;
    bool training;             /* false: forward only (evaluation) */
    bool weights_at_once;      /* W follows its unit's B */
    struct stage_plan *stage;  /* [stages] */
    int *stage_of;             /* [units] */
    struct shipment *shipment; /* [shipments], forward ones first */
    int shipments;
    struct sum *sum; /* [sums] */
    int sums;
    struct rank_plan *rank; /* [ranks] */
    struct add *add;
    int adds;
    int puts;          /* of all ranks */
    char schedule[16]; /* its name; "file" */
};

struct plan_options {
    int ranks, microbatches; /* of one pipeline */
    int replicas;            /* 0: 1 */
    int chunks;              /* V, stages a rank; 0: the schedule's own */
    /* "gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"; "forward"; or the path of a file that
     * plan_print_schedule could have written, which has a '/' or a '.' in it. */
    const char *schedule;
    const char *partition; /* "auto", "layers", or units per stage "5,4,4,5" */
    int prefetch;          /* arrival slots beyond the microbatches in flight */
    /* "1f1b" and "zb-h1": rank r of P begins with (P-1-r)(1 + in_flight) forwards; 0 with the others. 1 is
     * eager 1F1B (arXiv 2211.05322). */
    int in_flight;
    /* W of a unit right after its B, so that units can take turns in the memory of both; else when the
     * schedule says. */
    bool weights_at_once;
    enum sum_order sum_order;
    /* Smaller numbers of microbatches of which plans will be walked in this one's memory too. */
    const int *sizes; /* [size_count] */
    int size_count;
    /* The path of such a file: one rank walks everything, in the cuts and with the additions of its plan;
     * chunks and partition are the file's. NULL: none. */
    const char *replay;
    /* "forward" only: the schedule of training whose placement it takes (NULL: 1f1b's), and the plan in
     * whose memory it is to be walked (NULL: it has its own). */
    const char *beside;
    const struct plan *room;
};

/* The names of those that train: "gpipe|1f1b|..". Static. */
const char *schedule_names(void);
/* May the schedule put weight gradients off? */
bool schedule_delays_weights(const char *schedule);

/* Builds, expands and checks a plan. Impossible layouts (more stages than units, a cut where none
 * may be, counts that do not add up) are STATUS_INVALID with the reason and the nearest that
 * works. */
MUST_USE status_t plan_create(const struct graph *graph, const struct plan_options *options,
                              struct plan **out);
void plan_destroy(struct plan *plan);
/* Forgets what a rank that walks the plan does not need: other ranks' operations but their puts to it. Such a
 * plan can be walked and printed, not checked or simulated. */
void plan_keep_rank(struct plan *plan, int rank);

/* Whether another plan (of forwards only, or with fewer microbatches) can be walked in the memory of `plan`
 * and over a wire made for it. */
bool plan_has_room(const struct plan *plan, const struct plan *other);

/* Stage of a unit; rank of a stage. */
int plan_stage_of(const struct plan *plan, int unit);
int plan_rank_of(const struct plan *plan, int stage);

/* Proves: every operation that must be there is there exactly once; every wait has its put and its
 * post, with the same slot and order on both ends; nothing reads what is not there yet, or
 * overwrites what is still needed or being sent; no deadlock with these slots; every gradient gets
 * every contribution once and in the lawful order, which it forms itself from graph, placement and
 * sum_order; every weight gradient gets its microbatches ascending. On failure STATUS_INTERNAL and one sentence in `why` (rank, operation, reason); logs
 * nothing. */
MUST_USE status_t plan_check(const struct plan *plan, char *why, size_t size);

uint64_t plan_hash(const struct plan *plan); /* equal iff all ranks walk the same plan */

/* Bytes per step over each ordered pair of ranks: bytes[from * ranks + to], plain and dense
 * (zeroed first). */
void plan_traffic(const struct plan *plan, int64_t *plain, int64_t *dense);

/* What the ranks at this place of all replicas receive from each other in a step, together: each of
 * R replicas is sent R - 1 addends of its part of the gradients, and R - 1 parts of the weights. */
int64_t plan_collective_bytes(const struct plan *plan, int rank);

struct plan_memory { /* bytes, one rank */
    int64_t parameters, gradients, optimizer, frames, arrivals, gradient_slots, backward;
    /* Of the host beside a GPU: where tensors pass through it, a buffer for each slot at both ends of a
     * shipment. */
    int64_t staging;
};
/* Shared bytes, the most of any unit of the rank, are the backward's, or without one the frames'. */
void plan_memory(const struct plan *plan, int rank, struct plan_memory *out);

/* Simulated step with the graph's costs (a flop takes one unit of time; the wire is free):
 * per rank busy time and the makespan; out_busy [ranks]. */
MUST_USE status_t plan_simulate(const struct plan *plan, double *out_busy, double *out_makespan);

/* Text: partition with costs, shipments per link, memory, and a time-line of F/B/W per rank drawn
 * to `columns` characters. */
void plan_print_partition(const struct plan *plan, FILE *out);
void plan_print_traffic(const struct plan *plan, FILE *out);
/* workspace [ranks]: bytes that the operations want beside; known: how far that is known, or "". */
void plan_print_memory(const struct plan *plan, const int64_t *workspace, const char *known,
                       FILE *out);
void plan_print_timeline(const struct plan *plan, int columns, FILE *out);
/* The messages that a rank puts, in their order (op.order), with the times of their put and of the wait for them. */
MUST_USE status_t plan_print_links(const struct plan *plan, int rank, FILE *out);
/* One operation per line of one rank, for reading and for golden files. */
void plan_print_ops(const struct plan *plan, int rank, FILE *out);
/* The schedule as a text that plan_options.schedule reads: microbatches, ranks of the stages, partition,
 * order of sums, then a line of phases a rank, "F0.2" the forward of stage 0 and microbatch 2. */
void plan_print_schedule(const struct plan *plan, FILE *out);
/* "wait for X_3 of microbatch 5 from stage 0"; returns `buffer`. */
const char *op_print(const struct plan *plan, const struct op *op, char *buffer, size_t size);

#endif
