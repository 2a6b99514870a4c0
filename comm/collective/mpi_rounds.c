/* mpi_rounds.c - what a round of each kind fetches, starts and lands (mpi_rounds.h). */
#include "comm/collective/mpi_rounds.h"

#include <string.h>

#include "base/device.h"

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

size_t round_length(const struct rounds *rounds, const struct pending_call *pending)
{
    size_t most = 0;

    for (int r = 0; r < rounds->group->size; r++) {
        most = pending->counts[r] > most ? pending->counts[r] : most;
    }
    return pending->call.kind == COLLECTIVE_BROADCAST ? pending->total : most;
}

/* Elements of a rank's part from `begin` on, a chunk at most. */
static size_t some_of(const struct rounds *rounds, const struct round *round, int rank)
{
    const struct pending_call *pending = round->pending;
    size_t count = pending->counts[rank];

    return count > round->begin ? least(count - round->begin, rounds->chunk / pending->call.element)
                                : 0;
}

static size_t broadcast_bytes(const struct rounds *rounds, const struct round *round)
{
    const struct pending_call *pending = round->pending;

    return least(pending->total - round->begin, rounds->chunk / pending->call.element) *
           pending->call.element;
}

/* Between the caller's memory and the round's. */
static status_t copy(const struct rounds *rounds, void *to, const void *from, size_t bytes)
{
    if (bytes == 0) {
        return STATUS_OK;
    }
    if (rounds->device != NULL) {
        return device_copy(rounds->device, to, from, bytes, rounds->copies);
    }
    memcpy(to, from, bytes);
    return STATUS_OK;
}

/* After the copies of a stage. */
static status_t copies_end(struct rounds *rounds, struct round *round)
{
    if (rounds->device == NULL) {
        return STATUS_OK;
    }
    round->due = ++rounds->enqueued;
    return device_word_write(rounds->device, rounds->copied, round->due, rounds->copies);
}

/* ---- fetching ---- */

static status_t fetch_addends(const struct rounds *rounds, const struct round *round)
{
    const struct collective_call *call = &round->pending->call;
    const unsigned char *in = call->in;

    for (int r = 0; r < rounds->group->size; r++) {
        TRY(copy(rounds, round->in + (size_t)r * rounds->chunk, in + round->begin * call->element,
                 some_of(rounds, round, r) * call->element));
        in += round->pending->counts[r] * call->element;
    }
    return STATUS_OK;
}

static status_t fetch_part(const struct rounds *rounds, const struct round *round)
{
    const struct pending_call *pending = round->pending;
    size_t element = pending->call.element;
    const unsigned char *in = pending->call.in;

    if (pending->call.kind == COLLECTIVE_ALL_REDUCE) { /* the sums */
        in = (const unsigned char *)pending->call.out + pending->before * element;
    }
    return copy(rounds, round->in, in + round->begin * element,
                some_of(rounds, round, rounds->group->rank) * element);
}

static status_t fetch_whole(const struct rounds *rounds, const struct round *round)
{
    const struct collective_call *call = &round->pending->call;

    return call->root == rounds->group->rank
               ? copy(rounds, round->in,
                      (const unsigned char *)call->in + round->begin * call->element,
                      broadcast_bytes(rounds, round))
               : STATUS_OK;
}

status_t round_fetch(struct rounds *rounds, struct round *round)
{
    status_t status = round->kind == COLLECTIVE_REDUCE_SCATTER ? fetch_addends(rounds, round)
                      : round->kind == COLLECTIVE_ALL_GATHER   ? fetch_part(rounds, round)
                                                               : fetch_whole(rounds, round);

    return status == STATUS_OK ? copies_end(rounds, round) : status;
}

/* ---- MPI ---- */

static int *sizes_of(const struct rounds *rounds, const struct round *round, int which)
{
    return round->sizes + which * rounds->group->size;
}

