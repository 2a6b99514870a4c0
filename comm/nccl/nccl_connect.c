/* nccl_connect.c - pairs and their communicators: made, connected by a first message, and ended.
 *
 * NCCL blocks without a limit while it connects and while it ends, so a thread of its own does both,
 * and the rank's main thread sleeps until it is done, a peer is lost, or time is up. What
 * such a thread still holds then is left to it: the process ends soon.
 */
#include "comm/nccl/nccl_internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/trace.h"

enum {
    CTAS = 2,           /* most a message may take from the GEMMs; NCCL_MAX_CTAS overrides it */
    QUEUES_DEFAULT = 8, /* of a GPU, unless CUDA_DEVICE_MAX_CONNECTIONS says otherwise */
    TOKEN_BYTES = 256,
    NAP = 200000,     /* ns */
    GLANCE = 5000000, /* ns; at what no longer comes */
    CLOSE_S = 3       /* for the last messages, then for NCCL's own ending */
};

/* ---- pairs ---- */

/* The pairs of ranks that talk, in the order in which all ranks connect them: by distance, so that many
 * can be under way at once. They follow from the channels, which are the same everywhere. */
struct pair_walk {
    const bool *talks; /* [size * size] at from * size + to */
    int size, distance, from;
};

static void fill_talks(const struct wire *wire, bool *talks)
{
    for (int i = 0; i < wire->count; i++) {
        talks[wire->channel[i].from * wire->group->size + wire->channel[i].to] = true;
    }
}

static bool next_pair(struct pair_walk *walk, int *out_from, int *out_to)
{
    for (; walk->distance < walk->size; walk->distance++, walk->from = 0) {
        while (walk->from < walk->size) {
            int from = walk->from++, to = (from + walk->distance) % walk->size;
            if (walk->talks[from * walk->size + to]) {
                *out_from = from;
                *out_to = to;
                return true;
            }
        }
    }
    return false;
}

static struct nccl_pair *find_pair(struct nccl_wire *self, int from, int to)
{
    for (int i = 0; i < self->pairs; i++) {
        if (self->pair[i].from == from && self->pair[i].to == to) {
            return &self->pair[i];
        }
    }
    return NULL;
}

/* ---- who takes part ---- */

struct member {
    unsigned char card[16];
    char name[64], bus[24];
    int release;
};

static status_t compare_members(const struct group *group, const struct member *all,
                                const bool *talks)
{
    int size = group->size;

    for (int a = 0; a < size; a++) {
        for (int b = a + 1; b < size; b++) {
            if (talks != NULL && !talks[a * size + b] && !talks[b * size + a]) {
                continue;
            }
            if (memcmp(all[a].card, all[b].card, sizeof all[a].card) == 0) {
                return FAIL(
                    STATUS_UNSUPPORTED,
                    "ranks %d and %d are both on one GPU (%s, %s), which NCCL refuses; start "
                    "one rank a GPU, or use parallel.transport ipc or ucx",
                    group_named(group, a), group_named(group, b), all[a].name, all[a].bus);
            }
            if (all[a].release != all[b].release) {
                return FAIL(STATUS_UNSUPPORTED,
                            "rank %d has NCCL release %d and rank %d has %d; let all load the same "
                            "(LD_LIBRARY_PATH)",
                            group_named(group, a), all[a].release, group_named(group, b),
                            all[b].release);
            }
        }
    }
    return STATUS_OK;
}

status_t nccl_check_device(const struct device *device)
{
    if (device == NULL || device_kind(device) != DEVICE_CUDA) {
        return FAIL(STATUS_UNSUPPORTED,
                    "transport nccl moves memory of GPUs, and this rank computes "
                    "on the host; use ucx or mpi");
    }
    return nccl_load();
}

status_t nccl_check_members(struct group *group, const struct device *device, const bool *talks)
{
    struct member own = {.release = 0};
    struct device_info info;

    TRY(group_agree(group, nccl_check_device(device)));
    device_info(device, &info);
    memcpy(own.card, info.card, sizeof own.card);
    memcpy(own.bus, info.bus, sizeof own.bus);
    memcpy(own.name, info.name, sizeof own.name - 1);
    own.release = nccl.release;
    struct member *all = calloc((size_t)group->size, sizeof *all);
    if (all == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to compare the GPUs of %d ranks", group->size);
    }
    status_t status = group_allgather(group, &own, sizeof own, all);
    if (status == STATUS_OK) {
        status = compare_members(group, all, talks);
    }
    free(all);
    return status;
}

