/* mpi.c - collectives over MPI's nonblocking ones, by a progress thread.
 *
 * A call is made in rounds (mpi_rounds.h) of at most `chunk` bytes a rank, two of which are under way, so that one is
 * added up while the next one moves.
 *
 *     reduce-scatter   each rank sends every other one its addend (MPI_Ialltoallv); who has all adds them up in the
 *                      order of the ranks. As many bytes as any algorithm needs, (n-1)/n of the values.
 *     all-gather       MPI_Iallgatherv
 *     all-reduce       the one, then the other
 *     broadcast        MPI_Ibcast
 *
 * MPI moves bytes only inside its calls and cannot be slept on: the thread naps between tests. On a GPU the verbs are
 * a stream's: it writes a word when a call may begin, for which the thread looks, and waits for a word that the
 * thread writes when the call is through.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/device.h"
#include "base/log.h"
#include "base/trace.h"
#include "comm/collective/mpi_rounds.h"
#include "comm/comm.h"
#include "comm/progress/doze.h"

enum {
    NAP_SHORTEST = 20000, /* ns */
    NAP_LONGEST = 200000,
    ROUNDS = 2,        /* under way */
    RELEASED = 1 << 30 /* what a released word is beyond all calls */
};

struct cursor { /* the next round */
    int64_t number;
    bool gathering; /* an all-reduce has been added up */
    size_t begin;
};

struct words {      /* pinned, on lines of their own */
    uint32_t begun; /* calls that the stream has come to */
    unsigned char apart[124];
    uint32_t ready; /* calls that are through */
    unsigned char behind[124];
    uint32_t copied; /* rounds->copied */
    unsigned char last[124];
};

struct mpi_collective {
    struct collective *collective;
    struct rounds rounds;
    pthread_t thread;
    struct doze doze;
    struct round round[ROUNDS];
    struct words *words;    /* on a device */
    struct release release; /* the same */
    struct cursor next;     /* the thread's */
    int64_t begun, ended;   /* rounds; the thread's */
    int64_t started, ready; /* calls; under the wakeup's mutex, like what follows */
    bool stop, broken;
};

static pthread_mutex_t *mutex_of(const struct mpi_collective *self)
{
    return self->collective->group->shared->wakeup.mutex;
}

static bool reached(const uint32_t *word, uint32_t value)
{
    return (int32_t)(__atomic_load_n(word, __ATOMIC_ACQUIRE) - value) >= 0;
}

/* ---- the progress thread ---- */

