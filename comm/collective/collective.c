/* collective.c - the verbs of a collective: argument checks, books, then the class. */
#include "comm/collective/collective.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bf16.h"
#include "base/device.h"
#include "base/log.h"
#include "comm/comm.h"

enum { CHUNK = 1 << 20, CHUNKS = 16 << 20 }; /* bytes a rank; of all ranks */

const char *collective_kind_name(enum collective_kind kind)
{
    static const char *const name[COLLECTIVE_KINDS] = {"reduce-scatter", "all-gather", "all-reduce",
                                                       "broadcast"};

    return name[kind];
}

/* ---- creation ---- */

static void free_all(struct collective *collective)
{
    for (int i = 0; collective->pending != NULL && i < collective->under_way; i++) {
        free(collective->pending[i].counts);
    }
    free(collective->pending);
    free(collective);
}

static status_t make_room(struct collective *collective)
{
    collective->pending = calloc((size_t)collective->under_way, sizeof *collective->pending);
    for (int i = 0; collective->pending != NULL && i < collective->under_way; i++) {
        collective->pending[i].counts =
            calloc((size_t)collective->group->size, sizeof *collective->pending[i].counts);
        if (collective->pending[i].counts == NULL) {
            return FAIL(STATUS_NOMEM, "no memory for %d collectives", collective->under_way);
        }
    }
    return collective->pending != NULL
               ? STATUS_OK
               : FAIL(STATUS_NOMEM, "no memory for %d collectives", collective->under_way);
}

static status_t create_as(struct collective *collective, const struct collective_class *class)
{
    if (class->absent != NULL) {
        return FAIL(STATUS_UNSUPPORTED, "collectives over %s are not in this build: %s",
                    class->name, class->absent);
    }
    collective->class = class;
    return class->create(collective);
}

/* On GPUs NCCL where it works; if not, by way of the host, and rank 0 says why. */
static status_t create_auto(struct collective *collective)
{
    struct group *group = collective->group;
    char why[512] = "";

    log_capture(why, sizeof why);
    status_t status = group_agree(group, create_as(collective, &nccl_collective_class));
    log_capture(NULL, 0);
    if (status != STATUS_OK && (group->shared->failed || status == STATUS_TIMEOUT)) {
        log_error("%s", why);
        return status;
    }
    if (status == STATUS_OK) {
        return STATUS_OK;
    }
    if (group_named(group, group->rank) == 0) {
        log_info("what %s exchange passes through host memory: %.*s", collective->whose,
                 (int)strcspn(why, "\n"), why);
    }
    return create_as(collective, &mpi_collective_class);
}

static status_t create_class(struct collective *collective, const char *carrier)
{
    bool gpu = collective->device != NULL, threads = collective->group->class->threads;
    bool nccl = strcmp(carrier, "nccl") == 0;

    if (gpu && threads) {
        return FAIL(STATUS_UNSUPPORTED,
                    "collectives of GPUs are for processes started by mpirun or srun, and these %d "
                    "ranks are threads of one process",
                    collective->group->size);
    }
    if (nccl && !gpu) {
        return FAIL(
            STATUS_UNSUPPORTED,
            "collectives over nccl are of memory of GPUs, and this rank computes on the host "
            "(parallel.collectives=auto)");
    }
    if (gpu && strcmp(carrier, "auto") == 0) {
        return create_auto(collective);
    }
    return create_as(collective, nccl      ? &nccl_collective_class
                                 : threads ? &threads_collective_class
                                           : &mpi_collective_class);
}

status_t collective_create(struct group *group, const struct collective_options *options,
                           struct collective **out)
{
    struct collective *collective = calloc(1, sizeof *collective);
    status_t status;

