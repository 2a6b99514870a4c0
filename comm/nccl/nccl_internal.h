/* nccl_internal.h - what the files of the transport "nccl" share; the only header that sees NCCL.
 *
 *     nccl_library.c   the library, loaded when the transport is first asked for
 *     nccl_connect.c   pairs, their communicators, and their end
 *     nccl.c           the verbs
 *     nccl_collective.c   collectives, over a communicator of all ranks
 *     apart.c          a thread for what blocks
 *
 * A pair is one direction between two ranks: a communicator of these two (the sender is its rank 0), a
 * stream of its own, and in it the messages of all channels in the order in which they are put.
 */
#ifndef COMM_NCCL_HOUSE_H
#define COMM_NCCL_HOUSE_H

#include <nccl.h>

#include "base/device.h"
#include "comm/nccl/apart.h"
#include "comm/transport.h"

/* ---- the library ---- */

#define NCCL_FUNCTIONS(X)                                                                          \
    X(version, ncclGetVersion)                                                                     \
    X(error_string, ncclGetErrorString)                                                            \
    X(last_error, ncclGetLastError)                                                                \
    X(async_error, ncclCommGetAsyncError)                                                          \
    X(unique_id, ncclGetUniqueId)                                                                  \
    X(init, ncclCommInitRankConfig)                                                                \
    X(send, ncclSend)                                                                              \
    X(recv, ncclRecv)                                                                              \
    X(reduce_scatter, ncclReduceScatter)                                                           \
    X(all_gather, ncclAllGather)                                                                   \
    X(all_reduce, ncclAllReduce)                                                                   \
    X(reduce, ncclReduce)                                                                          \
    X(broadcast, ncclBroadcast)                                                                    \
    X(group_start, ncclGroupStart)                                                                 \
    X(group_end, ncclGroupEnd)                                                                     \
    X(finalize, ncclCommFinalize)                                                                  \
    X(destroy, ncclCommDestroy)

struct nccl_library {
    void *loaded;
    int release; /* 22803 for 2.28.3 */
#define NCCL_MEMBER(name, symbol) __typeof__(&symbol) name;
    NCCL_FUNCTIONS(NCCL_MEMBER)
#undef NCCL_MEMBER
};

extern struct nccl_library nccl; /* by nccl_load */

MUST_USE status_t nccl_load(void);
/* Unless it went well, `status` with what NCCL says. */
MUST_USE status_t nccl_check(ncclResult_t result, status_t status, const char *doing, int from,
                             int to);

/* ---- a wire ---- */

/* Messages of a pair that may be under way. NCCL's streams hold some 60 behind one that waits (2.28.3); where
 * they are full the host would block in CUDA, and nothing could end that, so we stop before. */
enum { NCCL_DEPTH = 48 };

enum { NCCL_LINE = 64 }; /* bytes between words */

/* The wire's stream and the pair's wait for each other by words, which go on when they are told to, as
 * events would not. */
struct nccl_words {
    uint32_t
        marks; /* sources written, slots vacated: puts or posts that the wire's stream has reached */
    unsigned char apart[NCCL_LINE - sizeof(uint32_t)];
    uint32_t ends; /* messages that have left or landed */
    unsigned char behind[NCCL_LINE - sizeof(uint32_t)];
};

struct nccl_turn { /* the message handed to NCCL as the n-th, n from 1, at n % NCCL_DEPTH */
    int channel;
    int64_t message;
};

struct nccl_pair {
    int from, to;
    bool sends; /* this rank is `from` */
    ncclUniqueId id;
    ncclComm_t comm;
    void *stream;
    struct nccl_words *words; /* pinned */
    int64_t marks, turns;     /* enqueued so far */
    struct nccl_turn turn[NCCL_DEPTH];

    /* Receiving: the channels of a walk's puts in their order, which repeats; none: that of the posts. */
    int *expected; /* [expected_room], used [expected_count] */
    int expected_room, expected_count, next;
    int *posted; /* [slots] ring of the channels whose posts await their turn */
    int slots, first, waiting;
};

enum arrival_state { ARRIVAL_IDLE, ARRIVAL_POSTED, ARRIVAL_ISSUED };

struct nccl_arrival { /* a slot */
    enum arrival_state state;
    int64_t message, mark, turn;
};

struct nccl_channel {
    struct nccl_pair *pair;       /* NULL: not of this rank */
    struct nccl_arrival *arrival; /* [slots] where this rank receives */
    int *posted;                  /* [slots] ring of slots whose receive is not issued yet */
    int first, waiting;
    int64_t newest; /* message put; -1 = none */
};

struct nccl_wire {
    struct wire *wire;
    struct group *group;
    struct device *device;
    struct nccl_pair *pair; /* [pairs] of this rank, in an order that all ranks share */
    int pairs;
    struct nccl_channel *channel; /* [count] */
    struct nccl_words *words;     /* [pairs] */
    void *token;                  /* what the first message of a pair carries */
    struct device_event *last;    /* behind all that a pair's stream holds */

    struct apart apart; /* for connecting and ending */
};

enum { NCCL_SENDER, NCCL_RECEIVER }; /* ranks in a pair's communicator */

/* What needs no other rank: a GPU and the library. */
MUST_USE status_t nccl_check_device(const struct device *device);
/* Can these ranks' GPUs be connected? All ranks find the same. talks [size * size] at from * size + to; NULL: all do. */
MUST_USE status_t nccl_check_members(struct group *group, const struct device *device,
                                     const bool *talks);
/* Messages of the pair that have not ended. */
int64_t nccl_under_way(const struct nccl_pair *pair);
MUST_USE status_t nccl_connect(struct wire *wire);
void nccl_disconnect(struct wire *wire);

#endif
