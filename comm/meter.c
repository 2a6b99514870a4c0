/* meter.c - messages between neighbours, for their speed.
 *
 * Channel 2 * size of a pair goes up, 2 * size + 1 down; all sizes share slots and source, for only one
 * size is under way at a time.
 */
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/device.h"
#include "base/log.h"
#include "base/trace.h"
#include "comm/transport.h"

struct meter {
    struct group *group;
    struct meter_options options;
    size_t *bytes; /* [sizes] */
    size_t largest;
    struct wire *wire;
    int partner;          /* -1 = none */
    int pair;             /* this rank's, from 0 */
    bool low;             /* the first of its pair */
    void *source, **slot; /* of memory */
    void *memory;
    int64_t *message;          /* [2 * sizes] of my pair's channels: the next number */
    unsigned char *host;       /* [largest] for what is looked at */
    struct device_event *done; /* of meter_settle */
};

/* ---- creation ---- */

/* The rank at a place of the order. */
static int rank_at(const struct meter_options *options, int place)
{
    return options->order ? options->order[place] : place;
}

/* Place of this rank in the order. */
static int own_place(const struct group *group, const struct meter_options *options)
{
    int place = 0;
    while (rank_at(options, place) != group->rank) {
        place++;
    }
    return place;
}

static int partner_of(const struct group *group, const struct meter_options *options)
{
    int own = own_place(group, options), offset = own - options->first;
    int partner = offset % 2 == 0 ? own + 1 : own - 1;
    return offset >= 0 && partner < group->size ? rank_at(options, partner) : -1;
}

static int pairs_of(const struct meter *meter)
{
    return (meter->group->size - meter->options.first) / 2;
}

/* Rank's own bytes, none of which is zero or equal to those of its partner. */
static int pattern_of(int rank)
{
    return 1 + rank % 2 + 2 * (rank / 2 % 100);
}

static status_t create_memory(struct meter *meter)
{
    struct device *device = meter->options.device;
    size_t slots = (size_t)meter->options.slots;
    meter->slot = calloc(slots, sizeof *meter->slot);
    meter->message = calloc(2 * (size_t)meter->options.sizes, sizeof *meter->message);
    meter->host = malloc(meter->largest);
    if (!meter->slot || !meter->message || !meter->host) {
        return FAIL(STATUS_NOMEM, "no memory to measure messages of %zu bytes", meter->largest);
    }
    TRY(device_event_create(device, false, &meter->done));
    TRY(device_alloc(device, MEMORY_DEVICE, (slots + 1) * meter->largest, "messages to measure",
                     &meter->memory));
    for (size_t i = 0; i < slots; i++) {
        meter->slot[i] = (char *)meter->memory + i * meter->largest;
    }
    meter->source = (char *)meter->memory + slots * meter->largest;
    TRY(device_fill(device, meter->memory, 0, slots * meter->largest, meter->options.stream));
    TRY(device_fill(device, meter->source, pattern_of(meter->group->rank), meter->largest,
                    meter->options.stream));
    return device_stream_sync(device, meter->options.stream);
}

