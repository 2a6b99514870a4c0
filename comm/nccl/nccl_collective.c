/* nccl_collective.c - collectives over NCCL: one communicator of all ranks, in a stream of its own.
 *
 * The rank's stream writes a word when a call may begin, for which NCCL's stream waits, and waits for a word that
 * NCCL's stream writes when the call is through. Words go on when they are told to, as events would not: a lost peer
 * releases the rank's stream. NCCL's own kernels cannot be ended; with one of them under way the process ends.
 *
 * Equal parts, which replicas have, are one call of NCCL; unlike ones are a call for each part, in a group. Sums are
 * in NCCL's order.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/trace.h"
#include "comm/collective/collective.h"
#include "comm/nccl/nccl_internal.h"

enum {
    NAP = 200000,     /* ns */
    GLANCE = 5000000, /* ns; at what no longer comes */
    CLOSE_S = 3,      /* for the last calls, then for NCCL's own ending */
    TOKEN_BYTES = 256,
    RELEASED = 1 << 30 /* what a released word is beyond all calls */
};

struct words {      /* pinned, on lines of their own */
    uint32_t begun; /* calls that the rank's stream has come to */
    unsigned char apart[NCCL_LINE - sizeof(uint32_t)];
    uint32_t ready; /* calls that are through */
    unsigned char behind[NCCL_LINE - sizeof(uint32_t)];
};

struct nccl_collective {
    struct collective *collective;
    struct group *group;
    struct device *device;
    ncclUniqueId id;
    ncclComm_t comm;
    void *stream;
    struct words *words;
    void *token; /* of a first call, at which NCCL sets its buffers up */
    struct device_event *last;
    struct release release;
    struct apart apart;
};

static status_t check(ncclResult_t result, status_t status, const char *doing)
{
    if (result == ncclSuccess) {
        return STATUS_OK;
    }
    const char *detail = nccl.last_error(NULL);
    return FAIL(
        status,
        "NCCL %s: %s%s%s (NCCL_DEBUG=WARN tells more; parallel.collectives=host does without "
        "NCCL)",
        doing, nccl.error_string(result), detail != NULL && detail[0] != '\0' ? ": " : "",
        detail != NULL ? detail : "");
}

/* ---- creation ---- */

static status_t connect(void *argument)
{
    struct nccl_collective *self = argument;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;

    TRY(device_bind(self->device));
    TRY(check(nccl.init(&self->comm, self->group->size, self->id, self->group->rank, &config),
              STATUS_UNSUPPORTED, "cannot connect the ranks of a collective"));
    TRY(check(
        nccl.all_reduce(self->token, self->token, 1, ncclFloat, ncclSum, self->comm, self->stream),
        STATUS_UNSUPPORTED, "cannot make a first sum"));
    return device_stream_sync(self->device, self->stream);
}

/* All together, so that host memory can be tried. What failed is left as it is: NCCL may still use it. */
static status_t connect_all(struct nccl_collective *self)
{
    struct group *group = self->group;

    self->apart = (struct apart){.group = group, .body = connect, .arg = self};
    status_t status = apart_run(&self->apart, group_deadline(group));
    if (status == STATUS_PEER) {
        return group_lost(group);
    }
    if (status != STATUS_OK) {
        return FAIL(STATUS_TIMEOUT,
                    "NCCL could not connect rank %d with the other %s within %g s; "
                    "NCCL_DEBUG=INFO shows how far it came, NCCL_SOCKET_IFNAME chooses the network "
                    "that it connects over",
                    group_named(group, group->rank), self->collective->whose,
                    group->options.deadline_s);
    }
    return group_agree(group, apart_result(&self->apart));
}

static status_t create_local(struct nccl_collective *self)
{
    void *words;

    TRY(device_stream_create(self->device, true, &self->stream));
    TRY(device_event_create(self->device, false, &self->last));
    TRY(device_alloc(self->device, MEMORY_DEVICE, TOKEN_BYTES, "first messages", &self->token));
    TRY(device_alloc(self->device, MEMORY_PINNED, sizeof *self->words, "words between streams",
                     &words));
    memset(words, 0, sizeof *self->words);
    self->words = words;
    self->collective->pinned = sizeof *self->words;
    return group_rank(self->group) == 0 ? check(nccl.unique_id(&self->id), STATUS_UNSUPPORTED,
                                                "has no name for a communicator")
                                        : STATUS_OK;
}

