/* ucx_internal.h - what the files of the "ucx" transport share.
 *
 *     ucx.c            context, worker, endpoints and their thread
 *     ucx_messages.c   messages, whole or in parts, and notes
 *
 * A tag is   channel (14 bits) | message (14 bits) | time of the put (36 bits, us, sender's clock)
 * and a receive matches the first two fields only, so the stamp travels for free. The top channel is
 * for greetings. The parts of a message (links.h) have one tag: UCX matches in the order of sends and
 * posts. Notes are active messages.
 */
#ifndef COMM_UCX_INTERNAL_H
#define COMM_UCX_INTERNAL_H

#include <ucp/api/ucp.h>

#include "comm/progress/links.h"

enum {
    CHANNEL_BITS = 14,
    MESSAGE_BITS = 14,
    TIME_BITS = 36,
    CONNECT_CHANNEL = (1 << CHANNEL_BITS) - 1
};

/* Whose note it is that leaves. */
struct ucx_telling {
    struct ucx_wire *self;
    int to;
};

struct ucx_wire {
    struct progress progress; /* first: progress.c finds it as the wire's state */
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_ep_h *endpoint; /* [ranks] NULL for those we do not talk with */
    int worker_fd, wake_fd;
    pthread_t thread;
    bool running;
    bool told;                   /* that a message did not go through: once a wire is enough */
    ucs_memory_type_t memory;    /* of what tickets point at; UNKNOWN: UCX finds out */
    struct ticket *posted;       /* receives under way, to cancel at the end (thread) */
    void **requests;             /* of receives in parts: of each channel [slots][parts] */
    size_t *first_request;       /* [count] */
    struct ucx_telling *telling; /* [ranks] */
};

/* What the wire's channels need for messages in parts, where some are; after that, notes may come. */
status_t ucx_open_links(struct ucx_wire *self);
void ucx_close_links(struct ucx_wire *self);
/* Starts a ticket of the queue. */
void ucx_start(struct ucx_wire *self, struct ticket *ticket);
/* Withdraws receives that nothing met. */
void ucx_withdraw(struct ucx_wire *self);

#endif