/* The wire is made for the meter's device and stream, whatever the others are made for. */
static status_t create_wire(struct meter *meter, const char *transport)
{
    struct group *group = meter->group;
    int sizes = meter->options.sizes, pairs = pairs_of(meter);
    struct wire_channel *channel = calloc((size_t)(2 * sizes * pairs) + 1, sizeof *channel);
    status_t status = group_agree(
        group, channel ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for %d channels", 2 * pairs));
    if (status != STATUS_OK) {
        free(channel);
        return status;
    }
    for (int c = 0; c < 2 * sizes * pairs; c++) {
        int low = meter->options.first + 2 * (c / (2 * sizes));
        int to = rank_at(&meter->options, low + 1 - c % 2);
        channel[c] = (struct wire_channel){.from = rank_at(&meter->options, low + c % 2),
                                           .to = to,
                                           .bytes = meter->bytes[c / 2 % sizes],
                                           .slots = meter->options.slots,
                                           .slot = to == group->rank ? meter->slot : NULL};
    }
    const struct wire_options options = {
        .transport = transport, .device = meter->options.device, .stream = meter->options.stream};
    status = wire_create(group, &options, channel, 2 * sizes * pairs, &meter->wire);
    free(channel);
    return status;
}

status_t meter_create(struct group *group, const char *transport,
                      const struct meter_options *options, struct meter **out)
{
    struct meter *meter = calloc(1, sizeof *meter);
    size_t *bytes = calloc((size_t)options->sizes, sizeof *bytes);
    status_t status = STATUS_OK;
    if (!meter || !bytes) {
        status = FAIL(STATUS_NOMEM, "no memory for a meter");
    } else {
        meter->group = group;
        meter->options = *options;
        meter->options.bytes = meter->bytes = bytes;
        for (int i = 0; i < options->sizes; i++) {
            bytes[i] = options->bytes[i];
            meter->largest = bytes[i] > meter->largest ? bytes[i] : meter->largest;
        }
        meter->pair = (own_place(group, options) - options->first) / 2;
        meter->low = (own_place(group, options) - options->first) % 2 == 0;
        meter->partner = partner_of(group, options);
        status = create_memory(meter);
    }
    status = group_agree(group, status);
    if (status == STATUS_OK) {
        status = group_agree(group, create_wire(meter, transport));
    }
    if (status != STATUS_OK) {
        meter_destroy(meter);
        return status;
    }
    *out = meter;
    return STATUS_OK;
}

struct refusal {
    int status;
    char words[REASON_SIZE]; /* the first line */
};

/* What the first rank said that failed by itself, not for another. */
static const struct refusal *first_refusal(const struct refusal *all, int size)
{
    for (int i = 0; i < size; i++) {
        if (all[i].status != STATUS_OK && all[i].status != STATUS_PEER) {
            return &all[i];
        }
    }
    return NULL;
}

/* A wait that has failed left messages behind, a lost rank does not come back, and our own mistakes are
 * not to be passed over. */
static bool is_final(const struct refusal *refusal)
{
    return !refusal || refusal->status == STATUS_TIMEOUT || refusal->status == STATUS_INTERNAL;
}

status_t meter_try(struct group *group, const char *transport, const struct meter_options *options,
                   struct meter **out, char *why, size_t size)
{
    struct refusal mine = {0}, all[group->size];
    struct meter *meter = NULL;
    char words[2048];
    log_capture(words, sizeof words);
    status_t status = meter_create(group, transport, options, &meter);
    log_capture(NULL, 0);
    if (group->shared->failed) {
        log_error("%s", words);
        return group_lost(group);
    }
    *out = meter;
    mine.status = (int)status;
    snprintf(mine.words, sizeof mine.words, "%.*s", (int)strcspn(words, "\n"), words);
    TRY(group_allgather(group, &mine, sizeof mine, all));
    if (status == STATUS_OK) { /* on all ranks: they agreed */
        return STATUS_OK;
    }
    const struct refusal *first = first_refusal(all, group->size);
    if (is_final(first)) {
        log_error("%s", words);
        return status;
    }
    snprintf(why, size, "%s", first->words);
    return STATUS_OK;
}

void meter_destroy(struct meter *meter)
{
    if (!meter) {
        return;
    }
    wire_destroy(meter->wire);
    device_event_destroy(meter->options.device, meter->done);
    device_free(meter->options.device, MEMORY_DEVICE, meter->memory);
    free(meter->slot);
    free(meter->message);
    free(meter->host);
    free(meter->bytes);
    free(meter);
}

int meter_partner(const struct meter *meter)
{
    return meter->partner;
}

bool meter_is_streamed(const struct meter *meter)
{
    return wire_is_streamed(meter->wire);
}

const char *meter_staged(const struct meter *meter)
{
    return wire_staged(meter->wire);
}

/* ---- messages ---- */

/* One direction of a size, as this rank uses it. */
struct direction {
    struct meter *meter;
    int channel;
    int64_t base; /* number of the first message of this run */
};

static struct direction direction_of(struct meter *meter, int size, bool up, int count)
{
    int mine = 2 * size + (up ? 0 : 1);
    struct direction direction = {meter, 2 * meter->options.sizes * meter->pair + mine,
                                  meter->message[mine]};
    meter->message[mine] += count;
    return direction;
}

static int slot_of(const struct direction *direction, int message)
{
    return (int)((direction->base + message) % direction->meter->options.slots);
}

static status_t post(const struct direction *direction, int message)
{
    return wire_post(direction->meter->wire, direction->channel, slot_of(direction, message),
                     direction->base + message);
}

static status_t wait(const struct direction *direction, int message)
{
    return wire_wait(direction->meter->wire, direction->channel, slot_of(direction, message),
                     direction->base + message, NULL);
}

static status_t put(const struct direction *direction, int message, const struct meter_pace *pace)
{
    TRY(pace ? pace->before(pace->arg, message) : STATUS_OK);
    return wire_put(direction->meter->wire, direction->channel, slot_of(direction, message),
                    direction->base + message, 0, direction->meter->source);
}

static status_t sent(const struct direction *direction, int message)
{
    return wire_sent(direction->meter->wire, direction->channel, direction->base + message);
}

/* Either direction may be NULL. A message is waited for, and its source, when the slots are full. */
static status_t run_stream(const struct direction *in, const struct direction *out, int count,
                           int slots, const struct meter_pace *pace)
{
    for (int m = 0; in && m < slots && m < count; m++) {
        TRY(post(in, m));
    }
    for (int m = 0; m < count + slots; m++) {
        int done = m - slots;
        if (in && done >= 0) {
            TRY(wait(in, done));
        }
        if (in && done >= 0 && m < count) { /* before the put: the partner's may wait for it */
            TRY(post(in, m));
        }
        if (out && done >= 0) {
            TRY(sent(out, done));
        }
        if (out && m < count) {
            TRY(put(out, m, pace));
        }
    }
    return STATUS_OK;
}

static status_t run_round(const struct direction *in, const struct direction *out, int count,
                          bool first)
{
    for (int m = 0; m < count; m++) {
        TRY(post(in, m));
        if (first) {
            TRY(put(out, m, NULL));
            TRY(wait(in, m));
        } else {
            TRY(wait(in, m));
            TRY(put(out, m, NULL));
        }
        TRY(sent(out, m));
    }
    return STATUS_OK;
}

status_t meter_run(struct meter *meter, enum meter_way way, int size, int count,
                   const struct meter_pace *pace)
{
    bool low = meter->low;
    int slots = meter->options.slots;
    struct direction out = direction_of(meter, size, low, low || way != METER_FORTH ? count : 0);
    struct direction in = direction_of(meter, size, !low, !low || way != METER_FORTH ? count : 0);
    bool receives = !low || way != METER_FORTH;
    if (receives) {
        TRY(wire_expect(meter->wire, meter->partner, &in.channel, 1));
    }
    if (way == METER_ROUND) {
        return run_round(&in, &out, count, low);
    }
    return run_stream(receives ? &in : NULL, low || way == METER_BOTH ? &out : NULL, count, slots,
                      pace);
}

/* Asks again and again: sleeping would be measured. A stream that still waits is let go, lest closing
 * the device waits for it. */
status_t meter_settle(struct meter *meter)
{
    struct group *group = meter->group;
    struct device *device = meter->options.device;
    int64_t until = group_deadline(group);
    bool done = false;
    TRY(device_event_record(device, meter->done, meter->options.stream));
    for (;;) {
        TRY(device_event_done(device, meter->done, &done));
        TRY(group_check(group));
        if (done) {
            return STATUS_OK;
        }
        if (trace_now() > until) {
            break;
        }
        sched_yield();
    }
    group_give_up(group, "messages of a measurement have not arrived");
    return FAIL(STATUS_TIMEOUT,
                "transport %s: messages between ranks %d and %d have not arrived within %g s; "
                "parallel.transport= chooses another one",
                meter->wire->class->name, group->rank, meter->partner, group->options.deadline_s);
}

static status_t run_and_settle(struct meter *meter, enum meter_way way, int size, int count)
{
    if (meter->partner < 0) {
        return STATUS_OK;
    }
    TRY(meter_run(meter, way, size, count, NULL));
    return meter_settle(meter);
}

/* Every rank's time since the barrier. */
status_t meter_time(struct meter *meter, enum meter_way way, int size, int count,
                    double *out_seconds)
{
    struct group *group = meter->group;
    double mine, all[group->size], slowest = 0;
    TRY(group_barrier(group));
    int64_t start = trace_now();
    TRY(run_and_settle(meter, way, size, count));
    mine = (double)(trace_now() - start) * 1e-9;
    TRY(group_allgather(group, &mine, sizeof mine, all));
    for (int i = 0; i < group->size; i++) {
        slowest = all[i] > slowest ? all[i] : slowest;
    }
    *out_seconds = slowest;
    return STATUS_OK;
}

static status_t check_slots(struct meter *meter, size_t bytes)
{
    struct device *device = meter->options.device;
    const unsigned char wanted = (unsigned char)pattern_of(meter->partner);
    for (int slot = 0; slot < meter->options.slots; slot++) {
        TRY(device_copy(device, meter->host, meter->slot[slot], bytes, meter->options.stream));
        TRY(device_stream_sync(device, meter->options.stream));
        for (size_t i = 0; i < bytes; i++) {
            if (meter->host[i] != wanted) {
                return FAIL(
                    STATUS_INTERNAL, "transport %s: byte %zu of %zu from rank %d is %d and not %d",
                    meter->wire->class->name, i, bytes, meter->partner, meter->host[i], wanted);
            }
        }
    }
    return STATUS_OK;
}

status_t meter_verify(struct meter *meter, int size)
{
    struct device *device = meter->options.device;
    double ignored;
    status_t status =
        device_fill(device, meter->memory, 0, (size_t)meter->options.slots * meter->largest,
                    meter->options.stream);
    if (status == STATUS_OK) {
        status = device_stream_sync(device, meter->options.stream);
    }
    TRY(group_agree(meter->group, status));
    TRY(meter_time(meter, METER_BOTH, size, meter->options.slots, &ignored));
    return group_agree(meter->group,
                       meter->partner >= 0 ? check_slots(meter, meter->bytes[size]) : STATUS_OK);
}
