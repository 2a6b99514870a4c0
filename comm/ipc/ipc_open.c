/* ipc_open.c - who shares what with whom: creation of a wire of the "ipc" transport.
 *
 * Each rank makes a flags for what arrives at it and exports its slots; all exchange the cards of their
 * flags and the handles of their slots; each opens the flags and imports the slots of those it sends
 * to. Ranks agree after their own part and after the others', so that all succeed or all fail.
 */
#include <stdlib.h>

#include "base/log.h"
#include "comm/ipc/ipc.h"

enum { QUEUES_DEFAULT = 8 }; /* of a GPU, unless CUDA_DEVICE_MAX_CONNECTIONS says otherwise */

static int rank_of_host(const struct group *group, int rank)
{
    return group->leader != NULL ? group->leader[rank] : 0;
}

/* What every rank sees alike, so that all refuse alike. */
static status_t check_layout(const struct wire *wire)
{
    const struct group *group = wire->group;

    if (wire->device == NULL || device_kind(wire->device) == DEVICE_HOST) {
        return FAIL(STATUS_UNSUPPORTED,
                    "transport ipc carries memory of GPUs; with device=cpu use ucx or mpi");
    }
    for (int i = 0; i < wire->count; i++) {
        int from = wire->channel[i].from, to = wire->channel[i].to;
        if (rank_of_host(group, from) != rank_of_host(group, to)) {
            return FAIL(STATUS_UNSUPPORTED,
                        "transport ipc is for the GPUs of one host, and rank %d and rank %d, which "
                        "talk, are on two; use ucx or nccl",
                        group_named(group, from), group_named(group, to));
        }
    }
    return STATUS_OK;
}

status_t wire_check_queues(const char *transport, int streams)
{
    const char *text = getenv("CUDA_DEVICE_MAX_CONNECTIONS");
    int queues = text != NULL ? atoi(text) : QUEUES_DEFAULT;

    if (streams > queues) {
        return FAIL(STATUS_UNSUPPORTED,
                    "transport %s has %d streams here that may wait, but the GPU has %d queues for "
                    "them; set CUDA_DEVICE_MAX_CONNECTIONS=32",
                    transport, streams, queues);
    }
    return STATUS_OK;
}

/* Two lines a slot behind one for each rank. */
static size_t ipc_flags_lines(const struct wire *wire, int rank)
{
    size_t lines = (size_t)wire->group->size;

    for (int i = 0; i < wire->count; i++) {
        lines += wire->channel[i].to == rank ? 2 * (size_t)wire->channel[i].slots : 0;
    }
    return lines;
}

static void place_words(struct ipc_wire *self, const struct ipc_flags *flags, int rank)
{
    const struct wire *wire = self->wire;
    size_t line = (size_t)wire->group->size;

    for (int i = 0; i < wire->count; i++) {
        struct ipc_slot *slots = self->channel[i].slot;
        for (int k = 0; wire->channel[i].to == rank && k < wire->channel[i].slots; k++, line += 2) {
            if (slots != NULL) {
                slots[k].arrival = ipc_flags_word(flags, line);
                slots[k].credit = ipc_flags_word(flags, line + 1);
                slots[k].uses = IPC_FIRST;
            }
        }
    }
}

/* Before anyone else opens the flags. */
static void set_words(const struct ipc_wire *self)
{
    const struct wire *wire = self->wire;

    for (int i = 0; i < wire->count; i++) {
        const struct ipc_slot *slots = self->channel[i].slot;
        bool lands = wire->channel[i].to == wire->group->rank;
        for (int k = 0; lands && k < wire->channel[i].slots; k++) {
            *slots[k].arrival = *slots[k].credit = IPC_FIRST;
        }
    }
}

static status_t open_stream(struct ipc_wire *self, int to)
{
    struct ipc_peer *peer = &self->peer[to];

    if (peer->stream != NULL) {
        return STATUS_OK;
    }
    TRY(device_stream_create(self->wire->device, true, &peer->stream));
    return device_event_create(self->wire->device, false, &peer->ready);
}

static status_t prepare_channel(struct ipc_wire *self, int channel, int *streams)
{
    const struct wire_channel *c = &self->wire->channel[channel];
    struct ipc_channel *ours = &self->channel[channel];
    int rank = self->wire->group->rank;

    if (c->from != rank && c->to != rank) {
        return STATUS_OK;
    }
    ours->slot = calloc((size_t)c->slots, sizeof *ours->slot);
    if (c->from == rank) {
        ours->room = wire_room(self->wire, channel);
        ours->put = malloc((size_t)ours->room * sizeof *ours->put);
    } else {
        ours->turns = wire_room(self->wire, channel);
        ours->turn = malloc((size_t)ours->turns * sizeof *ours->turn);
    }
    if (ours->slot == NULL || (c->from == rank ? (void *)ours->put : (void *)ours->turn) == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for %d slots of channel %d", c->slots, channel);
    }
    if (c->to == rank) {
        self->peer[c->from].sends_to_us = true;
        return STATUS_OK;
    }
    *streams += self->peer[c->to].stream == NULL;
    return open_stream(self, c->to);
}

