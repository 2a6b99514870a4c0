/* wire.c - the table of transports and the verbs of a wire: argument checks, then the class. */
#include "comm/comm.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/device.h"
#include "base/hash.h"
#include "comm/progress/link_share.h"
#include "comm/transport.h"

#define WIRE_CLASS_ROW(row) &row##_wire_class,
static const struct wire_class *const wire_classes[] = {TRANSPORTS(WIRE_CLASS_ROW) NULL};

const struct wire_class *wire_class_at(int i)
{
    return wire_classes[i];
}

/* ---- names ---- */

const char *transport_at(int i)
{
    int built = 0;
    for (int k = 0; wire_classes[k] != NULL; k++) {
        if (wire_classes[k]->absent == NULL && built++ == i) {
            return wire_classes[k]->name;
        }
    }
    return NULL;
}

const char *transport_names(void)
{
    static _Thread_local char names[256];
    size_t used = (size_t)snprintf(names, sizeof names, "auto");
    for (int k = 0; wire_classes[k] != NULL; k++) {
        used += (size_t)snprintf(names + used, sizeof names - used, "|%s", wire_classes[k]->name);
        CHECK(used < sizeof names, "the names of all transports take more than %zu bytes",
              sizeof names);
    }
    return names;
}

/* ---- creation ---- */

const struct wire_class *wire_class_find(const char *name)
{
    for (int k = 0; wire_classes[k] != NULL; k++) {
        if (strcmp(wire_classes[k]->name, name) == 0) {
            return wire_classes[k];
        }
    }
    return NULL;
}

bool transport_is_threads(const char *name)
{
    const struct wire_class *class = wire_class_find(name);
    return class != NULL && class->threads;
}

void transport_version(const char *name, char *out, size_t size)
{
    const struct wire_class *class = wire_class_find(name);
    out[0] = '\0';
    if (class && !class->absent && class->version) {
        class->version(out, size);
    }
}

bool transport_needs_gpus(const char *name)
{
    const struct wire_class *class = wire_class_find(name);
    return class != NULL && class->gpus_only;
}

static status_t check_transport(const struct group *group, const char *name)
{
    const struct wire_class *class = wire_class_find(name);

    if (class == NULL) {
        return FAIL(STATUS_INVALID, "unknown transport '%s'; there are %s", name,
                    transport_names());
    }
    if (class->absent != NULL) {
        return FAIL(STATUS_UNSUPPORTED, "transport %s is not in this build: %s", name,
                    class->absent);
    }
    if (class->threads && !group->class->threads) {
        return FAIL(STATUS_INVALID,
                    "transport threads is for ranks of one process, and these are "
                    "%d processes of a launcher; use ucx or mpi",
                    group->size);
    }
    if (!class->threads && group->class->threads) {
        return FAIL(STATUS_INVALID,
                    "transport %s is for processes started by mpirun or srun, and "
                    "these %d ranks are threads of one process; use threads",
                    name, group->size);
    }
    return STATUS_OK;
}

static uint64_t check_channels(const struct group *group, const struct wire_channel *channels,
                               int count)
{
    uint64_t hash = hash_bytes(&count, sizeof count, 0);

    for (int i = 0; i < count; i++) {
        const struct wire_channel *c = &channels[i];
        CHECK(c->from >= 0 && c->from < group->size && c->to >= 0 && c->to < group->size &&
                  c->from != c->to,
              "channel %d goes from rank %d to rank %d of %d", i, c->from, c->to, group->size);
        CHECK(c->bytes > 0 && c->slots > 0 && c->kind >= 0 && c->kind < WIRE_KINDS,
              "channel %d has %zu bytes of kind %d and %d slots", i, c->bytes, c->kind, c->slots);
        uint64_t fields[] = {(uint64_t)c->from, (uint64_t)c->to, c->bytes, (uint64_t)c->slots};
        hash = hash_bytes(fields, sizeof fields, hash);
    }
    return hash;
}

/* Copies the channels; the slot addresses of this rank's arrivals come by place_slots. */
static status_t copy_channels(struct wire *wire, const struct wire_channel *channels)
{
    size_t slots = 0;

    wire->channel = calloc((size_t)wire->count + 1, sizeof *wire->channel);
    wire->counts = calloc((size_t)wire->count + 1, sizeof *wire->counts);
    for (int i = 0; i < wire->count && wire->channel != NULL; i++) {
        wire->channel[i] = channels[i];
        wire->channel[i].slot = NULL;
        slots += channels[i].to == wire->group->rank ? (size_t)channels[i].slots : 0;
    }
    wire->addresses = calloc(slots + 1, sizeof *wire->addresses);
    if (wire->channel == NULL || wire->counts == NULL || wire->addresses == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for %d channels with %zu slots", wire->count, slots);
    }
    return STATUS_OK;
}

