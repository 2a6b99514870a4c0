/* comm.h - the door of comm/: who takes part (group), bytes between ranks (wire), who is alive.
 *
 * group   control plane: small collectives, agreement on errors, liveness. Three kinds: alone (one
 *         process without MPI), mpi (MPI_COMM_WORLD of mpirun/srun), threads (all ranks in this
 *         process, for tests and laptops).
 * wire    data plane under one contract, four verbs:
 *             post(channel, slot)   receiver: the slot is free, the next message may land in it
 *             put (channel, slot)   sender: start moving bytes into the slot that the plan names
 *             wait(channel)         receiver: until the message has landed
 *             sent(channel)         sender: until the source may be overwritten
 *         Transports: ipc (copies between the GPUs of a host, in the order of streams), ucx (tag
 *         messages into receives posted ahead), mpi (the same over MPI point to point), threads
 *         (copies). A put never blocks the caller, whether or not the slot has been
 *         posted. Messages of a channel are numbered by the caller, upwards, and land in the order
 *         of the posts, which must be the order of the puts (plan_check proves it).
 *
 * Nothing here spins: a waiting rank sleeps (its cores belong to working ranks) and every wait ends
 * by completion, by STATUS_PEER when a rank died, stopped or reported failure, or by STATUS_TIMEOUT
 * after the deadline. A group and its wires belong to one thread of the rank unless said otherwise;
 * progress threads are inside.
 */
#ifndef COMM_COMM_H
#define COMM_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* ---- group ---- */

struct group;

/* Formats what this rank is doing ("step 12: wait for X_3 of microbatch 5 from rank 0") into
 * `buffer`. Called by the liveness thread at any moment: must only read atomics and constants. */
typedef void (*group_describe_fn)(void *arg, char *buffer, size_t size);

struct group_options {
    double deadline_s;  /* on every wait; <= 0 = none */
    double heartbeat_s; /* a silent rank counts as stopped after this */
};

/* True if a launcher (mpirun, srun) started this process as one of several or as one MPI rank. */
bool group_launched(void);
MUST_USE status_t group_open_alone(const struct group_options *options, struct group **out);
/* Initializes MPI (MPI_THREAD_MULTIPLE), all ranks together; ends the process, saying where it waits,
 * if that takes longer than 1.5 heartbeat_s and 45 s (heartbeat_s <= 0: no limit), for a rank that is
 * stopped now is watched by nobody. Then starts the liveness thread: pidfd of every rank of this
 * host tells death at once, a heartbeat ring over MPI tells a stopped or unreachable rank. When a
 * rank is lost the thread logs "rank N died" with what this rank was doing, makes every wait here
 * return STATUS_PEER, and ends the process by force if it has not left within five seconds. SIGTERM
 * (mpirun's way to end a job) is logged with what this rank was doing before the process ends. */
MUST_USE status_t group_open_mpi(const struct group_options *options, struct group **out);

struct loop_faults {  /* threads transport only; zeroed = none */
    int64_t delay_us; /* every message lands this much later */
    int late_one_in; /* one message in so many, drawn from its channel and number, lands late_times as */
    int late_times;   /* late; 0: none */
    int lose_channel; /* with lose: the message that never lands */
    int64_t lose_message;
    bool lose;
    bool die; /* rank die_rank dies at its die_put-th put (from 0) */
    int die_rank;
    int64_t die_put;
};
/* "US" or "US,ONE_IN,TIMES": delay_us, and one message in ONE_IN TIMES as late. */
MUST_USE status_t loop_faults_read(const char *text, struct loop_faults *out);
/* Runs `body(group, arg)` as `ranks` threads and joins them; returns the first failing rank's status,
 * STATUS_PEER last. faults may be NULL. */
typedef status_t (*group_body_fn)(struct group *group, void *arg);
MUST_USE status_t group_run_threads(int ranks, const struct group_options *options,
                                    const struct loop_faults *faults, group_body_fn body,
                                    void *arg);

/* Leaves in order (all ranks call it) and frees; NULL is fine. For mpi: stops liveness, MPI_Finalize.
 * After a failure use group_abandon instead. */
void group_close(struct group *group);
/* Leaves without the others' help: tells them that this rank gives up, frees what can be freed
 * without blocking. For mpi this ends the process with exit code `code` and does not return; for
 * threads and alone it returns. */
