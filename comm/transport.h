/* transport.h - what the folders of comm/ share: the insides of a group and of a wire.
 *
 *     wire.c         the verbs of a wire: check arguments, then call the class
 *     group/         group.c: the verbs of a group; alone.c one rank; loop.c threads; mpi_group.c processes
 *     health/        who is alive
 *     threads/ mpi/ ucx/ ipc/ nccl/    a transport each
 *     progress/      tickets between a rank's main thread and a wire's progress thread (mpi, ucx)
 *
 * A rank sleeps in one way only: on its group's `wakeup`, a mutex with a condition. Whoever completes
 * something that the rank may wait for signals it, and so does whoever learns that a peer is lost.
 */
#ifndef COMM_TRANSPORT_H
#define COMM_TRANSPORT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/device.h"
#include "base/status.h"
#include "base/timeline.h"
#include "comm/comm.h"
#include "comm/transports.h"

enum { REASON_SIZE = 256, DOING_SIZE = 512 };

/* ---- group ---- */

struct wakeup {
    pthread_mutex_t *mutex; /* own_mutex, or one shared by all ranks of a process */
    pthread_mutex_t own_mutex;
    pthread_cond_t condition; /* CLOCK_MONOTONIC */
};

struct group_class {
    bool threads;
    void (*close)(struct group *group);
    void (*abandon)(struct group *group, int code);
    status_t (*barrier)(struct group *group);
    status_t (*broadcast)(struct group *group, void *data, size_t bytes, int root);
    status_t (*allgatherv)(struct group *group, const void *data, const size_t *counts, void *out);
    /* ns to subtract from a stamp of each rank's clock to have it on ours; [size], collective. */
    status_t (*clocks)(struct group *group, int64_t *out_ahead);
    /* group_split: `members` [size] are the ranks of `group` that the new one has, in its order. Its fields
     * come from group_init_split. */
    status_t (*split)(struct group *group, const int *members, int size, struct group **out);
};

/* What a rank has once, however many groups it is in: how it sleeps, and whether a peer is lost. */
struct group_shared {
    struct wakeup wakeup;

    atomic_bool failed;       /* a peer is lost: every wait returns STATUS_PEER */
    atomic_bool told;         /* ... and this rank has said so */
    atomic_bool filed;        /* ... in its log file too */
    char reason[REASON_SIZE]; /* "rank 2 died (killed?)"; written once, before `failed` */

    pthread_mutex_t watch_mutex;
    group_describe_fn describe;
    void *describe_arg;
    const char *inside; /* the collective that runs now, if any; a literal */

    struct release *releases; /* wakeup.mutex */
};

/* A peer is lost: `run` lets every stream go on that waits for one. Called once, by any thread, with wakeup.mutex
 * held; must not block. */
struct release {
    struct release *next;
    void (*run)(void *arg);
    void *arg;
};
/* From now on, until it is taken back. A peer lost before needs none: verbs refuse. */
void release_enlist(struct group *group, struct release *release);
void release_strike(struct group *group, struct release *release);

struct group {
    const struct group_class *class;
    int rank, size, local_rank, local_size;
    const int *leader; /* [size] lowest rank on each rank's host; NULL = all on one host */
    struct group *top; /* the one that was opened, of which this was split */
    int *named;        /* [size] number of each rank in the group that was opened; NULL = its own */
    struct group_options options;
    struct group_shared *shared, own_shared; /* the same, or that of the group that was opened */
    void *state;                             /* of the class */
};

/* Fields of `group` but class and state; `shared` NULL = a mutex of its own. */
void group_init(struct group *group, const struct group_class *class, int rank, int size,
                const struct group_options *options, pthread_mutex_t *shared);
void group_fini(struct group *group);
/* The same for a group split from `parent`, with which it shares what is `shared`; also named. */
MUST_USE status_t group_init_split(struct group *group, const struct group *parent,
                                   const int *members, int size);

/* What this rank does now: its description, or the collective it is in; `buffer`. */
const char *group_doing(struct group *group, char *buffer, size_t size);
/* A peer is lost. The first call wins; signals the wakeup. `locked`: the caller holds wakeup.mutex. */
void group_fail(struct group *group, bool locked, const char *reason);
/* What a wait returns when `failed` is set: STATUS_PEER, and says why once if nobody has. */
status_t group_lost(struct group *group);

/* Sleeps (mutex held) until a signal or `until`; false when `until` has passed. */
bool wakeup_wait(struct wakeup *wakeup, int64_t until);
void wakeup_signal(struct wakeup *wakeup); /* mutex held */

/* ---- wire ---- */

