/* progress_memory.c - the words, staging buffers and streams of a progress whose verbs are a stream's. */
#include <stdlib.h>

#include "base/log.h"
#include "base/trace.h"
#include "comm/progress/progress_stream.h"

enum { LAST_WAIT = 1000000000 /* ns, for a message to leave at the end */ };
#define FAR_AHEAD (UINT32_C(1) << 30) /* of all values that a stream waits for */

/* ---- creation ---- */

static size_t stride_of(const struct wire_channel *c)
{
    return (c->bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
}

static size_t count_slots(const struct wire *wire, bool here)
{
    size_t slots = 0;

    for (int i = 0; i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        slots += (here ? c->to : c->from) == wire->group->rank ? (size_t)c->slots : 0;
    }
    return slots;
}

/* Words that streams write and words that the thread writes lie apart: neither takes the other's
 * cache lines away. */
static void lay_words(struct progress *progress, struct arena *arena)
{
    struct progress_streams *s = progress->streams;
    size_t count = (size_t)progress->wire->count;

    s->reached = arena_alloc(arena, sizeof *s->reached);
    uint32_t *copied = arena_alloc(arena, count * sizeof *copied);
    uint32_t *sent = arena_alloc(arena, count * sizeof *sent);
    uint32_t *landed = arena_alloc(arena, count_slots(progress->wire, true) * sizeof *landed);
    for (int i = 0; arena->base != NULL && i < progress->wire->count; i++) {
        const struct wire_channel *c = &progress->wire->channel[i];
        s->channel[i].copied = &copied[i];
        s->channel[i].sent = &sent[i];
        if (c->to == progress->wire->group->rank) {
            s->channel[i].landed = landed;
            landed += c->slots;
        }
    }
}

static void lay_buffers(struct progress *progress, struct arena *arena)
{
    const struct wire *wire = progress->wire;

    for (int i = 0; progress->streams->staged && i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        if (c->to == wire->group->rank || c->from == wire->group->rank) {
            progress->streams->channel[i].stride = stride_of(c);
            progress->streams->channel[i].buffer =
                arena_alloc(arena, (size_t)c->slots * stride_of(c));
        }
    }
}

static status_t create_pinned(struct progress *progress)
{
    struct arena measure;

    arena_init_measure(&measure);
    lay_words(progress, &measure);
    lay_buffers(progress, &measure);
    status_t status = arena_create_on(&progress->streams->pinned, device_of(progress),
                                      MEMORY_PINNED, progress->wire->stream, measure.used,
                                      "words and staging buffers of a wire");
    if (status == STATUS_NOMEM && progress->streams->staged) {
        log_error("%s: tensors pass through pinned memory of the host, a buffer for each slot; "
                  "parallel.transport=ipc or nccl pins none, data.micro_batch and data.seq_len "
                  "make the tensors smaller",
                  progress->wire->staged);
    }
    TRY(status);
    lay_words(progress, &progress->streams->pinned);
    size_t words = progress->streams->pinned.used;
    lay_buffers(progress, &progress->streams->pinned);
    progress->wire->pinned = progress->streams->pinned.size;
    progress->wire->staging = progress->streams->pinned.used - words;
    return device_stream_sync(device_of(progress), progress->wire->stream);
}

static status_t create_tables(struct progress *progress)
{
    struct progress_streams *s = progress->streams;
    const struct wire *wire = progress->wire;
    size_t ranks = (size_t)wire->group->size;

    s->queues = 1 + wire->group->size;
    s->queue = calloc((size_t)s->queues, sizeof *s->queue);
    s->to = calloc(ranks, sizeof *s->to);
    s->channel = calloc((size_t)wire->count, sizeof *s->channel);
    s->landings = calloc(count_slots(wire, true) + 1, sizeof *s->landings);
    s->staged_messages = calloc(count_slots(wire, false) + 1, sizeof *s->staged_messages);
    if (s->queue == NULL || s->to == NULL || s->channel == NULL || s->landings == NULL ||
        s->staged_messages == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for %d channels of a stream", wire->count);
    }
    for (int i = 0; i < s->queues; i++) {
        s->queue[i].end = &s->queue[i].first;
    }
    struct landing *landing = s->landings;
    int64_t *staged = s->staged_messages;
    for (int i = 0; i < wire->count; i++) {
        struct stream_channel *channel = &s->channel[i];
        const struct wire_channel *c = &wire->channel[i];
        channel->last = channel->awaited = -1;
        channel->end = &channel->first;
        channel->landing = landing;
        channel->staged = staged;
        staged += c->from == wire->group->rank ? c->slots : 0;
        for (int k = 0; c->to == wire->group->rank && k < c->slots; k++) {
            *landing++ = (struct landing){.message = -1};
        }
    }
    return STATUS_OK;
}

static status_t create_copiers(struct progress *progress)
{
    struct progress_streams *s = progress->streams;
    const struct wire *wire = progress->wire;
    int streams = 2; /* the wire's and `in` */

    for (int i = 0; i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        if (c->from == wire->group->rank && s->to[c->to] == NULL) {
            TRY(device_stream_create(device_of(progress), true, &s->to[c->to]));
            streams++;
        }
    }
    TRY(wire_check_queues(wire->class->name, streams));
    TRY(device_stream_create(device_of(progress), true, &s->in));
    TRY(device_event_create(device_of(progress), false, &s->put));
    return device_event_create(device_of(progress), false, &s->landed);
}

status_t progress_use_streams(struct progress *progress, const char *staged)
{
    progress->streams = calloc(1, sizeof *progress->streams);
    if (progress->streams == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the streams of a wire");
    }
    progress->streams->staged = staged != NULL;
    progress->wire->staged = staged;
    TRY(create_tables(progress));
    TRY(progress_make_tickets(progress, true));
    TRY(create_pinned(progress));
    return staged != NULL ? create_copiers(progress) : STATUS_OK;
}

/* A source that has been copied may be long gone before its message is: it gets a second, and another
 * one whenever one has left. */
void streams_drain(struct progress *progress)
{
    struct group *group = progress->wire->group;
    int last = -1;

    pthread_mutex_lock(group->shared->wakeup.mutex);
    for (int64_t until = 0; progress->streams->departures > 0 && !group->shared->failed;) {
        if (progress->streams->departures != last) {
            last = progress->streams->departures;
            until = trace_now() + LAST_WAIT;
        }
        if (!wakeup_wait(&group->shared->wakeup, until)) {
            break;
        }
    }
    pthread_mutex_unlock(group->shared->wakeup.mutex);
}

/* Lets every stream that waits go on. */
static void release(struct progress *progress)
{
    struct progress_streams *s = progress->streams;

    for (int i = 0; i < progress->wire->count; i++) {
        struct stream_channel *channel = &s->channel[i];
        word_set(channel->sent, *channel->sent + FAR_AHEAD);
        for (int k = 0; channel->landed != NULL && k < progress->wire->channel[i].slots; k++) {
            word_set(&channel->landed[k], channel->landed[k] + FAR_AHEAD);
        }
    }
}

void progress_release(struct wire *wire)
{
    struct progress *progress = wire->state;

    if (progress->streams != NULL) {
        release(progress);
    }
}

/* Streams that still wait are let go. After a loss the library may still write into the buffers, and
 * the process is about to end. */
void streams_free(struct progress *progress)
{
    struct progress_streams *s = progress->streams;

    if (s == NULL) {
        return;
    }
    if (s->pinned.base != NULL && !progress->wire->group->shared->failed) {
        release(progress);
    }
    for (int i = 0; s->to != NULL && i < progress->wire->group->size; i++) {
        device_stream_destroy(device_of(progress), s->to[i]);
    }
    device_stream_destroy(device_of(progress), s->in);
    device_event_destroy(device_of(progress), s->put);
    device_event_destroy(device_of(progress), s->landed);
    if (!progress->wire->group->shared->failed) {
        arena_destroy(&s->pinned);
    }
    free(s->queue);
    free(s->to);
    free(s->channel);
    free(s->landings);
    free(s->staged_messages);
    free(s);
}