/* This rank's own part: channels, put streams, flags. */
static status_t prepare(struct ipc_wire *self)
{
    struct wire *wire = self->wire;
    int streams = 0;

    self->peer = calloc((size_t)wire->group->size, sizeof *self->peer);
    self->channel = calloc((size_t)wire->count, sizeof *self->channel);
    self->word = calloc(ipc_flags_lines(wire, wire->group->rank) + (size_t)wire->group->size,
                        sizeof *self->word);
    if (self->peer == NULL || self->channel == NULL || self->word == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for %d channels", wire->count);
    }
    for (int i = 0; i < wire->group->size; i++) {
        self->peer[i].in = self->peer[i].out = (struct ipc_line){.seen = -1, .wanted = -1};
    }
    TRY(device_event_create(wire->device, false, &self->mark));
    for (int i = 0; i < wire->count; i++) {
        TRY(prepare_channel(self, i, &streams));
    }
    TRY(wire_check_queues("ipc", streams + 1));
    TRY(ipc_flags_create(wire->device, ipc_flags_lines(wire, wire->group->rank), &self->own));
    place_words(self, &self->own, wire->group->rank);
    set_words(self);
    return STATUS_OK;
}

/* Handles of this rank's slots, channel by channel. */
static status_t export_slots(struct ipc_wire *self, struct device_handle *out)
{
    const struct wire *wire = self->wire;

    for (int i = 0; i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        for (int k = 0; c->to == wire->group->rank && k < c->slots; k++) {
            TRY(device_export(wire->device, c->slot[k], out++));
        }
    }
    return STATUS_OK;
}

/* `handles`: those of one rank, to which this one sends. */
static status_t import_slots(struct ipc_wire *self, int rank, const struct device_handle *handles)
{
    const struct wire *wire = self->wire;

    for (int i = 0; i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        for (int k = 0; c->to == rank && k < c->slots; k++, handles++) {
            if (c->from == wire->group->rank) {
                struct ipc_slot *slot = &self->channel[i].slot[k];
                slot->handle = *handles;
                TRY(device_import(wire->device, handles, &slot->there));
            }
        }
    }
    return STATUS_OK;
}

struct introduction {                 /* what the ranks tell each other */
    struct ipc_flags_card *card;      /* [ranks] */
    size_t *counts;                   /* [ranks] bytes of handles */
    struct device_handle *mine, *all; /* of this rank's slots; of all ranks', one after the other */
};

static void introduction_free(struct introduction *in)
{
    free(in->card);
    free(in->counts);
    free(in->mine);
    free(in->all);
}

static status_t introduction_prepare(struct ipc_wire *self, struct introduction *out)
{
    const struct wire *wire = self->wire;
    size_t size = (size_t)wire->group->size, handles = 0, mine = 0;

    out->card = calloc(size, sizeof *out->card);
    out->counts = calloc(size, sizeof *out->counts);
    for (int i = 0; i < wire->count && out->counts != NULL; i++) {
        size_t slots = (size_t)wire->channel[i].slots;
        out->counts[wire->channel[i].to] += slots * sizeof *out->all;
        mine += wire->channel[i].to == wire->group->rank ? slots : 0;
        handles += slots;
    }
    out->mine = calloc(mine + 1, sizeof *out->mine);
    out->all = calloc(handles, sizeof *out->all);
    if (out->card == NULL || out->counts == NULL || out->mine == NULL || out->all == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the handles of %zu slots", handles);
    }
    return export_slots(self, out->mine);
}

static status_t connect_peers(struct ipc_wire *self, const struct introduction *in)
{
    struct wire *wire = self->wire;
    const struct device_handle *handles = in->all;

    for (int i = 0; i < wire->group->size; handles += in->counts[i] / sizeof *handles, i++) {
        struct ipc_peer *peer = &self->peer[i];
        if (peer->stream != NULL) {
            TRY(ipc_flags_open(wire->device, &in->card[i], i, ipc_flags_lines(wire, i),
                               &peer->flags));
            place_words(self, &peer->flags, i);
            TRY(import_slots(self, i, handles));
        }
    }
    return STATUS_OK;
}

static status_t introduce(struct ipc_wire *self)
{
    struct group *group = self->wire->group;
    struct introduction in = {0};
    struct ipc_flags_card card;
    status_t status = prepare(self);

    if (status == STATUS_OK) {
        status = introduction_prepare(self, &in);
    }
    TRY_GOTO(group_agree(group, status), free_introduction);
    ipc_flags_card(&self->own, &card);
    TRY_GOTO(group_allgather(group, &card, sizeof card, in.card), free_introduction);
    TRY_GOTO(group_allgatherv(group, in.mine, in.counts, in.all), free_introduction);
    status = group_agree(group, connect_peers(self, &in));
    ipc_flags_seal(&self->own);

free_introduction:
    introduction_free(&in);
    return status;
}

status_t ipc_create(struct wire *wire)
{
    TRY(check_layout(wire));
    struct ipc_wire *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a wire over CUDA IPC");
    }
    self->wire = wire;
    wire->state = self;
    status_t status = introduce(self);
    if (status != STATUS_OK) {
        ipc_free(self, false);
    } else {
        wire->pinned = self->own.bytes;
    }
    return status;
}