void group_abandon(struct group *group, int code);

/* Ranks that give the same `color` become a group of their own, numbered by `key` and then as in `group`.
 * It belongs to the same threads, a lost rank of any group is lost to all of them, and it is closed, in
 * order, before the group it was split from; group_abandon, group_watch and group_on_sigterm are those of
 * the group that was opened. Messages give ranks the numbers that they have there. Collective. */
MUST_USE status_t group_split(struct group *group, int color, int key, struct group **out);

int group_rank(const struct group *group);
int group_size(const struct group *group);
int group_local_rank(const struct group *group); /* among the ranks of this host */
int group_local_size(const struct group *group);
/* For messages: the number of a rank of the group in the one that was opened. */
int group_named(const struct group *group, int rank);
bool group_is_threads(const struct group *group);
void group_watch(struct group *group, group_describe_fn describe, void *arg);
/* What SIGTERM asks for where the launcher waits for it (srun; not mpirun, which kills a second later): `ask`,
 * called once by the liveness thread, which must only set flags, and the process ends in order by itself. A
 * second SIGTERM, or one after a rank was lost, ends it at once. Process-wide. */
void group_on_sigterm(void (*ask)(void));

/* STATUS_PEER if a peer is lost, and says so once; STATUS_OK otherwise. Any thread. */
MUST_USE status_t group_check(struct group *group);
bool group_is_lost(const struct group *group); /* the same without a word */
/* This rank cannot go on (a wait of a stream has outlasted the deadline, say): everything that waits
 * here ends as if a peer were lost, for the reason given. Any thread. */
void group_give_up(struct group *group, const char *reason);
/* When a wait that begins now has lasted too long: CLOCK_MONOTONIC, ns; INT64_MAX without a deadline. */
int64_t group_deadline(const struct group *group);
MUST_USE status_t group_barrier(struct group *group);
MUST_USE status_t group_broadcast(struct group *group, void *data, size_t bytes, int root);
/* out [size * bytes], rank-major. */
MUST_USE status_t group_allgather(struct group *group, const void *data, size_t bytes, void *out);
/* Every rank's `bytes` may differ; counts [size] must hold all of them; out on every rank. */
MUST_USE status_t group_allgatherv(struct group *group, const void *data, const size_t *counts,
                                   void *out);
/* Every rank passes its own status: all STATUS_OK gives STATUS_OK; otherwise a rank that failed gets its
 * own status back and the others STATUS_PEER, after a line that names the first rank that failed. */
MUST_USE status_t group_agree(struct group *group, status_t mine);
/* Same 64-bit value on all ranks? Otherwise STATUS_MISMATCH on every rank, naming `what` and the ranks
 * that differ from rank 0. */
MUST_USE status_t group_same(struct group *group, uint64_t value, const char *what);

/* ---- wire ---- */

struct wire;
struct device;   /* base/device.h */
struct timeline; /* base/timeline.h */

enum { WIRE_KINDS = 2 };

struct wire_channel {
    int from, to;      /* ranks, from != to */
    size_t bytes;      /* of every message */
    int slots;         /* arrival slots at `to` */
    void *const *slot; /* [slots] their addresses on rank `to`; NULL elsewhere, see wire_place */
    int kind;          /* of its bytes, for wire_arrived: below WIRE_KINDS */
};

struct wire_stamp { /* CLOCK_MONOTONIC of this rank's host, ns; zeros where a stream waits */
    int64_t put;    /* when the sender called wire_put (its clock, shifted to ours) */
    int64_t landed; /* when the message was complete here */
};

struct wire_count {          /* since creation, one channel, this rank's end */
    int64_t messages, bytes; /* put by me (from) or landed here (to) */
};

/* Name number i of the transports in this build, NULL behind the last. */
const char *transport_at(int i);
/* What a user may ask for: "auto|ipc|..", also what this build lacks. Static. */
const char *transport_names(void);
/* The library that carries it, with the version found here: "UCX 1.13.1"; "" if there is none.
 * Loads it. */
void transport_version(const char *name, char *out, size_t size);
/* Is it for ranks of one process? For tensors on GPUs alone? false of unknown ones. */
bool transport_is_threads(const char *name);
bool transport_needs_gpus(const char *name);

