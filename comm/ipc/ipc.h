/* ipc.h - insides of the "ipc" transport: ipc.c moves messages, ipc_open.c connects, ipc_flags.c holds
 * the flags.
 *
 * A flags is what a rank shares with those who send to it: words (device.h) in memory of the host,
 * which the streams of both processes write and wait for. It has no name in any file system, so that
 * nothing is left behind however the processes end.
 */
#ifndef COMM_IPC_H
#define COMM_IPC_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/device.h"
#include "base/status.h"
#include "comm/transport.h"

/* ---- flags ---- */

struct ipc_flags {
    struct device *device;
    unsigned char *memory; /* NULL = none */
    size_t bytes;
    int fd; /* of its maker until ipc_flags_seal; -1 = none */
};

struct ipc_flags_card { /* to be sent to who opens it */
    int64_t pid;
    int64_t fd;
};

/* `lines` words, each 0 and in a cache line of its own. */
MUST_USE status_t ipc_flags_create(struct device *device, size_t lines, struct ipc_flags *out);
MUST_USE status_t ipc_flags_open(struct device *device, const struct ipc_flags_card *card, int rank,
                                 size_t lines, struct ipc_flags *out);
void ipc_flags_card(const struct ipc_flags *flags, struct ipc_flags_card *out);
/* All who will ever open it have done so. */
void ipc_flags_seal(struct ipc_flags *flags);
void ipc_flags_close(struct ipc_flags *flags);
uint32_t *ipc_flags_word(const struct ipc_flags *flags, size_t line);

/* ---- a wire ---- */

#define IPC_FIRST (UINT32_MAX - 3) /* before the first use of a slot */

struct ipc_slot {               /* of a channel that begins or ends here */
    uint32_t *arrival, *credit; /* on the receiver's flags */
    uint32_t uses;              /* posts (receiver) or puts (sender) so far; wakeup.mutex */
    bool posted;                /* receiver: and not yet waited for */
    int64_t message;            /* receiver: of the last post */
    struct device_handle handle;
    void *there; /* sender: the slot as this process sees it; NULL = not mapped */
};

struct ipc_put { /* whose source may still be read */
    int64_t message;
    int slot;
    uint32_t use;
    int64_t turn; /* among all puts of its peer */
};

struct ipc_channel {
    struct ipc_slot *slot; /* [slots]; NULL: neither end is here */
    struct ipc_put
        *put; /* [room] a ring: `puts` of them from `first` on, oldest first; wakeup.mutex */
    int first, puts, room;
    /* Receiver: places of the channel's messages among the puts of a walk of the sender's. */
    int64_t *turn;   /* [turns], used [walk] */
    int walk, turns; /* walk 0 = not told */
    int64_t waits;   /* since it was told */
};

/* What one put stream brings comes in its order: who has waited for something has waited for all before it. */
struct ipc_line {
    int64_t seen;             /* turn of the last that the wire's stream waits for; -1 = none */
    int64_t wanted;           /* now asked for, where later; with */
    struct device_word until; /* ... what it waits for then */
};

struct ipc_peer {
    bool sends_to_us;
    void *stream; /* of the puts to it; NULL = none */
    struct device_event *ready;
    struct ipc_flags flags; /* its arrivals */
    int64_t puts;           /* through its stream so far */
    int64_t expected;       /* puts of a walk to us */
    struct ipc_line out, in;
};

struct ipc_wire {
    struct wire *wire;
    struct ipc_flags own;        /* our arrivals; the first lines say who has left */
    struct ipc_peer *peer;       /* [ranks] */
    struct ipc_channel *channel; /* [count] */
    struct device_word *word;    /* [words] of the verb under way; room for all slots and ranks */
    int words;
    struct device_event *mark;
    pthread_t releaser;
    bool releasing; /* wakeup.mutex */
    atomic_bool closing;
};

MUST_USE status_t ipc_create(struct wire *wire);
/* Nothing may be under way. `connected`: takes leave of the others first, who are connected too. */
void ipc_free(struct ipc_wire *self, bool connected);

#endif
