/* progress.h - tickets: how a rank's main thread talks with the progress thread of its wire.
 *
 * The main thread writes a ticket per message (post or put), queues it and goes on computing; when
 * it has to, it sleeps until the ticket is done. The progress thread alone
 * touches the library (MPI, UCX): it takes the queue, starts each ticket and finishes it.
 *
 *     main     post/put: ticket -> queue, wake            wait/sent: sleep
 *     thread   progress_take -> start ... completed -> progress_finish: stamps, counts, signal
 *
 * A ticket of an arrival belongs to its slot; tickets of departures, and all of a stream's verbs, are made
 * with the wire (wire_options.under_way), kept and used again. All
 * fields are under the wakeup's mutex but those marked (thread), which the progress thread has alone
 * while the ticket is MOVING.
 *
 * On a GPU the verbs are a stream's (progress_stream.c): between the two threads stand words of pinned
 * memory. A verb queues its ticket and makes the stream write a word when it gets there, for which
 * the thread looks; a wait makes the stream wait for a word that the thread writes when the message
 * is through. Nobody but the thread ever waits for the stream.
 *
 *     stream   reached: posts and puts that it has passed      -> thread: starts what is due
 *     thread   landed [slot], left [channel]: message + 1      -> stream: goes on
 *
 * A library that cannot touch a GPU's memory is given pinned buffers instead (staged): a stream for
 * each receiver copies sources into them, one stream copies arrivals out of them, so that the
 * stream that computes waits for no copy but those it needs.
 */
#ifndef COMM_PROGRESS_H
#define COMM_PROGRESS_H

#include "comm/transport.h"

enum ticket_state { TICKET_IDLE, TICKET_MOVING, TICKET_DONE, TICKET_BROKEN };

struct ticket {
    /* In the thread's queue or that of its word, then (thread) in a list of the backend's. */
    struct ticket *next;
    struct ticket *older; /* departures under way of this channel, or spare */
    struct ticket *made;  /* all but those of slots */
    struct progress *progress;
    enum ticket_state state;
    bool sending;
    int channel, slot;
    int64_t message;
    void *data; /* slot or source; a source is only read */
    size_t bytes;
    int64_t put, landed; /* ns; `put` of an arrival is ours once it is done */
    void *request;       /* (thread) the backend's */
    int64_t header[2];   /* (thread) the backend's */
    int pending;         /* (thread) the backend's: parts under way */
    int64_t order;       /* of a departure, see wire_put */

    /* (thread) of links.c */
    size_t started;  /* bytes, from the front */
    uint32_t number; /* of the departure in its channel, from 1, modulo 2^32 */
    bool broken;

    /* of a stream's verb */
    struct ticket *newer; /* departures under way of this channel */
    int queue;
    const uint32_t *word; /* to be started when it has reached `due` */
    uint32_t due;
};

struct progress_streams; /* progress_stream.c */
struct links;            /* links.c */

struct progress {
    struct wire *wire;
    void (*wake)(struct progress *progress); /* makes the progress thread look at queue and stop */
    struct ticket *queue, **queue_end;
    bool stop;
    struct ticket **arrival;   /* [count] -> [slots]; NULL where this rank does not receive */
    struct ticket **departure; /* [count] newest first */
    struct ticket *spare, *made;
    int64_t *ahead;                   /* [ranks] ns by which each rank's clock is ahead of ours */
    struct progress_streams *streams; /* NULL: the verbs are the host's */
    struct links *links;              /* NULL: nothing is kept in order */
};

status_t progress_init(struct progress *progress, struct wire *wire,
                       void (*wake)(struct progress *progress));
/* Makes the verbs those of the wire's stream, before the progress thread starts. `staged`: why the
 * library is to be given pinned host memory ("UCX without CUDA"), or NULL if it can touch the GPU's. */
status_t progress_use_streams(struct progress *progress, const char *staged);
void progress_fini(struct progress *progress); /* the progress thread has ended */
void progress_stop(struct progress *progress); /* asks the progress thread to end */

/* ---- the progress thread ---- */

void progress_enter(struct progress *progress); /* first of all */
/* All tickets to be started now, oldest first, linked by `next`; NULL if none. */
struct ticket *progress_take(struct progress *progress, bool *out_stop);
/* `put` of an arrival: when it was put, in the sender's clock. Signals the wakeup. */
void progress_finish(struct ticket *ticket, int64_t put, bool good);
/* True while a stream is to be watched, and a while after something happened: instead of sleeping until
 * it is woken, the thread then calls progress_nap between two looks, short when that was just now. */
bool progress_watches(const struct progress *progress);
void progress_nap(struct progress *progress);
void progress_moved(struct progress *progress); /* the library did something */

/* ---- the verbs of a wire class whose state begins with a struct progress ---- */

status_t progress_post(struct wire *wire, int channel, int slot, int64_t message);
status_t progress_put(struct wire *wire, int channel, int slot, int64_t message, int64_t order,
                      const void *source);
status_t progress_wait(struct wire *wire, int channel, int slot, int64_t message,
                       struct wire_stamp *out_stamp);
status_t progress_sent(struct wire *wire, int channel, int64_t message);
void progress_release(struct wire *wire);

/* True for the ranks that share a channel with this one; [ranks]. */
void progress_peers(const struct wire *wire, bool *out_talks);

/* ---- progress.c and progress_stream.c for each other; wakeup.mutex held unless said otherwise ---- */

/* Spare tickets for the departures of a wire, or for the arrivals, as many as wire_room says (not held). */
status_t progress_make_tickets(struct progress *progress, bool arrivals);
/* A ticket of `channel` to fill in, from the spare ones; NULL when out of memory. */
struct ticket *progress_ticket(struct progress *progress, int channel, int slot, int64_t message);
void progress_enqueue(struct progress *progress, struct ticket *ticket);

void streams_free(struct progress *progress);
void streams_drain(struct progress *progress); /* not held: lets departures leave */
/* Lines up `queue` and returns what its streams have reached. */
struct ticket *streams_due(struct progress *progress, struct ticket *queue);
void streams_finish(struct ticket *ticket, bool good);
status_t streams_post(struct progress *progress, int channel, int slot,
                      int64_t message); /* not held */
status_t streams_put(struct progress *progress, int channel, int slot, int64_t message,
                     int64_t order, const void *source); /* not held */
status_t streams_wait(struct progress *progress, int channel, int slot,
                      int64_t message);                                         /* not held */
status_t streams_sent(struct progress *progress, int channel, int64_t message); /* not held */

#endif
