/* rig.c - see rig.h. */
#include "tests/comm/rig.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/rng.h"
#include "base/trace.h"
#include "comm/transport.h"

enum {
    ALIGNMENT = 256,
    SCRATCH = 8 << 20, /* bytes */
    DAWDLES = 24,      /* a rig */
    FILLS = 8,         /* of the scratch, a time */
    SETTLE_S = 20
};

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* ---- opening ---- */

static void rig_free(struct rig *rig)
{
    device_event_destroy(rig->device, rig->mark);
    device_free(rig->device, MEMORY_PINNED, rig->stage);
    device_free(rig->device, MEMORY_DEVICE, rig->scratch);
    device_free(rig->device, MEMORY_DEVICE, rig->sources);
    device_free(rig->device, MEMORY_DEVICE, rig->slots);
    if (rig->owns_device) {
        device_close(rig->device);
    }
    free(rig->taken);
    free(rig->source);
    free(rig->slot);
    free(rig->channel);
}

void rig_close(struct rig *rig)
{
    wire_destroy(rig->wire);
    rig_free(rig);
}

static status_t alloc(struct rig *rig, enum memory_kind kind, size_t bytes, unsigned char **out)
{
    void *memory = NULL;

    TRY(device_alloc(rig->device, kind, bytes > 0 ? bytes : 1, "buffers of a test", &memory));
    *out = memory;
    return STATUS_OK;
}

/* Everything is one allocation, as in a stage, and nothing is allocated later: that might wait for
 * streams that wait for a peer. */
static status_t alloc_buffers(struct rig *rig, int ahead, int messages)
{
    int rank = group_rank(rig->group);
    size_t slots = 0, sources = 0, stage = 0;

    for (int i = 0; i < rig->count; i++) {
        const struct wire_channel *c = &rig->channel[i];
        bool leaves = c->from == rank, lands = c->to == rank;
        slots += lands ? (size_t)c->slots * aligned(c->bytes) : 0;
        sources += leaves ? (size_t)ahead * aligned(c->bytes) : 0;
        stage += leaves || lands ? (size_t)messages * aligned(c->bytes) : 0;
        rig->takes_most += lands ? messages : 0;
    }
    rig->stage_size = rig->on_gpu ? stage : 0;
    rig->taken = calloc((size_t)rig->takes_most + 1, sizeof *rig->taken);
    EXPECT(rig->taken != NULL, "out of memory");
    TRY(alloc(rig, MEMORY_DEVICE, slots, &rig->slots));
    TRY(alloc(rig, MEMORY_DEVICE, sources, &rig->sources));
    TRY(alloc(rig, MEMORY_DEVICE, rig->on_gpu ? SCRATCH : 0, &rig->scratch));
    TRY(alloc(rig, MEMORY_PINNED, rig->stage_size, &rig->stage));
    return device_event_create(rig->device, false, &rig->mark);
}

static void place_channels(struct rig *rig, int ahead)
{
    unsigned char *slot = rig->slots, *source = rig->sources;
    int rank = group_rank(rig->group);

    for (int i = 0; i < rig->count; i++) {
        struct wire_channel *c = &rig->channel[i];
        c->slot = NULL;
        if (c->to == rank) {
            c->slot = rig->slot + i * SLOTS_MOST;
            for (int k = 0; k < c->slots; k++, slot += aligned(c->bytes)) {
                rig->slot[i * SLOTS_MOST + k] = slot;
            }
        } else if (c->from == rank) {
            rig->source[i] = source;
            source += (size_t)ahead * aligned(c->bytes);
        }
    }
}

struct rig_memory rig_memory;
struct wire_links rig_links;

status_t rig_open(struct rig *rig, struct group *group, const char *transport,
                  const struct wire_channel *channels, int count, int ahead, int messages)
{
    status_t status = STATUS_OK;

    memset(rig, 0, sizeof *rig);
    rig->group = group;
    rig->count = count;
    rig->device = rig_memory.device;
    rig->stream = rig_memory.stream;
    if (rig->device == NULL) {
        TRY(device_open(DEVICE_HOST, 0, &rig->device));
        rig->owns_device = true;
    }
    rig->on_gpu = device_kind(rig->device) != DEVICE_HOST;
    rig->channel = calloc((size_t)count, sizeof *rig->channel);
    rig->slot = calloc((size_t)count * SLOTS_MOST, sizeof *rig->slot);
    rig->source = calloc((size_t)count, sizeof *rig->source);
    if (rig->channel == NULL || rig->slot == NULL || rig->source == NULL) {
        status = FAIL(STATUS_NOMEM, "no memory for a rig");
        goto free_rig;
    }
    memcpy(rig->channel, channels, (size_t)count * sizeof *channels);
    TRY_GOTO(alloc_buffers(rig, ahead, messages), free_rig);
    place_channels(rig, ahead);
    const struct wire_options options = {.transport = transport,
                                         .device = rig_memory.device,
                                         .stream = rig_memory.stream,
                                         .links = rig_links};
    TRY_GOTO(wire_create(group, &options, rig->channel, count, &rig->wire), free_rig);
    rig->streamed = rig->on_gpu && wire_is_streamed(rig->wire);
    return STATUS_OK;

free_rig:
    rig_free(rig);
    return status;
}