/* What mpi and ucx do with messages to other hosts, where all that a rank sends shares a link; the others take
 * no notice. */
struct wire_links {
    int64_t
        window; /* bytes under way at most, of all that leaves by a link; 0: the library gets all at once */
    int64_t part;  /* with a window: bytes that the library gets at once */
    bool shared;   /* the ranks of a host have one link, not one each; then all of them by_order */
    bool by_order; /* what waits leaves by its order (wire_put); else the first put first */
    bool all;      /* between the ranks of a host too */
};

struct wire_options {
    /* "threads" needs a threads group, the others an mpi group, "ipc" and "nccl" also GPUs. Anything else, or a
     * name not built in, is STATUS_INVALID/UNSUPPORTED with the reason. */
    const char *transport;
    /* Slots and sources are memory of `device`, which must outlive the wire, and the four verbs are operations of
     * `stream` as a kernel is: they return at once, and it is the stream that posts when it gets there, sends
     * what was written before, waits for what lands, and goes on when a source has left. Only transports that
     * know no streams (those that wire_is_streamed denies) stop the caller instead. NULL, NULL: memory of the
     * host, where everything happens at once.
     *
     * Puts to one rank leave in their order, each when its slot has been posted: the order in which all
     * ranks enqueue must not let that deadlock (plan_check proves it). When a peer is lost, waits of
     * streams are released and what they guarded is garbage: before results are believed, look at
     * group_check. */
    struct device *device;
    void *stream;
    /* Of each channel so many messages may be under way at once, put (or, on a stream, posted) and not yet
     * through, beside as many as it has slots: the books for them are made with the wire, and as long as there
     * are no more of them its verbs allocate nothing. More is allowed, and takes memory of the host when it
     * happens. */
    int under_way;
    struct wire_links links;
};

/* All ranks call it with the same channels (same order; the slot pointers differ) and the same transport. Connects
 * every pair that talks before it returns. */
MUST_USE status_t wire_create(struct group *group, const struct wire_options *options,
                              const struct wire_channel *channels, int count, struct wire **out);
/* wire_create in two parts, for who wants to know what a transport takes of a GPU for itself before taking
 * memory for slots: wire_connect heeds no addresses, and connects if the transport (nccl) takes much;
 * wire_place, with the same channels, tells them and connects the others. Both are collective; before it is
 * placed a wire can only be destroyed. */
MUST_USE status_t wire_connect(struct group *group, const struct wire_options *options,
                               const struct wire_channel *channels, int count, struct wire **out);
MUST_USE status_t wire_place(struct wire *wire, const struct wire_channel *channels);
bool wire_is_streamed(const struct wire *wire);
/* Why tensors of a GPU pass through pinned memory of the host ("transport mpi", "UCX without CUDA"), or
 * NULL if they do not. */
const char *wire_staged(const struct wire *wire);
/* Host memory that a wire of a GPU has pinned on this rank: all of it, and of that the buffers of a staged
 * wire, one for each slot of a channel that begins or ends here. The rest are words. */
size_t wire_pinned_bytes(const struct wire *wire);
size_t wire_staging_bytes(const struct wire *wire);
/* The puts of one walk of rank `from` to this one, in their order there: channel [count], the same in
 * every walk until it is said again. For transports that can only receive in the order of the puts
 * (nccl), or save waits when they know it (ipc); to be called before the first post, and between walks. */
MUST_USE status_t wire_expect(struct wire *wire, int from, const int *channel, int count);
/* From now on transfers that the transport enqueues in streams of its own (ipc, nccl) are spans of the
 * timeline (base/timeline.h), from the thread that calls the verbs; NULL: no more. */
void wire_time(struct wire *wire, struct timeline *timeline);
void wire_destroy(struct wire *wire); /* no message may be under way */

MUST_USE status_t wire_post(struct wire *wire, int channel, int slot, int64_t message);
/* `order`: of what waits for a link (wire_links) the lowest leaves first, and of equals the first put. In a channel it
 * never falls. */
MUST_USE status_t wire_put(struct wire *wire, int channel, int slot, int64_t message, int64_t order,
                           const void *source);
MUST_USE status_t wire_wait(struct wire *wire, int channel, int slot, int64_t message,
                            struct wire_stamp *out_stamp);
