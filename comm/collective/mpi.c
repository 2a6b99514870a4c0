/* mpi.c - collectives over MPI's nonblocking ones, by a progress thread.
 *
 * A call is made in rounds of at most `chunk` bytes a rank, two of which are under way, so that one is added up
 * while the next one moves. All that MPI touches is ours: memory of the caller may go when a peer is lost,
 * which MPI does not hear of.
 *
 *     reduce-scatter   each rank sends every other one its addend (MPI_Ialltoallv); who has all adds them up in the
 *                      order of the ranks. As many bytes as any algorithm needs, (n-1)/n of the values.
 *     all-gather       MPI_Iallgatherv
 *     all-reduce       the one, then the other
 *     broadcast        MPI_Ibcast
 *
 * MPI moves bytes only inside its calls and cannot be slept on: the thread naps between tests.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "comm/collective/collective.h"
#include "comm/comm.h"
#include "comm/group/mpi_group.h"
#include "comm/progress/doze.h"

enum {
    NAP_SHORTEST = 20000, /* ns */
    NAP_LONGEST = 200000,
    ROUNDS = 2 /* under way */
};

struct round {
    bool active;
    MPI_Request request;
    struct pending_call *pending;
    enum collective_kind kind; /* an all-reduce has rounds of two kinds */
    size_t begin;              /* element of every rank's part; of a broadcast, of all */
    bool last;                 /* of the call */
    unsigned char *in, *out;   /* [ranks * chunk] */
    int *sizes;                /* [4 * ranks] bytes and places, as MPI wants them */
};

struct cursor { /* the next round */
    int64_t number;
    bool gathering; /* an all-reduce has been added up */
    size_t begin;
};

struct mpi_collective {
    struct collective *collective;
    MPI_Comm comm;
    size_t chunk;
    pthread_t thread;
    struct doze doze;
    struct round round[ROUNDS];
    struct cursor next;     /* the thread's */
    int64_t begun, ended;   /* rounds; the thread's */
    int64_t started, ready; /* calls; under the wakeup's mutex, like what follows */
    bool stop, broken;
};

static pthread_mutex_t *mutex_of(const struct mpi_collective *self)
{
    return self->collective->group->life->wakeup.mutex;
}

/* ---- rounds ---- */

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Elements of a rank's part from `begin` on, a chunk at most. */
static size_t some_of(const struct mpi_collective *self, const struct round *round, int rank)
{
    const struct pending_call *pending = round->pending;
    size_t count = pending->counts[rank];

    return count > round->begin ? least(count - round->begin, self->chunk / pending->call.element)
                                : 0;
}

static int *sizes_of(const struct round *round, int which, int ranks)
{
    return round->sizes + which * ranks;
}

static status_t begin_reduce(struct mpi_collective *self, struct round *round)
{
    const struct collective_call *call = &round->pending->call;
    int ranks = self->collective->group->size, rank = self->collective->group->rank;
    int *send = sizes_of(round, 0, ranks), *send_at = sizes_of(round, 1, ranks);
    int *receive = sizes_of(round, 2, ranks), *receive_at = sizes_of(round, 3, ranks);
    const unsigned char *in = call->in;
    size_t before = 0;

    for (int r = 0; r < ranks; r++) {
        size_t bytes = some_of(self, round, r) * call->element;
        send[r] = r == rank ? 0 : (int)bytes;
        receive[r] = r == rank ? 0 : (int)(some_of(self, round, rank) * call->element);
        send_at[r] = receive_at[r] = (int)((size_t)r * self->chunk);
        if (bytes > 0) {
            memcpy(round->in + (size_t)r * self->chunk,
                   in + (before + round->begin) * call->element, bytes);
        }
        before += round->pending->counts[r];
    }
    return mpi_check(MPI_Ialltoallv(round->in, send, send_at, MPI_BYTE, round->out, receive,
                                    receive_at, MPI_BYTE, self->comm, &round->request),
                     "the addends of a sum");
}