    CHECK(options->under_way > 0, "%d collectives under way", options->under_way);
    if (collective != NULL) {
        collective->group = group;
        collective->under_way = options->under_way;
        size_t each = CHUNKS / (size_t)group->size;
        collective->chunk = options->chunk > 0 ? options->chunk : each < CHUNK ? each : CHUNK;
        if (options->device != NULL && device_kind(options->device) != DEVICE_HOST) {
            collective->device = options->device;
            collective->stream = options->stream;
        }
        collective->whose = options->whose != NULL ? options->whose : "ranks";
        status = make_room(collective);
    } else {
        status = FAIL(STATUS_NOMEM, "no memory for collectives of %d ranks", group->size);
    }
    TRY_GOTO(group_agree(group, status), free_collective);
    if (group->size > 1) {
        TRY_GOTO(create_class(collective, options->carrier ? options->carrier : "auto"),
                 free_collective);
    }
    *out = collective;
    return STATUS_OK;

free_collective:
    if (collective != NULL) {
        free_all(collective);
    }
    return status;
}

const char *collective_carrier(const struct collective *collective)
{
    return collective->class != NULL ? collective->class->name : "host";
}

bool collective_is_ordered(const struct collective *collective)
{
    return collective->class == NULL || !collective->class->unordered;
}

void collective_destroy(struct collective *collective)
{
    if (collective == NULL) {
        return;
    }
    if (collective->class != NULL) {
        collective->class->destroy(collective);
    }
    free_all(collective);
}

/* ---- calls ---- */

int64_t collective_call_bytes(const struct collective_call *call, int rank, int ranks)
{
    size_t total = 0, own = call->counts[rank], others = (size_t)ranks - 1;

    for (int i = 0; i < ranks; i++) {
        total += call->counts[i];
    }
    size_t gathered = total - own, reduced = others * own;
    switch (call->kind) {
    case COLLECTIVE_REDUCE_SCATTER:
        return (int64_t)(reduced * call->element);
    case COLLECTIVE_ALL_GATHER:
        return (int64_t)(gathered * call->element);
    case COLLECTIVE_ALL_REDUCE:
        return (int64_t)((reduced + gathered) * call->element);
    case COLLECTIVE_BROADCAST:
        return rank == call->root ? 0 : (int64_t)(total * call->element);
    case COLLECTIVE_KINDS:
        break;
    }
    return 0;
}

/* Where `in` is if it is a part of out. */
static const void *place_in(const struct pending_call *pending)
{
    const struct collective_call *call = &pending->call;
    const unsigned char *out = call->out;

    switch (call->kind) {
    case COLLECTIVE_REDUCE_SCATTER:
        return out - pending->before * call->element;
    case COLLECTIVE_ALL_GATHER:
        return out + pending->before * call->element;
    default:
        return out;
    }
}

static void fill(const struct collective *collective, struct pending_call *pending,
                 const struct collective_call *call)
{
    int ranks = collective->group->size, rank = collective->group->rank;

    pending->call = *call;
    pending->call.counts = pending->counts;
    pending->number = collective->started;
    pending->open = true;
    pending->total = pending->before = 0;
    for (int i = 0; i < ranks; i++) {
        pending->counts[i] = call->counts[i];
        pending->before += i < rank ? call->counts[i] : 0;
        pending->total += call->counts[i];
    }
    if (call->in == NULL) {
        pending->call.in = place_in(pending);
    }
}

static status_t copy_alone(const struct collective *collective, const struct pending_call *pending)
{
    const struct collective_call *call = &pending->call;
    size_t bytes = pending->total * call->element;

    if (call->out == call->in || bytes == 0) {
        return STATUS_OK;
    }
    if (collective->device != NULL) {
        return device_copy(collective->device, call->out, call->in, bytes, collective->stream);
    }
    memcpy(call->out, call->in, bytes);
    return STATUS_OK;
}