MUST_USE status_t wire_sent(struct wire *wire, int channel, int64_t message);
/* The same for several messages, as if one after the other; on a stream that costs less than one by one.
 * Waits for what is there already, because something that the same rank put later was awaited before, or
 * is among them, cost nothing if the order of the puts is known (wire_expect). */
struct wire_message {
    int channel, slot; /* slot: not of wire_sent_all */
    int64_t message;
};
MUST_USE status_t wire_post_all(struct wire *wire, const struct wire_message *messages, int count);
MUST_USE status_t wire_wait_all(struct wire *wire, const struct wire_message *messages, int count);
MUST_USE status_t wire_sent_all(struct wire *wire, const struct wire_message *messages, int count);
void wire_counts(const struct wire *wire, int channel, struct wire_count *out);
/* Bytes of each kind that have landed here since creation, of messages in parts those of each part. */
void wire_arrived(const struct wire *wire, int64_t out[WIRE_KINDS]);

/* The name of the transport for wires between the ranks of `group` whose slots and sources are memory of
 * `device` (NULL: the host). On GPUs ipc where it works, else the quickest of the others, which are
 * measured. Rank 0 logs what was reached, or why nothing was measured. The same on all ranks;
 * collective. */
MUST_USE status_t transport_choose(struct group *group, struct device *device, void *stream,
                                   const char **out);

/* Does the transport heed wire_links? */
bool transport_heeds_links(const char *name);
/* window and part of `links`, whose other fields are set: `window` bytes, or (0) as many as the slowest link between
 * hosts holds, which is measured over `transport` and logged by rank 0. No window where nothing goes to another host,
 * or the transport heeds none. The same on all ranks; collective. */
MUST_USE status_t wire_links_choose(struct group *group, const char *transport,
                                    struct device *device, void *stream, int64_t window,
                                    struct wire_links *links);

/* ---- collective: sums and copies of many values among the ranks of a group ----
 *
 * Calls are started in one order, the same on all ranks, and run beside what the caller does until it waits for
 * them. With one rank they are copies. Sums are, but for nccl, in the order of the ranks, ((x_0 + x_1) + x_2) + ..., so
 * they have the same bits whatever carries them: of float32, or of bfloat16, added up in float32 and rounded once (by
 * nccl after every addition).
 *
 *     threads  the ranks of a process: whoever waits reads what the others have
 *     mpi      nonblocking collectives of MPI, moved and added up by a progress thread, in chunks, so that little
 *              memory is needed beside the caller's
 *
 * On a GPU they are operations of a stream: a start and a wait only enqueue.
 *
 *     mpi      all values pass through pinned memory of the host
 *     nccl     in a stream beside, over one communicator of all ranks; one rank a GPU
 */
struct collective;

enum collective_kind {
    COLLECTIVE_REDUCE_SCATTER, /* in [sum of counts] -> out [counts[rank]], this rank's part of the sum */
    COLLECTIVE_ALL_GATHER, /* in [counts[rank]] -> out [sum of counts], in the order of the ranks */
    COLLECTIVE_ALL_REDUCE, /* in [sum of counts] -> out, the sum, the same; counts: who adds up what */
    COLLECTIVE_BROADCAST, /* in [sum of counts] of root -> out, the same */
    COLLECTIVE_KINDS
};
const char *collective_kind_name(enum collective_kind kind); /* "reduce-scatter" */

struct collective_call {
    enum collective_kind kind;
    const size_t *counts; /* [ranks] elements; 0 is fine */
    size_t element;       /* bytes; of a sum sizeof(float), or 2 with bf16 */
    bool bf16;            /* a sum of bfloat16 */
    /* May be a part of out: REDUCE_SCATTER, ALL_GATHER: where this rank's lies in the other. ALL_REDUCE: out.
     * NULL: that. */
    const void *in;
    void *out;
    int root; /* COLLECTIVE_BROADCAST */
};

struct collective_options {
    int under_way;         /* calls started and not awaited, at most */
    size_t chunk;          /* bytes a rank that move at once; 0: 1 MiB, or 16 MiB / ranks */
    struct device *device; /* of in and out; NULL = the host */
    void *stream;          /* that the verbs belong to */
    const char *carrier;   /* on a GPU "nccl", "host" or (NULL too) "auto": nccl where it works */
    const char *whose;     /* for messages: "replicas"; NULL: "ranks" */
};

