/* pump.h - tickets: how a rank's main thread talks with the progress thread of its wire.
 *
 * The main thread writes a ticket per message (post or put), queues it and goes on computing; when
 * it has to, it sleeps on the group's bell until the ticket is done. The progress thread alone
 * touches the library (MPI, UCX): it takes the queue, starts each ticket and finishes it.
 *
 *     main     post/put: ticket -> queue, wake            wait/sent: sleep on the bell
 *     thread   pump_take -> start ... completed -> pump_finish: stamps, counts, bell
 *
 * A ticket of an arrival belongs to its slot; tickets of departures are kept and used again. All
 * fields are under the bell's mutex but those marked (thread), which the progress thread has alone
 * while the ticket is MOVING.
 */
#ifndef COMM_PUMP_H
#define COMM_PUMP_H

#include "comm/transport.h"

enum ticket_state { TICKET_IDLE, TICKET_MOVING, TICKET_DONE, TICKET_BROKEN };

struct ticket {
    struct ticket *next;  /* in the queue, then (thread) in a list of the backend's */
    struct ticket *older; /* departures under way of this channel */
    struct pump *pump;
    enum ticket_state state;
    bool sending;
    int channel, slot;
    int64_t message;
    void *data; /* slot or source; a source is only read */
    size_t bytes;
    int64_t put, landed; /* ns; `put` of an arrival is ours once it is done */
    void *request;       /* (thread) the backend's */
    int64_t header[2];   /* (thread) the backend's */
    int pending;         /* (thread) the backend's */
};

struct pump {
    struct wire *wire;
    void (*wake)(struct pump *pump); /* makes the progress thread look at queue and stop */
    struct ticket *queue, **queue_end;
    bool stop;
    struct ticket **arrival;   /* [count] -> [slots]; NULL where this rank does not receive */
    struct ticket **departure; /* [count] newest first */
    struct ticket *spare;
    int64_t *ahead; /* [ranks] ns by which each rank's clock is ahead of ours */
};

status_t pump_init(struct pump *pump, struct wire *wire, void (*wake)(struct pump *pump));
void pump_fini(struct pump *pump); /* the progress thread has ended */
void pump_stop(struct pump *pump); /* asks the progress thread to end */

/* The progress thread: all queued tickets, oldest first, linked by `next`; NULL if none. */
struct ticket *pump_take(struct pump *pump, bool *out_stop);
/* `put` of an arrival: when it was put, in the sender's clock. Rings the bell. */
void pump_finish(struct ticket *ticket, int64_t put, bool good);

/* The verbs of a wire class whose state begins with a struct pump. */
status_t pump_post(struct wire *wire, int channel, int slot, int64_t message);
status_t pump_put(struct wire *wire, int channel, int slot, int64_t message, const void *source);
status_t pump_wait(struct wire *wire, int channel, int slot, int64_t message,
                   struct wire_stamp *out_stamp);
status_t pump_sent(struct wire *wire, int channel, int64_t message);

/* True for the ranks that share a channel with this one; [ranks]. */
void pump_peers(const struct wire *wire, bool *out_talks);

#endif