static void place_slots(struct wire *wire, const struct wire_channel *channels)
{
    void **addresses = wire->addresses;

    for (int i = 0; i < wire->count; i++) {
        struct wire_channel *c = &wire->channel[i];
        if (c->to == wire->group->rank) {
            CHECK(channels[i].slot != NULL, "channel %d has no slots here", i);
            memcpy(addresses, channels[i].slot, (size_t)c->slots * sizeof *addresses);
            c->slot = addresses;
            addresses += c->slots;
        }
    }
}

static void wire_free(struct wire *wire)
{
    link_share_destroy(wire->share);
    free(wire->channel);
    free(wire->counts);
    free(wire->addresses);
    free(wire);
}

static void release(void *argument)
{
    struct wire *wire = argument;
    wire->class->release(wire);
}

static status_t make(struct wire *wire)
{
    if (wire->class == NULL) {
        return STATUS_OK;
    }
    if (wire->class->links && wire->links.window > 0 && wire->links.shared) {
        TRY(link_share_create(wire->group, &wire->share));
    }
    TRY(wire->class->create(wire));
    wire->made = true;
    if (wire->class->release != NULL) {
        wire->release = (struct release){.run = release, .arg = wire};
        release_enlist(wire->group, &wire->release);
    }
    return STATUS_OK;
}

status_t wire_connect(struct group *group, const struct wire_options *options,
                      const struct wire_channel *channels, int count, struct wire **out)
{
    status_t status;

    CHECK(count >= 0 && (count == 0 || group->size > 1), "%d channels among %d ranks", count,
          group->size);
    if (group->size > 1) {
        TRY(check_transport(group, options->transport));
        TRY(group_same(group, check_channels(group, channels, count), "the list of channels"));
    }
    struct wire *wire = calloc(1, sizeof *wire);
    if (wire == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a wire");
    }
    wire->group = group;
    wire->count = count;
    wire->device = options->device;
    wire->stream = options->stream;
    wire->under_way = options->under_way;
    wire->links = options->links;
    CHECK(wire->links.window <= 0 || wire->links.part > 0, "a window of %lld bytes without parts",
          (long long)wire->links.window);
    TRY_GOTO(copy_channels(wire, channels), free_wire);
    if (count > 0) {
        wire->class = wire_class_find(options->transport);
        wire->streamed = wire_on_gpu(wire) && wire->class->streams;
    }
    TRY_GOTO(count > 0 && wire->class->early ? make(wire) : STATUS_OK, free_wire);
    *out = wire;
    return STATUS_OK;

free_wire:
    wire_free(wire);
    return status;
}

status_t wire_place(struct wire *wire, const struct wire_channel *channels)
{
    CHECK(!wire->placed, "the slots of a wire are told twice");
    place_slots(wire, channels);
    wire->placed = true;
    return wire->made ? STATUS_OK : make(wire);
}

status_t wire_create(struct group *group, const struct wire_options *options,
                     const struct wire_channel *channels, int count, struct wire **out)
{
    struct wire *wire;

    TRY(wire_connect(group, options, channels, count, &wire));
    status_t status = wire_place(wire, channels);
    if (status != STATUS_OK) {
        wire_destroy(wire);
        return status;
    }
    *out = wire;
    return STATUS_OK;
}

bool wire_is_streamed(const struct wire *wire)
{
    return wire_on_gpu(wire) && (wire->class == NULL || wire->streamed);
}

const char *wire_staged(const struct wire *wire)
{
    return wire->staged;
}

size_t wire_pinned_bytes(const struct wire *wire)
{
    return wire->pinned;
}

size_t wire_staging_bytes(const struct wire *wire)
{
    return wire->staging;
}

void wire_time(struct wire *wire, struct timeline *timeline)
{
    wire->timeline = timeline;
}

void wire_time_begin(struct wire *wire, void *stream, const char *name, int channel,
                     int64_t message)
{
    if (wire->timeline != NULL) {
        const struct wire_channel *c = &wire->channel[channel];
        bool sends = c->from == wire->group->rank;
        char title[64];
        snprintf(title, sizeof title, sends ? "to rank %d" : "from rank %d",
                 group_named(wire->group, sends ? c->to : c->from));
        timeline_track(wire->timeline, stream, title, stream == wire->stream);
        timeline_begin(wire->timeline, stream, name, "transfer");
        timeline_note(wire->timeline, "channel %d, message %" PRId64, channel, message);
    }
}

void wire_destroy(struct wire *wire)
{
    if (wire == NULL) {
        return;
    }
    if (wire->made && wire->class != NULL) {
        release_strike(wire->group, &wire->release);
        wire->class->destroy(wire);
    }
    wire_free(wire);
}

/* ---- verbs ---- */

static const struct wire_channel *check_end(const struct wire *wire, int channel, bool sending)
{
    CHECK(channel >= 0 && channel < wire->count, "channel %d of %d", channel, wire->count);
    CHECK(wire->placed, "channel %d of a wire whose slots nobody told", channel);
    const struct wire_channel *c = &wire->channel[channel];
    CHECK((sending ? c->from : c->to) == wire->group->rank, "rank %d is not the %s of channel %d",
          wire->group->rank, sending ? "sender" : "receiver", channel);
    return c;
}