/* ---- what a pair has on this side ---- */

static status_t create_pair(struct nccl_wire *self, int from, int to)
{
    struct nccl_pair *pair = &self->pair[self->pairs++];

    pair->from = from;
    pair->to = to;
    pair->sends = from == self->group->rank;
    TRY(device_stream_create(self->device, true, &pair->stream));
    for (int i = 0; i < self->wire->count; i++) {
        const struct wire_channel *c = &self->wire->channel[i];
        bool ours = c->from == from && c->to == to;
        pair->slots += ours ? c->slots : 0;
        pair->expected_room += ours && !pair->sends ? wire_room(self->wire, i) : 0;
    }
    pair->posted = calloc((size_t)pair->slots, sizeof *pair->posted);
    pair->expected = calloc((size_t)pair->expected_room + 1, sizeof *pair->expected);
    if (pair->posted == NULL || pair->expected == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for %d slots", pair->slots);
    }
    return pair->sends ? nccl_check(nccl.unique_id(&pair->id), STATUS_UNSUPPORTED,
                                    "has no name for a communicator", from, to)
                       : STATUS_OK;
}

static status_t create_arrivals(struct nccl_wire *self, int channel)
{
    struct nccl_channel *own = &self->channel[channel];
    int slots = self->wire->channel[channel].slots;

    own->posted = calloc((size_t)slots, sizeof *own->posted);
    own->arrival = calloc((size_t)slots, sizeof *own->arrival);
    if (own->posted == NULL || own->arrival == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for %d slots of channel %d", slots, channel);
    }
    return STATUS_OK;
}

static status_t create_words(struct nccl_wire *self)
{
    size_t bytes = ((size_t)self->pairs + 1) * sizeof *self->words;
    void *memory;

    TRY(device_alloc(self->device, MEMORY_PINNED, bytes, "words between streams", &memory));
    memset(memory, 0, bytes);
    self->words = memory;
    self->wire->pinned = bytes;
    for (int i = 0; i < self->pairs; i++) {
        self->pair[i].words = &self->words[i];
    }
    return STATUS_OK;
}

/* A kernel at the head of a queue that waits for its peer holds up all streams that share the queue. */
static status_t check_queues(int pairs)
{
    const char *text = getenv("CUDA_DEVICE_MAX_CONNECTIONS");
    int queues = text != NULL ? atoi(text) : QUEUES_DEFAULT;

    if (pairs + 1 > queues) {
        return FAIL(STATUS_UNSUPPORTED,
                    "transport nccl has %d streams here, one for each rank and direction, but the "
                    "GPU has %d queues for them; set CUDA_DEVICE_MAX_CONNECTIONS=32, or use ucx",
                    pairs + 1, queues);
    }
    return STATUS_OK;
}

static status_t create_pairs(struct nccl_wire *self, const bool *talks)
{
    struct wire *wire = self->wire;
    int rank = wire->group->rank;
    struct pair_walk walk = {.talks = talks, .size = wire->group->size, .distance = 1};

    for (int from, to; next_pair(&walk, &from, &to);) {
        if (from == rank || to == rank) {
            TRY(create_pair(self, from, to));
        }
    }
    for (int i = 0; i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        self->channel[i].pair = find_pair(self, c->from, c->to);
        self->channel[i].newest = -1;
        TRY(c->to == rank ? create_arrivals(self, i) : STATUS_OK);
    }
    TRY(check_queues(self->pairs));
    TRY(device_event_create(self->device, false, &self->last));
    TRY(device_alloc(self->device, MEMORY_DEVICE, TOKEN_BYTES, "first messages", &self->token));
    return create_words(self);
}