struct wire_class {
    const char *name;
    const char *absent; /* why this build has it not; NULL: it has */
    /* "UCX 1.13.1": the library in use, not that of the build; NULL: it has none of its own. */
    void (*version)(char *out, size_t size);
    bool gpus_only;
    /* `auto` on the host takes the first of these. */
    bool hosts;
    /* `auto` on GPUs: where this one works, nothing behind it is measured; else its time of a message counts
     * so many times (0: it is no candidate). */
    bool settles;
    double handicap;
    bool links;   /* heeds wire_links */
    bool threads; /* needs a threads group; otherwise an mpi group */
    bool streams; /* on a device its verbs only enqueue; otherwise wire.c lets the stream run dry */
    bool
        early; /* create needs no addresses of slots and takes of the GPU: it comes with wire_connect */
    status_t (*create)(struct wire *wire);
    void (*destroy)(struct wire *wire);
    status_t (*post)(struct wire *wire, int channel, int slot, int64_t message);
    status_t (*put)(struct wire *wire, int channel, int slot, int64_t message, int64_t order,
                    const void *source);
    status_t (*wait)(struct wire *wire, int channel, int slot, int64_t message,
                     struct wire_stamp *out_stamp);
    status_t (*sent)(struct wire *wire, int channel, int64_t message);
    /* Several at once, or NULL: one after the other. */
    status_t (*post_all)(struct wire *wire, const struct wire_message *messages, int count);
    status_t (*wait_all)(struct wire *wire, const struct wire_message *messages, int count);
    status_t (*sent_all)(struct wire *wire, const struct wire_message *messages, int count);
    status_t (*expect)(struct wire *wire, int from, const int *channel, int count); /* or NULL */
    void (*release)(struct wire *wire); /* struct release; or NULL */
};

struct wire {
    const struct wire_class *class; /* NULL: no channels */
    struct group *group;
    struct device *device;     /* of slots and sources; NULL = the host */
    void *stream;              /* that the verbs belong to */
    struct timeline *timeline; /* where transfers are recorded, or NULL */
    struct release release;
    int count;
    int under_way; /* of a channel, for which there is room from the start */
    struct wire_links links;
    struct link_share *share;     /* progress/link_share.h; NULL: none */
    struct wire_channel *channel; /* [count] copies; slot arrays too */
    void **addresses;             /* all slot arrays of this rank, by wire_place */
    bool made, placed;            /* by the class; with addresses */
    struct wire_count *counts;    /* [count] under the wakeup's mutex */
    _Atomic int64_t arrived[WIRE_KINDS];
    bool streamed;          /* as the class says, on a GPU; its create may deny it */
    const char *staged;     /* why, see wire_staged */
    size_t pinned, staging; /* bytes of host memory; staging is part of pinned */
    void *state;            /* of the class */
};

/* Ends a wait that did not complete: STATUS_PEER if the group failed, otherwise the deadline has
 * passed, which is said with channel, message and what the rank does. `verb` is "landed" or "left". */
status_t wire_give_up(struct wire *wire, int channel, int64_t message, const char *verb);

/* Bytes of the channel have landed. Any thread. */
static inline void wire_arrives(struct wire *wire, int channel, size_t bytes)
{
    atomic_fetch_add_explicit(&wire->arrived[wire->channel[channel].kind], (int64_t)bytes,
                              memory_order_relaxed);
}

/* A transfer in a stream of the transport's own begins; timeline_end(wire->timeline) ends it. */
void wire_time_begin(struct wire *wire, void *stream, const char *name, int channel,
                     int64_t message);

/* Messages of a channel for which books are kept from the start. */
static inline int wire_room(const struct wire *wire, int channel)
{
    return wire->under_way + wire->channel[channel].slots;
}

static inline bool wire_on_gpu(const struct wire *wire) /* slots and sources are */
{
    return wire->device != NULL && device_kind(wire->device) != DEVICE_HOST;
}

/* Streams that share a queue of the GPU wait for each other, which no plan knows of: refuses more
 * streams that may wait than there are queues. */
status_t wire_check_queues(const char *transport, int streams);

#define WIRE_CLASS_DECLARE_(row) extern const struct wire_class row##_wire_class;
TRANSPORTS(WIRE_CLASS_DECLARE_)

/* wire.c: class number i of those in this build and not, NULL behind the last. */
const struct wire_class *wire_class_at(int i);
/* By its name; NULL if there is none. */
const struct wire_class *wire_class_find(const char *name);

/* choose.c: the best of those among `names` that work, tried in this order; `line`: what each reached, or
 * why not. */
status_t choose_measured(struct group *group, const char *const *names, struct device *device,
                         void *stream, const char **out, char *line, size_t size);
/* transport_choose, with its reason instead of a line in the log. */
status_t choose_explained(struct group *group, struct device *device, void *stream,
                          const char **out, char *why, size_t size);

/* loop.c for threads.c: what the ranks of one process share. A world split from another has that one's
 * mutex, faults and dead. */
struct loop_world {
    struct loop_world *top; /* the one that was opened; itself if it was */
    pthread_mutex_t *mutex, own_mutex;
    struct group *group; /* [ranks] */
    int ranks;
    int *member;             /* [ranks] of `top` */
    int holders;             /* of a split one: ranks that have not closed it */
    int64_t generation;      /* of collectives */
    int arrived;             /* in the collective `generation` */
    unsigned char *stage[2]; /* bytes of a collective, by the parity of its generation */
    size_t stage_size;       /* of each */
    int64_t *wires_created;  /* [ranks] */
    struct loop_wire *wires; /* those some rank still holds */

    struct loop_faults faults; /* these and what follows: of `top` alone */
    int64_t *puts;             /* [ranks] so far, collectives too */
    bool *dead;                /* [ranks] by fault */
    bool *finished;            /* [ranks] the body has returned or closed */
};
/* Is the rank dead by fault? With the mutex. */
static inline bool loop_is_dead(const struct group *group)
{
    const struct loop_world *world = group->state;
    return world->top->dead[world->member[group->rank]];
}
/* A rank is about to send: STATUS_INTERRUPTED if it is dead, or dies now because it should. With the mutex. */
MUST_USE status_t loop_sends(struct group *group);

#endif