static void end_reduce(const struct mpi_collective *self, const struct round *round)
{
    const struct pending_call *pending = round->pending;
    int ranks = self->collective->group->size, rank = self->collective->group->rank;
    size_t skip = pending->call.kind == COLLECTIVE_ALL_REDUCE ? pending->before : 0;
    const float *x[ranks];

    for (int r = 0; r < ranks; r++) {
        const unsigned char *from = r == rank ? round->in : round->out;
        x[r] = (const float *)(const void *)(from + (size_t)r * self->chunk);
    }
    collective_add(x, ranks, some_of(self, round, rank),
                   (float *)pending->call.out + skip + round->begin);
}

static status_t begin_gather(struct mpi_collective *self, struct round *round)
{
    const struct pending_call *pending = round->pending;
    size_t element = pending->call.element;
    int ranks = self->collective->group->size, rank = self->collective->group->rank;
    int *receive = sizes_of(round, 0, ranks), *receive_at = sizes_of(round, 1, ranks);
    const unsigned char *in = pending->call.in;
    size_t bytes = some_of(self, round, rank) * element;

    if (pending->call.kind == COLLECTIVE_ALL_REDUCE) {
        in = (const unsigned char *)pending->call.out + pending->before * element;
    }
    for (int r = 0; r < ranks; r++) {
        receive[r] = (int)(some_of(self, round, r) * element);
        receive_at[r] = (int)((size_t)r * self->chunk);
    }
    if (bytes > 0) {
        memcpy(round->in, in + round->begin * element, bytes);
    }
    return mpi_check(MPI_Iallgatherv(round->in, (int)bytes, MPI_BYTE, round->out, receive,
                                     receive_at, MPI_BYTE, self->comm, &round->request),
                     "an all-gather");
}

static void end_gather(const struct mpi_collective *self, const struct round *round)
{
    const struct pending_call *pending = round->pending;
    size_t element = pending->call.element, before = 0;
    unsigned char *out = pending->call.out;

    for (int r = 0; r < self->collective->group->size; r++) {
        size_t bytes = some_of(self, round, r) * element;
        if (bytes > 0) {
            memcpy(out + (before + round->begin) * element, round->out + (size_t)r * self->chunk,
                   bytes);
        }
        before += pending->counts[r];
    }
}

static size_t broadcast_bytes(const struct mpi_collective *self, const struct round *round)
{
    const struct pending_call *pending = round->pending;

    return least(pending->total - round->begin, self->chunk / pending->call.element) *
           pending->call.element;
}

static status_t begin_broadcast(struct mpi_collective *self, struct round *round)
{
    const struct collective_call *call = &round->pending->call;
    size_t bytes = broadcast_bytes(self, round);

    if (call->root == self->collective->group->rank && bytes > 0) {
        memcpy(round->in, (const unsigned char *)call->in + round->begin * call->element, bytes);
    }
    return mpi_check(
        MPI_Ibcast(round->in, (int)bytes, MPI_BYTE, call->root, self->comm, &round->request),
        "a broadcast");
}

static void end_broadcast(const struct mpi_collective *self, const struct round *round)
{
    const struct collective_call *call = &round->pending->call;
    size_t bytes = broadcast_bytes(self, round);

    if (bytes > 0) {
        memcpy((unsigned char *)call->out + round->begin * call->element, round->in, bytes);
    }
}

/* ---- the progress thread ---- */

/* How many elements the rounds of a call, or of its half, go through. */
static size_t length_of(const struct mpi_collective *self, const struct pending_call *pending)
{
    size_t most = 0;

    for (int r = 0; r < self->collective->group->size; r++) {
        most = pending->counts[r] > most ? pending->counts[r] : most;
    }
    return pending->call.kind == COLLECTIVE_BROADCAST ? pending->total : most;
}

static enum collective_kind kind_of(const struct mpi_collective *self,
                                    const struct pending_call *pending)
{
    return pending->call.kind != COLLECTIVE_ALL_REDUCE ? pending->call.kind
           : self->next.gathering                      ? COLLECTIVE_ALL_GATHER
                                                       : COLLECTIVE_REDUCE_SCATTER;
}

/* Fills in the next round; false if there is none, or it has to wait for those before it. A call of no elements
 * has one round too. */