/* Names come from the senders, each sender's in the order of the walk. */
static void take_names(struct nccl_wire *self, const bool *talks, size_t *first,
                       const ncclUniqueId *all)
{
    struct pair_walk walk = {.talks = talks, .size = self->group->size, .distance = 1};

    for (int from, to; next_pair(&walk, &from, &to);) {
        struct nccl_pair *pair = find_pair(self, from, to);
        const ncclUniqueId *name = &all[first[from]++];
        if (pair != NULL) {
            pair->id = *name;
        }
    }
}

static status_t share_names(struct nccl_wire *self, const bool *talks)
{
    size_t size = (size_t)self->group->size, mine = 0;
    size_t *counts = calloc(size, sizeof *counts), *first = calloc(size + 1, sizeof *first);
    ncclUniqueId *all = calloc(size * size, sizeof *all), *own = calloc(size, sizeof *own);
    status_t status;

    if (counts == NULL || first == NULL || all == NULL || own == NULL) {
        status = FAIL(STATUS_NOMEM, "no memory to name the pairs of %zu ranks", size);
        goto free_lists;
    }
    for (size_t from = 0; from < size; from++) {
        for (size_t to = 0; to < size; to++) {
            counts[from] += talks[from * size + to] ? sizeof *all : 0;
        }
        first[from + 1] = first[from] + counts[from] / sizeof *all;
    }
    for (int i = 0; i < self->pairs; i++) {
        if (self->pair[i].sends) {
            own[mine++] = self->pair[i].id;
        }
    }
    TRY_GOTO(group_allgatherv(self->group, own, counts, all), free_lists);
    take_names(self, talks, first, all);

free_lists:
    free(counts);
    free(first);
    free(all);
    free(own);
    return status;
}

/* ---- what may block (apart.h) ---- */

static status_t init_pair(struct nccl_pair *pair)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;

    config.maxCTAs = CTAS;
    return nccl_check(
        nccl.init(&pair->comm, 2, pair->id, pair->sends ? NCCL_SENDER : NCCL_RECEIVER, &config),
        STATUS_UNSUPPORTED, "cannot connect", pair->from, pair->to);
}

/* NCCL sets its buffers up at the first message. */
static status_t greet(const struct nccl_wire *self, const struct nccl_pair *pair)
{
    ncclResult_t result =
        pair->sends ? nccl.send(self->token, 1, ncclInt8, NCCL_RECEIVER, pair->comm, pair->stream)
                    : nccl.recv(self->token, 1, ncclInt8, NCCL_SENDER, pair->comm, pair->stream);

    TRY(nccl_check(result, STATUS_UNSUPPORTED, "cannot move a first message", pair->from,
                   pair->to));
    return device_stream_sync(self->device, pair->stream);
}

static status_t connect_pairs(void *argument)
{
    struct nccl_wire *self = argument;

    TRY(device_bind(self->device));
    for (int i = 0; i < self->pairs; i++) {
        TRY(init_pair(&self->pair[i]));
    }
    for (int i = 0; i < self->pairs; i++) {
        TRY(greet(self, &self->pair[i]));
    }
    return STATUS_OK;
}

/* All together, so that another transport can be tried. What failed is left as it is: NCCL may still use
 * it. */
static status_t connect_all(struct nccl_wire *self)
{
    struct group *group = self->group;

    self->apart.body = connect_pairs;
    status_t status = apart_run(&self->apart, group_deadline(group));
    if (status == STATUS_PEER) {
        return group_lost(group);
    }
    if (status != STATUS_OK) {
        return FAIL(STATUS_TIMEOUT,
                    "NCCL could not connect rank %d with its peers within %g s; NCCL_DEBUG=INFO "
                    "shows how far it came, NCCL_SOCKET_IFNAME chooses the network that it "
                    "connects over",
                    group_named(group, group->rank), group->options.deadline_s);
    }
    return group_agree(group, apart_result(&self->apart));
}

/* ---- creation and destruction ---- */

/* All but the communicators. */
static void nccl_free(struct nccl_wire *self)
{
    for (int i = 0; i < self->wire->count; i++) {
        free(self->channel[i].arrival);
        free(self->channel[i].posted);
    }
    for (int i = 0; i < self->pairs; i++) {
        device_stream_destroy(self->device, self->pair[i].stream);
        free(self->pair[i].posted);
        free(self->pair[i].expected);
    }
    device_event_destroy(self->device, self->last);
    device_free(self->device, MEMORY_DEVICE, self->token);
    device_free(self->device, MEMORY_PINNED, self->words);
    free(self->pair);
    free(self->channel);
    free(self);
}

