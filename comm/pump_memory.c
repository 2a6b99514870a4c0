/* pump_memory.c - the words, staging buffers and streams of a pump whose verbs are a stream's. */
#include <stdlib.h>

#include "base/log.h"
#include "base/trace.h"
#include "comm/pump_stream.h"

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
static void lay_words(struct pump *pump, struct arena *arena)
{
    struct pump_streams *s = pump->streams;
    size_t count = (size_t)pump->wire->count;

    s->reached = arena_alloc(arena, sizeof *s->reached);
    uint32_t *copied = arena_alloc(arena, count * sizeof *copied);
    uint32_t *left = arena_alloc(arena, count * sizeof *left);
    uint32_t *landed = arena_alloc(arena, count_slots(pump->wire, true) * sizeof *landed);
    for (int i = 0; arena->base != NULL && i < pump->wire->count; i++) {
        const struct wire_channel *c = &pump->wire->channel[i];
        s->channel[i].copied = &copied[i];
        s->channel[i].left = &left[i];
        if (c->to == pump->wire->group->rank) {
            s->channel[i].landed = landed;
            landed += c->slots;
        }
    }
}

static void lay_buffers(struct pump *pump, struct arena *arena)
{
    const struct wire *wire = pump->wire;

    for (int i = 0; pump->streams->staged && i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        if (c->to == wire->group->rank || c->from == wire->group->rank) {
            pump->streams->channel[i].stride = stride_of(c);
            pump->streams->channel[i].buffer = arena_alloc(arena, (size_t)c->slots * stride_of(c));
        }
    }
}

static status_t create_pinned(struct pump *pump)
{
    struct arena measure;

    arena_init_measure(&measure);
    lay_words(pump, &measure);
    lay_buffers(pump, &measure);
    status_t status =
        arena_create_on(&pump->streams->pinned, device_of(pump), MEMORY_PINNED, pump->wire->stream,
                        measure.used, "words and staging buffers of a wire");
    if (status == STATUS_NOMEM && pump->streams->staged) {
        log_error("%s: tensors pass through pinned memory of the host, a buffer for each slot; "
                  "parallel.transport=ipc or nccl pins none, data.micro_batch and data.seq_len "
                  "make the tensors smaller",
                  pump->wire->staged);
    }
    TRY(status);
    lay_words(pump, &pump->streams->pinned);
    size_t words = pump->streams->pinned.used;
    lay_buffers(pump, &pump->streams->pinned);
    pump->wire->pinned = pump->streams->pinned.size;
    pump->wire->staging = pump->streams->pinned.used - words;
    return device_stream_sync(device_of(pump), pump->wire->stream);
}

static status_t create_tables(struct pump *pump)
{
    struct pump_streams *s = pump->streams;
    const struct wire *wire = pump->wire;
    size_t ranks = (size_t)wire->group->size;

    s->lanes = 1 + wire->group->size;
    s->lane = calloc((size_t)s->lanes, sizeof *s->lane);
    s->to = calloc(ranks, sizeof *s->to);
    s->channel = calloc((size_t)wire->count, sizeof *s->channel);
    s->landings = calloc(count_slots(wire, true) + 1, sizeof *s->landings);
    s->staged_messages = calloc(count_slots(wire, false) + 1, sizeof *s->staged_messages);
    if (s->lane == NULL || s->to == NULL || s->channel == NULL || s->landings == NULL ||
        s->staged_messages == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for %d channels of a stream", wire->count);
    }
    for (int i = 0; i < s->lanes; i++) {
        s->lane[i].end = &s->lane[i].first;
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

static status_t create_copiers(struct pump *pump)
{
    struct pump_streams *s = pump->streams;
    const struct wire *wire = pump->wire;
    int streams = 2; /* the wire's and `in` */

    for (int i = 0; i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        if (c->from == wire->group->rank && s->to[c->to] == NULL) {
            TRY(device_stream_create(device_of(pump), true, &s->to[c->to]));
            streams++;
        }
    }
    TRY(wire_check_queues(wire->class->name, streams));
    TRY(device_stream_create(device_of(pump), true, &s->in));
    TRY(device_event_create(device_of(pump), false, &s->put));
    return device_event_create(device_of(pump), false, &s->landed);
}

status_t pump_use_streams(struct pump *pump, const char *staged)
{
    pump->streams = calloc(1, sizeof *pump->streams);
    if (pump->streams == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the streams of a wire");
    }
    pump->streams->staged = staged != NULL;
    pump->wire->staged = staged;
    TRY(create_tables(pump));
    TRY(pump_make_tickets(pump, true));
    TRY(create_pinned(pump));
    return staged != NULL ? create_copiers(pump) : STATUS_OK;
}

/* A source that has been copied may be long gone before its message is: it gets a second, and another
 * one whenever one has left. */
void streams_drain(struct pump *pump)
{
    struct group *group = pump->wire->group;
    int last = -1;

    pthread_mutex_lock(group->bell.mutex);
    for (int64_t until = 0; pump->streams->departures > 0 && !group->failed;) {
        if (pump->streams->departures != last) {
            last = pump->streams->departures;
            until = trace_now() + LAST_WAIT;
        }
        if (!bell_sleep(&group->bell, until)) {
            break;
        }
    }
    pthread_mutex_unlock(group->bell.mutex);
}

/* Lets every stream that waits go on. */
static void release(struct pump *pump)
{
    struct pump_streams *s = pump->streams;

    for (int i = 0; i < pump->wire->count; i++) {
        struct stream_channel *channel = &s->channel[i];
        word_set(channel->left, *channel->left + FAR_AHEAD);
        for (int k = 0; channel->landed != NULL && k < pump->wire->channel[i].slots; k++) {
            word_set(&channel->landed[k], channel->landed[k] + FAR_AHEAD);
        }
    }
}

void pump_release(struct wire *wire)
{
    struct pump *pump = wire->state;

    if (pump->streams != NULL) {
        release(pump);
    }
}

/* Streams that still wait are let go. After a loss the library may still write into the buffers, and
 * the process is about to end. */
void streams_free(struct pump *pump)
{
    struct pump_streams *s = pump->streams;

    if (s == NULL) {
        return;
    }
    if (s->pinned.base != NULL && !pump->wire->group->failed) {
        release(pump);
    }
    for (int i = 0; s->to != NULL && i < pump->wire->group->size; i++) {
        device_stream_destroy(device_of(pump), s->to[i]);
    }
    device_stream_destroy(device_of(pump), s->in);
    device_event_destroy(device_of(pump), s->put);
    device_event_destroy(device_of(pump), s->landed);
    if (!pump->wire->group->failed) {
        arena_destroy(&s->pinned);
    }
    free(s->lane);
    free(s->to);
    free(s->channel);
    free(s->landings);
    free(s->staged_messages);
    free(s);
}
