/* progress_stream.h - what progress_memory.c lays out and progress_stream.c works with: the streams of a progress, see
 * progress.h.
 *
 * Tickets wait in queues, one for each stream that makes them due: queue 0 for the wire's stream, one
 * more for each rank to which a stream copies. Within a queue they come due in their order, so the
 * thread looks at one word a queue. A word holds the number of a message, plus one, of all that is
 * through in a slot or channel; messages count up, so a word is never written twice with one value
 * and nothing but the ticket is ever used again.
 */
#ifndef COMM_PROGRESS_STREAM_H
#define COMM_PROGRESS_STREAM_H

#include "base/arena.h"
#include "base/device.h"
#include "comm/progress/progress.h"

struct ticket_queue { /* (thread) tickets that are not due, oldest first */
    struct ticket *first, **end;
};

struct landing {     /* a slot here, as far as verbs have been enqueued */
    int64_t message; /* -1 = never posted */
    bool awaited;
};

struct stream_channel {
    /* arrivals */
    struct landing *landing; /* [slots] */
    uint32_t *landed;        /* [slots] words */
    /* departures */
    uint32_t *sent, *copied; /* words; copied out of the source, if staged */
    int64_t last, awaited;   /* messages put, and said to be waited for; -1 = none */
    int64_t *staged;         /* [slots] last message through each staging buffer, if any */
    int64_t puts;
    struct ticket *first, **end; /* under way, oldest first */
    unsigned char *buffer;       /* [slots][stride] pinned, if staged */
    size_t stride;
};

struct progress_streams {
    bool staged;
    struct stream_channel *channel; /* [count] */
    struct arena pinned;
    struct landing *landings;          /* of all slots here */
    int64_t *staged_messages;          /* of all staging buffers */
    uint32_t *reached;                 /* word: posts and puts that the wire's stream has passed */
    uint32_t enqueued;                 /* (main) of them */
    void **to;                         /* [ranks] streams that copy sources out, if staged */
    void *in;                          /* stream that copies arrivals in, if staged */
    struct device_event *put, *landed; /* recorded in the wire's stream and in `in` */
    struct ticket_queue *queue;        /* [1 + ranks] */
    int queues;
    int departures; /* under way */
    bool resting;   /* the thread sleeps or is about to: wake it */
    bool watching;  /* (thread) a queue is not empty */
    int64_t moved;  /* (thread) when something happened, ns */
};

static inline struct device *device_of(const struct progress *progress)
{
    return progress->wire->device;
}

static inline void word_set(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

#endif