static status_t prepare(struct nccl_wire *self, bool *talks)
{
    fill_talks(self->wire, talks);
    TRY(nccl_check_members(self->group, self->device, talks));
    TRY(group_agree(self->group, create_pairs(self, talks)));
    return share_names(self, talks);
}

static struct nccl_wire *nccl_alloc(struct wire *wire)
{
    struct nccl_wire *self = calloc(1, sizeof *self);
    struct nccl_pair *pair = calloc(2 * (size_t)wire->group->size, sizeof *pair);
    struct nccl_channel *channel = calloc((size_t)wire->count, sizeof *channel);

    if (self == NULL || pair == NULL || channel == NULL) {
        free(self);
        free(pair);
        free(channel);
        return NULL;
    }
    *self = (struct nccl_wire){.wire = wire,
                               .group = wire->group,
                               .device = wire->device,
                               .pair = pair,
                               .channel = channel,
                               .apart = {.group = wire->group, .arg = self}};
    return self;
}

status_t nccl_connect(struct wire *wire)
{
    size_t size = (size_t)wire->group->size;
    bool *talks = calloc(size * size, sizeof *talks);
    struct nccl_wire *self = nccl_alloc(wire);

    wire->state = self;
    status_t status = talks != NULL && self != NULL
                          ? prepare(self, talks)
                          : FAIL(STATUS_NOMEM, "no memory for a wire over NCCL");
    free(talks);
    if (status != STATUS_OK) {
        if (self != NULL) {
            nccl_free(self);
        }
        return status;
    }
    TRY(connect_all(self));
    log_debug("NCCL release %d, headers %d: %d pairs of rank %d, at most %d CTAs a message",
              nccl.release, NCCL_VERSION_CODE, self->pairs, wire->group->rank, CTAS);
    return STATUS_OK;
}

/* By an event, for words may have been released. */
static bool is_idle(const struct nccl_wire *self, const struct nccl_pair *pair)
{
    int64_t begin = trace_now();
    bool done = false;

    if (device_event_record(self->device, self->last, pair->stream) != STATUS_OK) {
        return false;
    }
    while (device_event_done(self->device, self->last, &done) == STATUS_OK && !done &&
           trace_now() - begin <
               (self->group->shared->failed ? GLANCE : CLOSE_S * INT64_C(1000000000))) {
        nanosleep(&(struct timespec){0, NAP}, NULL);
    }
    return done;
}

static status_t close_pairs(void *argument)
{
    struct nccl_wire *self = argument;

    TRY(device_bind(self->device));
    for (int i = 0; i < self->pairs; i++) {
        struct nccl_pair *pair = &self->pair[i];
        TRY(nccl_check(nccl.finalize(pair->comm), STATUS_INTERNAL, "cannot end", pair->from,
                       pair->to));
        TRY(nccl_check(nccl.destroy(pair->comm), STATUS_INTERNAL, "cannot end", pair->from,
                       pair->to));
    }
    return STATUS_OK;
}

/* A kernel that waits for its peer cannot be ended, and freeing the memory that it may write into would
 * wait for it: after a failure the process ends here. */
void nccl_disconnect(struct wire *wire)
{
    struct nccl_wire *self = wire->state;

    for (int i = 0; i < self->pairs; i++) {
        struct nccl_pair *pair = &self->pair[i];
        if (!is_idle(self, pair)) {
            log_error("rank %d ends now: messages from rank %d to rank %d are still under way, and "
                      "NCCL cannot withdraw them",
                      group_named(wire->group, wire->group->rank),
                      group_named(wire->group, pair->from), group_named(wire->group, pair->to));
            group_abandon(wire->group, 1);
        }
    }
    self->apart.body = close_pairs;
    if (apart_run(&self->apart, trace_now() + CLOSE_S * INT64_C(1000000000)) != STATUS_OK) {
        log_debug("NCCL has not ended within %d s and is left to the end of the process", CLOSE_S);
        return; /* the thread still uses `self` */
    }
    (void)!apart_result(&self->apart);
    nccl_free(self);
}