static void self_free(struct nccl_collective *self)
{
    device_stream_destroy(self->device, self->stream);
    device_event_destroy(self->device, self->last);
    device_free(self->device, MEMORY_DEVICE, self->token);
    device_free(self->device, MEMORY_PINNED, self->words);
    free(self);
}

/* What has ended since may say so again and be waited for again: nobody believes the results. */
static void release(void *argument)
{
    struct nccl_collective *self = argument;

    __atomic_fetch_add(&self->words->ready, RELEASED, __ATOMIC_RELEASE);
}

static status_t nccl_collective_create(struct collective *collective)
{
    struct group *group = collective->group;

    TRY(nccl_check_members(group, collective->device, NULL));
    struct nccl_collective *self = calloc(1, sizeof *self);
    status_t status;
    if (self != NULL) {
        self->collective = collective;
        self->group = group;
        self->device = collective->device;
        status = create_local(self);
    } else {
        status = FAIL(STATUS_NOMEM, "no memory for collectives over NCCL");
    }
    status = group_agree(group, status);
    if (status == STATUS_OK) {
        status = group_broadcast(group, &self->id, sizeof self->id, 0);
    }
    if (status != STATUS_OK) {
        if (self != NULL) {
            self_free(self);
        }
        return status;
    }
    TRY(connect_all(self));
    collective->state = self;
    self->release.run = release;
    self->release.arg = self;
    release_enlist(group, &self->release);
    return STATUS_OK;
}

/* ---- destruction ---- */

static status_t disconnect(void *argument)
{
    struct nccl_collective *self = argument;

    TRY(device_bind(self->device));
    TRY(check(nccl.finalize(self->comm), STATUS_INTERNAL, "cannot end"));
    return check(nccl.destroy(self->comm), STATUS_INTERNAL, "cannot end");
}

static bool is_idle(const struct nccl_collective *self)
{
    int64_t begin = trace_now();
    int64_t most = self->group->shared->failed ? GLANCE : CLOSE_S * INT64_C(1000000000);
    bool done = false;

    if (device_event_record(self->device, self->last, self->stream) != STATUS_OK) {
        return false;
    }
    while (device_event_done(self->device, self->last, &done) == STATUS_OK && !done &&
           trace_now() - begin < most) {
        nanosleep(&(struct timespec){0, NAP}, NULL);
    }
    return done;
}

/* A kernel that waits for its peers cannot be ended, and freeing the memory that it may write into would wait for
 * it: after a failure the process ends here. */
static void nccl_collective_destroy(struct collective *collective)
{
    struct nccl_collective *self = collective->state;

    release_strike(self->group, &self->release);
    if (!is_idle(self)) {
        log_error("rank %d ends now: a collective is still under way, and NCCL cannot withdraw it",
                  group_named(self->group, self->group->rank));
        group_abandon(self->group, 1);
    }
    self->apart.body = disconnect;
    if (apart_run(&self->apart, trace_now() + CLOSE_S * INT64_C(1000000000)) != STATUS_OK) {
        log_debug("NCCL has not ended within %d s and is left to the end of the process", CLOSE_S);
        return; /* the thread still uses `self` */
    }
    (void)!apart_result(&self->apart);
    self_free(self);
}

/* ---- calls ---- */

static int64_t under_way(const struct nccl_collective *self, int64_t started)
{
    uint32_t ready = __atomic_load_n(&self->words->ready, __ATOMIC_ACQUIRE);

    return (int32_t)((uint32_t)started - ready);
}

/* NCCL's stream is finite, and a host that is held up inside CUDA is not to be helped: it stops before. */
static status_t nccl_collective_room(struct collective *collective, int64_t number)
{
    struct nccl_collective *self = collective->state;
    struct pending_call *oldest =
        &collective->pending[(number + collective->under_way - 1) % collective->under_way];
    int64_t until = group_deadline(self->group);
    int most = collective->under_way < NCCL_DEPTH ? collective->under_way : NCCL_DEPTH;
    ncclResult_t state;

    while (under_way(self, number) >= most) {
        if (self->group->shared->failed || trace_now() > until) {
            return collective_give_up(collective, oldest);
        }
        nanosleep(&(struct timespec){0, NAP}, NULL);
    }
    TRY(check(nccl.async_error(self->comm, &state), STATUS_INTERNAL, "does not say how it is"));
    return check(state, STATUS_PEER, "has failed");
}