/* Calls that may begin. */
static int64_t calls_begun(const struct mpi_collective *self, int64_t started)
{
    if (self->words == NULL) {
        return started;
    }
    uint32_t begun = __atomic_load_n(&self->words->begun, __ATOMIC_ACQUIRE);
    return started - (int64_t)(uint32_t)((uint32_t)started - begun);
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
static bool take_round(struct mpi_collective *self, int64_t begun, struct round *round)
{
    struct cursor *next = &self->next;
    struct collective *collective = self->collective;

    if (next->number >= begun) {
        return false;
    }
    struct pending_call *pending = &collective->pending[next->number % collective->under_way];
    size_t length = round_length(&self->rounds, pending);
    size_t chunk = self->rounds.chunk / pending->call.element;
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

/* A call is through. */
static void tell_ready(struct mpi_collective *self)
{
    pthread_mutex_lock(mutex_of(self));
    self->ready++;
    if (self->words != NULL && !self->collective->group->shared->failed) {
        __atomic_store_n(&self->words->ready, (uint32_t)self->ready, __ATOMIC_RELEASE);
    }
    wakeup_signal(&self->collective->group->shared->wakeup);
    pthread_mutex_unlock(mutex_of(self));
}

static status_t begin_rounds(struct mpi_collective *self, int64_t begun, bool *out_moved)
{
    struct round *round = &self->round[self->begun % ROUNDS];

    while (round->stage == ROUND_IDLE && take_round(self, begun, round)) {
        TRY(round_fetch(&self->rounds, round));
        round->stage = ROUND_FETCHING;
        self->begun++;
        *out_moved = true;
        round = &self->round[self->begun % ROUNDS];
    }
    return STATUS_OK;
}

/* MPI wants collectives to be started in one order on all ranks. */
static bool may_start(const struct mpi_collective *self, const struct round *round)
{
    const struct round *oldest = &self->round[self->ended % ROUNDS];
    return round == oldest || oldest->stage > ROUND_FETCHING;
}

/* One stage further, if the one before is done. */
static status_t move_round(struct mpi_collective *self, struct round *round, bool *out_moved)
{
    bool copied = self->words == NULL || reached(&self->words->copied, round->due);
    int done = 0;

    if (round->stage == ROUND_FETCHING && copied && may_start(self, round)) {
        TRY(round_start(&self->rounds, round));
        round->stage = ROUND_MOVING;
        *out_moved = true;
    } else if (round->stage == ROUND_MOVING) {
        TRY_MPI(MPI_Test(&round->request, &done, MPI_STATUS_IGNORE), "to move a collective");
        if (done) {
            TRY(round_land(&self->rounds, round));
            round->stage = ROUND_LANDING;
            *out_moved = true;
        }
    }
    return STATUS_OK;
}

static status_t move_rounds(struct mpi_collective *self, bool *out_moved)
{
    for (int64_t i = self->ended; i < self->begun; i++) {
        TRY(move_round(self, &self->round[i % ROUNDS], out_moved));
    }
    struct round *oldest = &self->round[self->ended % ROUNDS];
    if (oldest->stage == ROUND_LANDING &&
        (self->words == NULL || reached(&self->words->copied, oldest->due))) {
        oldest->stage = ROUND_IDLE;
        self->ended++;
        *out_moved = true;
        if (oldest->last) {
            tell_ready(self);
        }
    }
    return STATUS_OK;
}

/* False: to be ended. */
static bool look(struct mpi_collective *self, int64_t *out_started)
{
    pthread_mutex_lock(mutex_of(self));
    bool go_on = !self->stop && !self->broken && !self->collective->group->shared->failed;
    *out_started = self->started;
    pthread_mutex_unlock(mutex_of(self));
    return go_on;
}

static void break_off(struct mpi_collective *self)
{
    struct group *group = self->collective->group;

    if (self->words != NULL) { /* a stream waits, which no status reaches */
        group_fail(group, false, "a collective failed, whose message says how");
    }
    pthread_mutex_lock(mutex_of(self));
    self->broken = true;
    wakeup_signal(&group->shared->wakeup);
    pthread_mutex_unlock(mutex_of(self));
}

static status_t step(struct mpi_collective *self, int64_t started, bool *out_moved)
{
    TRY(begin_rounds(self, calls_begun(self, started), out_moved));
    return move_rounds(self, out_moved);
}

static void *progress_main(void *argument)
{
    struct mpi_collective *self = argument;
    struct group *group = self->collective->group;
    int64_t nap = NAP_SHORTEST, started;

    log_set_rank(group_named(group, group->rank));
    if (self->rounds.device != NULL && device_bind(self->rounds.device) != STATUS_OK) {
        break_off(self);
    }
    while (look(self, &started)) {
        bool moved = false;
        if (step(self, started, &moved) != STATUS_OK) {
            break_off(self);
        } else if (moved) {
            nap = NAP_SHORTEST;
        } else {
            bool watches = self->begun > self->ended || self->next.number < started;
            doze_sleep(&self->doze, watches ? nap : 0);
            nap = nap * 3 / 2 < NAP_LONGEST ? nap * 3 / 2 : NAP_LONGEST;
        }
    }
    return NULL;
}

/* ---- creation and destruction ---- */

/* Of the host, pinned where there is a device. */
static status_t take(struct mpi_collective *self, size_t bytes, void *out)
{
    void **place = out;

    if (self->rounds.device != NULL) {
        TRY(device_alloc(self->rounds.device, MEMORY_PINNED, bytes, "collectives on their way",
                         place));
        self->collective->pinned += bytes;
        return STATUS_OK;
    }
    *place = malloc(bytes);
    return *place != NULL ? STATUS_OK
                          : FAIL(STATUS_NOMEM, "no memory for collectives: %zu bytes", bytes);
}

static void give_back(struct mpi_collective *self, void *memory)
{
    if (self->rounds.device != NULL) {
        device_free(self->rounds.device, MEMORY_PINNED, memory);
    } else {
        free(memory);
    }
}

static status_t rounds_create(struct mpi_collective *self)
{
    struct device *device = self->rounds.device;
    size_t ranks = (size_t)self->collective->group->size, bytes = ranks * self->rounds.chunk;

    for (int i = 0; i < ROUNDS; i++) {
        struct round *round = &self->round[i];
        TRY(take(self, bytes, &round->in));
        TRY(take(self, bytes, &round->out));
        round->sizes = malloc(4 * ranks * sizeof *round->sizes);
        if (round->sizes == NULL) {
            return FAIL(STATUS_NOMEM, "no memory for collectives of %zu ranks", ranks);
        }
    }
    if (device == NULL) {
        return STATUS_OK;
    }
    TRY(device_stream_create(device, true, &self->rounds.copies));
    TRY(take(self, sizeof *self->words, &self->words));
    memset(self->words, 0, sizeof *self->words);
    self->rounds.copied = &self->words->copied;
    return STATUS_OK;
}

/* What MPI has not given back stays. */
static void self_free(struct mpi_collective *self)
{
    for (int i = 0; i < ROUNDS; i++) {
        if (self->round[i].stage != ROUND_MOVING) {
            give_back(self, self->round[i].in);
            give_back(self, self->round[i].out);
            free(self->round[i].sizes);
        }
    }
    if (self->rounds.device != NULL) {
        device_stream_destroy(self->rounds.device, self->rounds.copies);
        give_back(self, self->words);
    }
    doze_fini(&self->doze);
    free(self);
}

static status_t make_communicator(struct mpi_collective *self)
{
    struct group *group = self->collective->group;
    MPI_Request request;

    TRY_MPI(MPI_Comm_idup(mpi_state_of(group)->collectives, &self->rounds.comm, &request),
            "a communicator");
    TRY(mpi_settle(group, &request, 1));
    MPI_Comm_set_errhandler(self->rounds.comm, MPI_ERRORS_RETURN);
    return STATUS_OK;
}

/* What has ended since says so again: nobody believes the results. */
static void release(void *argument)
{
    struct mpi_collective *self = argument;

    __atomic_store_n(&self->words->ready, (uint32_t)self->collective->started + RELEASED,
                     __ATOMIC_RELEASE);
}

static status_t start_thread(struct mpi_collective *self)
{
    if (pthread_create(&self->thread, NULL, progress_main, self) != 0) {
        return FAIL(STATUS_NOMEM, "the progress thread of collectives cannot be started");
    }
    if (self->words != NULL) {
        self->release.run = release;
        self->release.arg = self;
        release_enlist(self->collective->group, &self->release);
    }
    return STATUS_OK;
}

static struct mpi_collective *self_create(struct collective *collective)
{
    struct mpi_collective *self = calloc(1, sizeof *self);
    size_t most = (size_t)INT_MAX / (size_t)collective->group->size; /* MPI's places are int */
    size_t chunk = collective->chunk < most ? collective->chunk : most;

    if (self != NULL) {
        self->collective = collective;
        self->rounds.group = collective->group;
        self->rounds.device = collective->device;
        self->rounds.chunk = chunk / sizeof(double) * sizeof(double);
        doze_init(&self->doze);
    }
    return self;
}

static status_t mpi_create(struct collective *collective)
{
    struct mpi_collective *self = self_create(collective);
    status_t status =
        self != NULL ? rounds_create(self) : FAIL(STATUS_NOMEM, "no memory for collectives");

    TRY_GOTO(group_agree(collective->group, status), free_self);
    TRY(make_communicator(self)); /* MPI still writes into `self` then */
    TRY_GOTO(start_thread(self), free_self);
    collective->state = self;
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
    if (self->words != NULL) {
        release_strike(collective->group, &self->release);
    }
    if (!collective->group->shared->failed && self->begun == self->ended) {
        MPI_Comm_free(&self->rounds.comm);
    }
    self_free(self);
}

/* ---- calls ---- */

/* Until call `number` is through. */
static status_t wait_until_ready(struct mpi_collective *self, const struct pending_call *pending,
                                 int64_t number)
{
    struct group *group = self->collective->group;
    int64_t until = group_deadline(group);
    status_t status = STATUS_OK;

    pthread_mutex_lock(mutex_of(self));
    while (self->ready <= number && status == STATUS_OK) {
        if (self->broken) {
            status = STATUS_PEER; /* said by the thread */
        } else if (group->shared->failed || !wakeup_wait(&group->shared->wakeup, until)) {
            status = collective_give_up(self->collective, pending);
        }
    }
    pthread_mutex_unlock(mutex_of(self));
    return status;
}

/* A stream may have been told to wait for a call whose record is wanted again: the host is far ahead. */
static status_t mpi_room(struct collective *collective, int64_t number)
{
    struct mpi_collective *self = collective->state;
    int64_t before = number - collective->under_way;

    return before < 0 ? STATUS_OK
                      : wait_until_ready(self, &collective->pending[number % collective->under_way],
                                         before);
}

static status_t mpi_start(struct collective *collective, struct pending_call *pending)
{
    struct mpi_collective *self = collective->state;

    pthread_mutex_lock(mutex_of(self));
    self->started = pending->number + 1;
    pthread_mutex_unlock(mutex_of(self));
    if (self->words != NULL) {
        TRY(device_word_write(collective->device, &self->words->begun,
                              (uint32_t)(pending->number + 1), collective->stream));
    }
    doze_wake(&self->doze);
    return STATUS_OK;
}

static status_t mpi_wait(struct collective *collective, struct pending_call *pending)
{
    struct mpi_collective *self = collective->state;

    if (self->words != NULL) {
        TRY(group_check(collective->group));
        return device_word_wait(collective->device, &self->words->ready,
                                (uint32_t)(pending->number + 1), collective->stream);
    }
    return wait_until_ready(self, pending, pending->number);
}

const struct collective_class mpi_collective_class = {
    .name = "host",
    .create = mpi_create,
    .destroy = mpi_destroy,
    .room = mpi_room,
    .start = mpi_start,
    .wait = mpi_wait,
};