/* A rank's own addend stays where it is. */
static status_t start_reduce(struct rounds *rounds, struct round *round)
{
    int *send = sizes_of(rounds, round, 0), *send_at = sizes_of(rounds, round, 1);
    int *receive = sizes_of(rounds, round, 2), *receive_at = sizes_of(rounds, round, 3);
    size_t element = round->pending->call.element;
    int rank = rounds->group->rank;

    for (int r = 0; r < rounds->group->size; r++) {
        send[r] = r == rank ? 0 : (int)(some_of(rounds, round, r) * element);
        receive[r] = r == rank ? 0 : (int)(some_of(rounds, round, rank) * element);
        send_at[r] = receive_at[r] = (int)((size_t)r * rounds->chunk);
    }
    return mpi_check(MPI_Ialltoallv(round->in, send, send_at, MPI_BYTE, round->out, receive,
                                    receive_at, MPI_BYTE, rounds->comm, &round->request),
                     "the addends of a sum");
}

static status_t start_gather(struct rounds *rounds, struct round *round)
{
    int *receive = sizes_of(rounds, round, 0), *receive_at = sizes_of(rounds, round, 1);
    size_t element = round->pending->call.element;
    int own = (int)(some_of(rounds, round, rounds->group->rank) * element);

    for (int r = 0; r < rounds->group->size; r++) {
        receive[r] = (int)(some_of(rounds, round, r) * element);
        receive_at[r] = (int)((size_t)r * rounds->chunk);
    }
    return mpi_check(MPI_Iallgatherv(round->in, own, MPI_BYTE, round->out, receive, receive_at,
                                     MPI_BYTE, rounds->comm, &round->request),
                     "an all-gather");
}

status_t round_start(struct rounds *rounds, struct round *round)
{
    if (round->kind == COLLECTIVE_REDUCE_SCATTER) {
        return start_reduce(rounds, round);
    }
    if (round->kind == COLLECTIVE_ALL_GATHER) {
        return start_gather(rounds, round);
    }
    return mpi_check(MPI_Ibcast(round->in, (int)broadcast_bytes(rounds, round), MPI_BYTE,
                                round->pending->call.root, rounds->comm, &round->request),
                     "a broadcast");
}

/* ---- landing ---- */

/* Added up on the host, in place of this rank's addend. */
static status_t land_sum(const struct rounds *rounds, const struct round *round)
{
    const struct pending_call *pending = round->pending;
    int ranks = rounds->group->size, rank = rounds->group->rank;
    size_t skip = pending->call.kind == COLLECTIVE_ALL_REDUCE ? pending->before : 0;
    size_t count = some_of(rounds, round, rank);
    size_t element = pending->call.element;
    void *sum = round->in + (size_t)rank * rounds->chunk;
    void *out = (unsigned char *)pending->call.out + (skip + round->begin) * element;
    const void *x[ranks];

    for (int r = 0; r < ranks; r++) {
        x[r] = r == rank ? sum : (const void *)(round->out + (size_t)r * rounds->chunk);
    }
    if (rounds->device == NULL) {
        collective_add(x, ranks, count, pending->call.bf16, out);
        return STATUS_OK;
    }
    collective_add(x, ranks, count, pending->call.bf16, sum);
    return copy(rounds, out, sum, count * element);
}

static status_t land_parts(const struct rounds *rounds, const struct round *round)
{
    const struct pending_call *pending = round->pending;
    size_t element = pending->call.element;
    unsigned char *out = pending->call.out;

    for (int r = 0; r < rounds->group->size; r++) {
        TRY(copy(rounds, out + round->begin * element, round->out + (size_t)r * rounds->chunk,
                 some_of(rounds, round, r) * element));
        out += pending->counts[r] * element;
    }
    return STATUS_OK;
}

static status_t land_whole(const struct rounds *rounds, const struct round *round)
{
    const struct collective_call *call = &round->pending->call;

    return copy(rounds, (unsigned char *)call->out + round->begin * call->element, round->in,
                broadcast_bytes(rounds, round));
}

status_t round_land(struct rounds *rounds, struct round *round)
{
    status_t status = round->kind == COLLECTIVE_REDUCE_SCATTER ? land_sum(rounds, round)
                      : round->kind == COLLECTIVE_ALL_GATHER   ? land_parts(rounds, round)
                                                               : land_whole(rounds, round);

    return status == STATUS_OK ? copies_end(rounds, round) : status;
}