static bool are_equal(const struct nccl_collective *self, const struct pending_call *pending)
{
    for (int r = 1; r < self->group->size; r++) {
        if (pending->counts[r] != pending->counts[0]) {
            return false;
        }
    }
    return true;
}

static const unsigned char *at(const void *list, size_t elements, size_t element)
{
    return (const unsigned char *)list + elements * element;
}

/* Of the values of a sum. */
static ncclDataType_t type_of(const struct collective_call *call)
{
    return call->bf16 ? ncclBfloat16 : ncclFloat;
}

/* A call for each part, whose root has or gets it. */
static ncclResult_t part_by_part(const struct nccl_collective *self,
                                 const struct pending_call *pending)
{
    const struct collective_call *call = &pending->call;
    bool sums = call->kind == COLLECTIVE_REDUCE_SCATTER;
    size_t before = 0;

    nccl.group_start();
    for (int r = 0; r < self->group->size; r++) {
        size_t count = pending->counts[r];
        void *there = (unsigned char *)call->out + before * call->element;
        if (count > 0 && sums) {
            (void)nccl.reduce(at(call->in, before, call->element),
                              r == self->group->rank ? call->out : NULL, count, type_of(call),
                              ncclSum, r, self->comm, self->stream);
        } else if (count > 0) {
            (void)nccl.broadcast(r == self->group->rank ? call->in : there, there,
                                 count * call->element, ncclInt8, r, self->comm, self->stream);
        }
        before += count;
    }
    return nccl.group_end(); /* it has the first failure */
}

static ncclResult_t run(const struct nccl_collective *self, const struct pending_call *pending)
{
    const struct collective_call *call = &pending->call;
    size_t own = pending->counts[self->group->rank];

    switch (call->kind) {
    case COLLECTIVE_REDUCE_SCATTER:
        return are_equal(self, pending) && own > 0
                   ? nccl.reduce_scatter(call->in, call->out, own, type_of(call), ncclSum,
                                         self->comm, self->stream)
                   : part_by_part(self, pending);
    case COLLECTIVE_ALL_GATHER:
        return are_equal(self, pending) && own > 0
                   ? nccl.all_gather(call->in, call->out, own * call->element, ncclInt8, self->comm,
                                     self->stream)
                   : part_by_part(self, pending);
    case COLLECTIVE_ALL_REDUCE:
        return pending->total > 0
                   ? nccl.all_reduce(call->in, call->out, pending->total, type_of(call), ncclSum,
                                     self->comm, self->stream)
                   : ncclSuccess;
    case COLLECTIVE_BROADCAST:
        return pending->total > 0
                   ? nccl.broadcast(call->in, call->out, pending->total * call->element, ncclInt8,
                                    call->root, self->comm, self->stream)
                   : ncclSuccess;
    case COLLECTIVE_KINDS:
        break;
    }
    return ncclInvalidArgument;
}

static status_t nccl_collective_start(struct collective *collective, struct pending_call *pending)
{
    struct nccl_collective *self = collective->state;
    uint32_t turn = (uint32_t)(pending->number + 1);

    TRY(device_word_write(self->device, &self->words->begun, turn, collective->stream));
    TRY(device_word_wait(self->device, &self->words->begun, turn, self->stream));
    TRY(check(run(self, pending), STATUS_INTERNAL, "cannot make a collective"));
    return device_word_write(self->device, &self->words->ready, turn, self->stream);
}

static status_t nccl_collective_wait(struct collective *collective, struct pending_call *pending)
{
    struct nccl_collective *self = collective->state;

    TRY(group_check(self->group));
    return device_word_wait(self->device, &self->words->ready, (uint32_t)(pending->number + 1),
                            collective->stream);
}

const struct collective_class nccl_collective_class = {
    .name = "nccl",
    .unordered = true,
    .create = nccl_collective_create,
    .destroy = nccl_collective_destroy,
    .room = nccl_collective_room,
    .start = nccl_collective_start,
    .wait = nccl_collective_wait,
};