/* ---- contents ---- */

static void fill(unsigned char *place, size_t bytes, int channel, int64_t message)
{
    uint32_t state = (uint32_t)(rng_bits(1, (uint64_t)channel, (uint64_t)message) | 1);

    for (size_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        place[i] = (unsigned char)(state >> 24);
    }
}

static bool is_filled(const unsigned char *place, size_t bytes, int channel, int64_t message)
{
    uint32_t state = (uint32_t)(rng_bits(1, (uint64_t)channel, (uint64_t)message) | 1);

    for (size_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        if (place[i] != (unsigned char)(state >> 24)) {
            return false;
        }
    }
    return true;
}

static status_t stage_part(struct rig *rig, size_t bytes, unsigned char **out)
{
    EXPECT(rig->stage_used + aligned(bytes) <= rig->stage_size, "a rig for fewer messages");
    *out = rig->stage + rig->stage_used;
    rig->stage_used += aligned(bytes);
    return STATUS_OK;
}

void *rig_source(const struct rig *rig, int channel, int k)
{
    return (unsigned char *)rig->source[channel] + (size_t)k * aligned(rig->channel[channel].bytes);
}

status_t rig_fill(struct rig *rig, void *place, int channel, int64_t message)
{
    size_t bytes = rig->channel[channel].bytes;
    unsigned char *stage = NULL;

    if (!rig->on_gpu) {
        fill(place, bytes, channel, message);
        return STATUS_OK;
    }
    TRY(stage_part(rig, bytes, &stage));
    fill(stage, bytes, channel, message);
    return device_copy(rig->device, place, stage, bytes, rig->stream);
}

status_t rig_erase(struct rig *rig, void *place, size_t bytes)
{
    return device_fill(rig->device, place, 0, bytes, rig->stream);
}

static status_t compare(const struct rig *rig, const struct rig_taken *taken)
{
    size_t bytes = rig->channel[taken->channel].bytes;

    EXPECT(is_filled(taken->seen, bytes, taken->channel, taken->message),
           "channel %d, message %lld, %zu bytes", taken->channel, (long long)taken->message, bytes);
    return STATUS_OK;
}

status_t rig_take(struct rig *rig, int channel, int slot, int64_t message)
{
    const struct wire_channel *c = &rig->channel[channel];
    struct rig_taken *taken = &rig->taken[rig->takes];
    unsigned char *stage = NULL;

    EXPECT(rig->takes < rig->takes_most, "a rig for fewer messages");
    *taken = (struct rig_taken){channel, message, c->slot[slot]};
    if (!rig->on_gpu) {
        return compare(rig, taken);
    }
    TRY(stage_part(rig, c->bytes, &stage));
    taken->seen = stage;
    rig->takes++;
    return device_copy(rig->device, stage, c->slot[slot], c->bytes, rig->stream);
}

status_t rig_dawdle(struct rig *rig)
{
    if (rig->on_gpu && rig->dawdles++ < DAWDLES) {
        for (int i = 0; i < FILLS; i++) {
            TRY(device_fill(rig->device, rig->scratch, i, SCRATCH, rig->stream));
        }
    }
    return STATUS_OK;
}

status_t rig_settle(struct rig *rig)
{
    int64_t until = trace_now() + SETTLE_S * INT64_C(1000000000);
    bool done = !rig->on_gpu;

    TRY(device_event_record(rig->device, rig->mark, rig->stream));
    while (!done) {
        TRY(device_event_done(rig->device, rig->mark, &done));
        TRY(group_check(rig->group));
        EXPECT(trace_now() < until, "the stream of rank %d still waits after %d s",
               group_rank(rig->group), SETTLE_S);
        nanosleep(&(struct timespec){0, 100000}, NULL);
    }
    return STATUS_OK;
}

status_t rig_check(struct rig *rig)
{
    TRY(rig_settle(rig));
    for (int i = 0; i < rig->takes; i++) {
        TRY(compare(rig, &rig->taken[i]));
    }
    rig->takes = 0;
    rig->stage_used = 0;
    return STATUS_OK;
}