/* Collective. All three must outlive it: group, and what calls name until they have been awaited. */
MUST_USE status_t collective_create(struct group *group, const struct collective_options *options,
                                    struct collective **out);
/* All calls have been awaited, or the job ends. NULL is fine. */
void collective_destroy(struct collective *collective);
const char *collective_carrier(const struct collective *collective); /* "nccl" or "host" */
/* Are sums in the order of the ranks? Else in one that is the library's choice. */
bool collective_is_ordered(const struct collective *collective);
/* Numbers are 0, 1, 2 ...; counts are copied. */
MUST_USE status_t collective_start(struct collective *collective,
                                   const struct collective_call *call, int64_t *out_number);
/* Until `out` is complete and `in` may be overwritten; in the order of the starts. STATUS_PEER, STATUS_TIMEOUT as
 * the waits of a wire; when a peer is lost a stream goes on with garbage (group_check). */
MUST_USE status_t collective_wait(struct collective *collective, int64_t number);
/* start and wait */
MUST_USE status_t collective_run(struct collective *collective, const struct collective_call *call);
/* Of pinned memory of the host, beside a GPU. */
size_t collective_pinned_bytes(const struct collective *collective);
/* Payload that this rank has received in the calls awaited so far: each sum or copy from each other rank once. */
int64_t collective_bytes(const struct collective *collective);
/* The same of one call. */
int64_t collective_call_bytes(const struct collective_call *call, int rank, int ranks);

/* ---- meter: how fast a transport is ---- */

/* Neighbours in pairs, places (first, first + 1), (first + 2, first + 3), ... of an order, send each other messages of a
 * few sizes over a wire of the meter's own. Ranks without a partner only take part in the agreements.
 * For `muddpipe bench comm` and for choosing a transport. */
struct meter;

struct meter_options {
    struct device *device; /* where the messages lie: the host's or a GPU's, never NULL */
    void *stream;          /* that the verbs belong to */
    const size_t *bytes;   /* [sizes] of a message */
    int sizes, slots;      /* slots: messages under way at most */
    int first;             /* place of the first rank that has a partner */
    /* [size] ranks in the order in which neighbours are paired, the same on all; NULL: by their numbers */
    const int *order;
};

enum meter_way {
    METER_FORTH, /* the lower rank of a pair sends */
    METER_BOTH,  /* both do at once */
    METER_ROUND  /* the answer to a message is the next one: latency */
};

/* Called before each put of METER_BOTH, to make the stream or the caller wait for its time. */
struct meter_pace {
    status_t (*before)(void *arg, int message);
    void *arg;
};

/* All ranks call these, but meter_run, which those with a partner do. */
MUST_USE status_t meter_create(struct group *group, const char *transport,
                               const struct meter_options *options, struct meter **out);
/* As meter_create, but a transport that cannot be used is no failure: *out is NULL then, and `why` has
 * the reason that the first rank to refuse gave, the same on all ranks. */
MUST_USE status_t meter_try(struct group *group, const char *transport,
                            const struct meter_options *options, struct meter **out, char *why,
                            size_t size);
void meter_destroy(struct meter *meter);
int meter_partner(const struct meter *meter); /* -1 = none */
bool meter_is_streamed(const struct meter *meter);
const char *meter_staged(const struct meter *meter); /* as wire_staged */
/* `count` messages (METER_ROUND: there and back) of one size; on a streamed wire it only enqueues. */
MUST_USE status_t meter_run(struct meter *meter, enum meter_way way, int size, int count,
                            const struct meter_pace *pace);
/* Until the stream is done, a peer is lost (STATUS_PEER) or health.deadline_s has passed. */
MUST_USE status_t meter_settle(struct meter *meter);
/* Starts together, runs, settles: seconds of the slowest pair, the same on all ranks. */
MUST_USE status_t meter_time(struct meter *meter, enum meter_way way, int size, int count,
                             double *out_seconds);
/* Fills every slot both ways and looks at every byte; STATUS_INTERNAL if one is wrong. */
MUST_USE status_t meter_verify(struct meter *meter, int size);

#endif