static bool take_round(struct mpi_collective *self, int64_t started, struct round *round)
{
    struct cursor *next = &self->next;
    struct collective *collective = self->collective;

    if (next->number >= started) {
        return false;
    }
    struct pending_call *pending = &collective->pending[next->number % collective->under_way];
    size_t length = length_of(self, pending), chunk = self->chunk / pending->call.element;
    if (next->gathering && next->begin == 0 && self->begun > self->ended) {
        return false; /* the sums come first */
    }
    bool end = next->begin + chunk >= length;
    bool half = pending->call.kind == COLLECTIVE_ALL_REDUCE && !next->gathering;
    round->pending = pending;
    round->kind = kind_of(self, pending);
    round->begin = next->begin;
    round->last = end && !half;
    next->begin = end ? 0 : next->begin + chunk;
    next->gathering = end ? half : next->gathering;
    next->number += round->last;
    return true;
}

static status_t begin_round(struct mpi_collective *self, struct round *round)
{
    switch (round->kind) {
    case COLLECTIVE_REDUCE_SCATTER:
        return begin_reduce(self, round);
    case COLLECTIVE_ALL_GATHER:
        return begin_gather(self, round);
    default:
        return begin_broadcast(self, round);
    }
}

static void end_round(struct mpi_collective *self, struct round *round)
{
    switch (round->kind) {
    case COLLECTIVE_REDUCE_SCATTER:
        end_reduce(self, round);
        break;
    case COLLECTIVE_ALL_GATHER:
        end_gather(self, round);
        break;
    default:
        end_broadcast(self, round);
    }
    round->active = false;
    self->ended++;
    if (round->last) {
        pthread_mutex_lock(mutex_of(self));
        self->ready++;
        wakeup_signal(&self->collective->group->life->wakeup);
        pthread_mutex_unlock(mutex_of(self));
    }
}

/* Rounds for which there is room; *out_moved: some. */
static status_t begin_rounds(struct mpi_collective *self, int64_t started, bool *out_moved)
{
    struct round *round = &self->round[self->begun % ROUNDS];

    while (!round->active && take_round(self, started, round)) {
        TRY(begin_round(self, round));
        round->active = true;
        self->begun++;
        *out_moved = true;
        round = &self->round[self->begun % ROUNDS];
    }
    return STATUS_OK;
}

/* The oldest round, if it is done. */
static status_t test_round(struct mpi_collective *self, bool *out_moved)
{
    struct round *round = &self->round[self->ended % ROUNDS];
    int done = 0;

    if (round->active) {
        TRY_MPI(MPI_Test(&round->request, &done, MPI_STATUS_IGNORE), "to move a collective");
    }
    if (done) {
        end_round(self, round);
        *out_moved = true;
    }
    return STATUS_OK;
}

/* False: to be ended. */
static bool look(struct mpi_collective *self, int64_t *out_started)
{
    pthread_mutex_lock(mutex_of(self));
    bool go_on = !self->stop && !self->broken && !self->collective->group->life->failed;
    *out_started = self->started;
    pthread_mutex_unlock(mutex_of(self));
    return go_on;
}

static void break_off(struct mpi_collective *self)
{
    pthread_mutex_lock(mutex_of(self));
    self->broken = true;
    wakeup_signal(&self->collective->group->life->wakeup);
    pthread_mutex_unlock(mutex_of(self));
}

static void *progress_main(void *argument)
{
    struct mpi_collective *self = argument;
    int64_t nap = NAP_SHORTEST, started;

    log_set_rank(group_named(self->collective->group, self->collective->group->rank));
    while (look(self, &started)) {
        bool moved = false;
        status_t status = begin_rounds(self, started, &moved);
        if (status == STATUS_OK) {
            status = test_round(self, &moved);
        }
        if (status != STATUS_OK) {
            break_off(self);
        } else if (moved) {
            nap = NAP_SHORTEST;
        } else {
            doze_sleep(&self->doze, self->begun > self->ended ? nap : 0);
            nap = nap * 3 / 2 < NAP_LONGEST ? nap * 3 / 2 : NAP_LONGEST;
        }
    }
    return NULL;
}