status_t collective_start(struct collective *collective, const struct collective_call *call,
                          int64_t *out_number)
{
    struct pending_call *pending =
        &collective->pending[collective->started % collective->under_way];
    bool sums = call->kind == COLLECTIVE_REDUCE_SCATTER || call->kind == COLLECTIVE_ALL_REDUCE;

    CHECK(!pending->open, "more than %d collectives under way", collective->under_way);
    CHECK(call->kind != COLLECTIVE_BROADCAST ||
              (call->root >= 0 && call->root < collective->group->size),
          "a broadcast of rank %d of %d", call->root, collective->group->size);
    CHECK(!sums || call->element == (call->bf16 ? sizeof(uint16_t) : sizeof(float)),
          "a sum of elements of %zu bytes", call->element);
    TRY(group_check(collective->group));
    if (collective->class != NULL && collective->class->room != NULL) {
        TRY(collective->class->room(collective, collective->started));
    }
    fill(collective, pending, call);
    *out_number = collective->started++;
    return collective->class != NULL ? collective->class->start(collective, pending)
                                     : copy_alone(collective, pending);
}

status_t collective_wait(struct collective *collective, int64_t number)
{
    struct pending_call *pending = &collective->pending[number % collective->under_way];

    CHECK(number == collective->awaited && pending->open && pending->number == number,
          "collective %" PRId64 " is awaited before its turn, or twice; the next is %" PRId64,
          number, collective->awaited);
    if (collective->class != NULL) {
        TRY(collective->class->wait(collective, pending));
    }
    collective->awaited++;
    collective->bytes +=
        collective_call_bytes(&pending->call, collective->group->rank, collective->group->size);
    pending->open = false;
    return STATUS_OK;
}

status_t collective_run(struct collective *collective, const struct collective_call *call)
{
    int64_t number;

    TRY(collective_start(collective, call, &number));
    return collective_wait(collective, number);
}

size_t collective_pinned_bytes(const struct collective *collective)
{
    return collective->pinned;
}

int64_t collective_bytes(const struct collective *collective)
{
    return collective->bytes;
}

/* ---- what the classes share ---- */

static void add_floats(const void *const *x, int ranks, size_t begin, size_t count, float *sum)
{
    memcpy(sum, (const float *)x[0] + begin, count * sizeof *sum);
    for (int r = 1; r < ranks; r++) {
        const float *addend = (const float *)x[r] + begin;
        for (size_t i = 0; i < count; i++) {
            sum[i] += addend[i];
        }
    }
}

static void add_halves(const void *const *x, int ranks, size_t begin, size_t count, float *sum)
{
    for (int r = 0; r < ranks; r++) {
        const uint16_t *addend = (const uint16_t *)x[r] + begin;
        for (size_t i = 0; i < count; i++) {
            sum[i] = r == 0 ? bf16_to_float(addend[i]) : sum[i] + bf16_to_float(addend[i]);
        }
    }
}

void collective_add(const void *const *x, int ranks, size_t count, bool bf16, void *out)
{
    enum { BLOCK = 1024 };
    float sum[BLOCK];

    for (size_t begin = 0; begin < count; begin += BLOCK) {
        size_t some = count - begin < BLOCK ? count - begin : BLOCK;
        if (!bf16) {
            add_floats(x, ranks, begin, some, sum);
            memcpy((float *)out + begin, sum, some * sizeof *sum);
            continue;
        }
        add_halves(x, ranks, begin, some, sum);
        for (size_t i = 0; i < some; i++) {
            ((uint16_t *)out)[begin + i] = bf16_from_float(sum[i]);
        }
    }
}

status_t collective_give_up(const struct collective *collective, const struct pending_call *pending)
{
    struct group *group = collective->group;
    char doing[DOING_SIZE];

    if (group->shared->failed) {
        return group_lost(group);
    }
    return FAIL(STATUS_TIMEOUT,
                "the %s number %" PRId64
                " of %d ranks, %zu bytes in all, has not ended within %g s, "
                "rank %d was in %s; see what the other ranks did last, or raise health.deadline_s",
                collective_kind_name(pending->call.kind), pending->number, group->size,
                pending->total * pending->call.element, group->options.deadline_s,
                group_named(group, group->rank), group_doing(group, doing, sizeof doing));
}