static void check_slot(const struct wire_channel *c, int channel, int slot)
{
    CHECK(slot >= 0 && slot < c->slots, "slot %d of channel %d, which has %d", slot, channel,
          c->slots);
}

/* A transport that knows no streams finds everything written and read that was enqueued. */
static status_t let_run_dry(struct wire *wire)
{
    TRY(group_check(wire->group));
    return wire->device != NULL && !wire->streamed ? device_stream_sync(wire->device, wire->stream)
                                                   : STATUS_OK;
}

status_t wire_expect(struct wire *wire, int from, const int *channel, int count)
{
    CHECK(from >= 0 && from < wire->group->size, "puts of rank %d of %d", from, wire->group->size);
    return wire->class != NULL && wire->class->expect != NULL
               ? wire->class->expect(wire, from, channel, count)
               : STATUS_OK;
}

status_t wire_post(struct wire *wire, int channel, int slot, int64_t message)
{
    check_slot(check_end(wire, channel, false), channel, slot);
    TRY(let_run_dry(wire));
    return wire->class->post(wire, channel, slot, message);
}

status_t wire_put(struct wire *wire, int channel, int slot, int64_t message, int64_t order,
                  const void *source)
{
    check_slot(check_end(wire, channel, true), channel, slot);
    TRY(let_run_dry(wire));
    return wire->class->put(wire, channel, slot, message, order, source);
}

status_t wire_wait(struct wire *wire, int channel, int slot, int64_t message,
                   struct wire_stamp *out_stamp)
{
    struct wire_stamp stamp = {0, 0};

    check_slot(check_end(wire, channel, false), channel, slot);
    TRY(wire->class->wait(wire, channel, slot, message, &stamp));
    if (out_stamp != NULL) {
        *out_stamp = stamp;
    }
    return STATUS_OK;
}

status_t wire_sent(struct wire *wire, int channel, int64_t message)
{
    check_end(wire, channel, true);
    return wire->class->sent(wire, channel, message);
}

/* ---- several at once ---- */

static void check_ends(const struct wire *wire, const struct wire_message *messages, int count)
{
    for (int i = 0; i < count; i++) {
        check_slot(check_end(wire, messages[i].channel, false), messages[i].channel,
                   messages[i].slot);
    }
}

status_t wire_post_all(struct wire *wire, const struct wire_message *messages, int count)
{
    check_ends(wire, messages, count);
    TRY(let_run_dry(wire));
    if (wire->class->post_all != NULL) {
        return wire->class->post_all(wire, messages, count);
    }
    for (int i = 0; i < count; i++) {
        const struct wire_message *m = &messages[i];
        TRY(wire->class->post(wire, m->channel, m->slot, m->message));
    }
    return STATUS_OK;
}

status_t wire_wait_all(struct wire *wire, const struct wire_message *messages, int count)
{
    struct wire_stamp stamp;

    check_ends(wire, messages, count);
    if (wire->class->wait_all != NULL) {
        return wire->class->wait_all(wire, messages, count);
    }
    for (int i = 0; i < count; i++) {
        const struct wire_message *m = &messages[i];
        TRY(wire->class->wait(wire, m->channel, m->slot, m->message, &stamp));
    }
    return STATUS_OK;
}

status_t wire_sent_all(struct wire *wire, const struct wire_message *messages, int count)
{
    for (int i = 0; i < count; i++) {
        check_end(wire, messages[i].channel, true);
    }
    if (wire->class->sent_all != NULL) {
        return wire->class->sent_all(wire, messages, count);
    }
    for (int i = 0; i < count; i++) {
        TRY(wire->class->sent(wire, messages[i].channel, messages[i].message));
    }
    return STATUS_OK;
}

void wire_counts(const struct wire *wire, int channel, struct wire_count *out)
{
    CHECK(channel >= 0 && channel < wire->count, "channel %d of %d", channel, wire->count);
    pthread_mutex_lock(wire->group->shared->wakeup.mutex);
    *out = wire->counts[channel];
    pthread_mutex_unlock(wire->group->shared->wakeup.mutex);
}

void wire_arrived(const struct wire *wire, int64_t out[WIRE_KINDS])
{
    for (int i = 0; i < WIRE_KINDS; i++) {
        out[i] = atomic_load_explicit(&wire->arrived[i], memory_order_relaxed);
    }
}

status_t wire_give_up(struct wire *wire, int channel, int64_t message, const char *verb)
{
    const struct wire_channel *c = &wire->channel[channel];
    struct group *group = wire->group;
    char doing[DOING_SIZE];

    if (group->shared->failed) {
        return group_lost(group);
    }
    return FAIL(STATUS_TIMEOUT,
                "message %" PRId64 " of channel %d (rank %d to rank %d, %zu bytes) "
                "has not %s within %g s, rank %d was in %s; see what rank %d did last, or raise "
                "health.deadline_s",
                message, channel, group_named(group, c->from), group_named(group, c->to), c->bytes,
                verb, group->options.deadline_s, group_named(group, group->rank),
                group_doing(group, doing, sizeof doing),
                group_named(group, group->rank == c->from ? c->to : c->from));
}