/* ---- creation and destruction ---- */

static status_t rounds_create(struct mpi_collective *self)
{
    size_t ranks = (size_t)self->collective->group->size;

    for (int i = 0; i < ROUNDS; i++) {
        struct round *round = &self->round[i];
        round->in = malloc(ranks * self->chunk);
        round->out = malloc(ranks * self->chunk);
        round->sizes = malloc(4 * ranks * sizeof *round->sizes);
        if (round->in == NULL || round->out == NULL || round->sizes == NULL) {
            return FAIL(STATUS_NOMEM,
                        "no memory for collectives of %zu ranks in chunks of %zu bytes", ranks,
                        self->chunk);
        }
    }
    return STATUS_OK;
}

/* What MPI has not given back stays. */
static void self_free(struct mpi_collective *self)
{
    for (int i = 0; i < ROUNDS; i++) {
        if (!self->round[i].active) {
            free(self->round[i].in);
            free(self->round[i].out);
            free(self->round[i].sizes);
        }
    }
    doze_fini(&self->doze);
    free(self);
}

static status_t make_communicator(struct mpi_collective *self)
{
    struct group *group = self->collective->group;
    MPI_Request request;

    TRY_MPI(MPI_Comm_idup(mpi_state_of(group)->collectives, &self->comm, &request),
            "a communicator");
    TRY(mpi_settle(group, &request, 1));
    MPI_Comm_set_errhandler(self->comm, MPI_ERRORS_RETURN);
    return STATUS_OK;
}

static status_t mpi_create(struct collective *collective)
{
    struct mpi_collective *self = calloc(1, sizeof *self);
    size_t ranks = (size_t)collective->group->size;
    status_t status = STATUS_NOMEM;

    if (self != NULL) {
        self->collective = collective;
        self->chunk =
            least(collective->chunk, (size_t)INT_MAX / ranks) / sizeof(double) * sizeof(double);
        doze_init(&self->doze);
        status = rounds_create(self);
    }
    TRY_GOTO(group_agree(collective->group, status), free_self);
    TRY(make_communicator(self)); /* MPI still writes into `self` then */
    collective->state = self;
    if (pthread_create(&self->thread, NULL, progress_main, self) != 0) {
        status = FAIL(STATUS_NOMEM, "the progress thread of collectives cannot be started");
        goto free_self;
    }
    return STATUS_OK;

free_self:
    if (self != NULL) {
        self_free(self);
    }
    return status;
}

static void mpi_destroy(struct collective *collective)
{
    struct mpi_collective *self = collective->state;

    pthread_mutex_lock(mutex_of(self));
    self->stop = true;
    pthread_mutex_unlock(mutex_of(self));
    doze_wake(&self->doze);
    pthread_join(self->thread, NULL);
    if (!collective->group->life->failed && self->begun == self->ended) {
        MPI_Comm_free(&self->comm);
    }
    self_free(self);
}

/* ---- calls ---- */

static status_t mpi_start(struct collective *collective, struct pending_call *pending)
{
    struct mpi_collective *self = collective->state;

    pthread_mutex_lock(mutex_of(self));
    self->started = pending->number + 1;
    pthread_mutex_unlock(mutex_of(self));
    doze_wake(&self->doze);
    return STATUS_OK;
}

static status_t mpi_wait(struct collective *collective, struct pending_call *pending)
{
    struct mpi_collective *self = collective->state;
    struct group *group = collective->group;
    int64_t until = group_deadline(group);
    status_t status = STATUS_OK;

    pthread_mutex_lock(mutex_of(self));
    while (self->ready <= pending->number && status == STATUS_OK) {
        if (self->broken) {
            status = STATUS_PEER; /* said by the thread */
        } else if (group->life->failed || !wakeup_wait(&group->life->wakeup, until)) {
            status = collective_give_up(collective, pending);
        }
    }
    pthread_mutex_unlock(mutex_of(self));
    return status;
}

const struct collective_class mpi_collective_class = {
    .create = mpi_create,
    .destroy = mpi_destroy,
    .start = mpi_start,
    .wait = mpi_wait,
};
