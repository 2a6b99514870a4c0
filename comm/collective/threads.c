/* threads.c - collectives of ranks that are threads of one process: a rank that waits reads what the others have.
 *
 * A call is a record that all ranks see. A rank that starts it says where its memory is; one that waits does its
 * own work when all have started, and returns when all have done theirs, since its memory is read by them. An
 * all-reduce is two such rounds.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "comm/collective/collective.h"
#include "comm/comm.h"

enum { ROUNDS = 2 };

struct record {
    int64_t number;       /* of the call that it is of; -1: of none */
    int started, left;    /* ranks */
    int finished[ROUNDS]; /* ranks */
    const void **in;      /* [ranks] */
    void **out;           /* [ranks] */
};

struct loop_collective {
    struct loop_collective *next;
    int64_t number; /* the how-manieth collective of every rank */
    int holders, under_way;
    int reading;           /* ranks that read what others have */
    bool gone;             /* a rank has left calls that it had started */
    struct record *record; /* [under_way] by the number of the call, in turn */
};

static struct loop_world *world_of(const struct collective *collective)
{
    return collective->group->state;
}

/* ---- creation ---- */

static void shared_free(struct loop_collective *shared)
{
    for (int i = 0; shared->record != NULL && i < shared->under_way; i++) {
        free(shared->record[i].in);
        free(shared->record[i].out);
    }
    free(shared->record);
    free(shared);
}

static struct loop_collective *shared_create(const struct collective *collective)
{
    struct loop_collective *shared = calloc(1, sizeof *shared);
    size_t ranks = (size_t)collective->group->size;

    if (shared == NULL) {
        return NULL;
    }
    shared->under_way = collective->under_way;
    shared->record = calloc((size_t)shared->under_way, sizeof *shared->record);
    bool complete = shared->record != NULL;
    for (int i = 0; complete && i < shared->under_way; i++) {
        struct record *record = &shared->record[i];
        record->number = -1;
        record->in = calloc(ranks, sizeof *record->in);
        record->out = calloc(ranks, sizeof *record->out);
        complete = record->in != NULL && record->out != NULL;
    }
    if (!complete) {
        shared_free(shared);
        return NULL;
    }
    return shared;
}

/* The first rank makes it for all. */
static status_t threads_create(struct collective *collective)
{
    struct group *group = collective->group;
    struct loop_world *world = world_of(collective);
    struct loop_collective *made = NULL, *all[group->size];

    if (group->rank == 0) {
        made = shared_create(collective);
    }
    TRY(group_agree(group,
                    group->rank == 0 && made == NULL
                        ? FAIL(STATUS_NOMEM, "no memory for collectives of %d ranks", group->size)
                        : STATUS_OK));
    TRY(group_allgather(group, &made, sizeof made, all));
    pthread_mutex_lock(world->mutex);
    all[0]->holders++;
    pthread_mutex_unlock(world->mutex);
    collective->state = all[0];
    return group_barrier(group); /* nobody lets go of it before all hold it */
}

/* Memory of this rank may go after it: not while others read it. */
static void threads_destroy(struct collective *collective)
{
    struct loop_collective *shared = collective->state;
    struct loop_world *world = world_of(collective);

    pthread_mutex_lock(world->mutex);
    shared->gone |= collective->awaited < collective->started;
    while (shared->gone && shared->reading > 0) {
        wakeup_wait(&collective->group->shared->wakeup, INT64_MAX);
    }
    bool last = --shared->holders == 0;
    pthread_mutex_unlock(world->mutex);
    if (last) {
        shared_free(shared);
    }
}

/* ---- calls ---- */

static struct record *record_of(const struct collective *collective, int64_t number)
{
    struct loop_collective *shared = collective->state;

    return &shared->record[number % shared->under_way];
}

static void signal_all(struct loop_world *world)
{
    for (int i = 0; i < world->ranks; i++) {
        wakeup_signal(&world->group[i].shared->wakeup);
    }
}

/* Sleeps until something happens; with the mutex. */
static status_t sleep_on(struct collective *collective, const struct pending_call *pending,
                         int64_t until)
{
    struct group *group = collective->group;

    if (loop_is_dead(group)) {
        return STATUS_INTERRUPTED;
    }
    if (group->shared->failed || !wakeup_wait(&group->shared->wakeup, until)) {
        return collective_give_up(collective, pending);
    }
    return STATUS_OK;
}

/* Before a rank reads what the others have, unless one of them may have gone; with the mutex. */
static status_t read_begin(struct collective *collective, const struct pending_call *pending)
{
    struct loop_collective *shared = collective->state;

    if (collective->group->shared->failed) {
        return collective_give_up(collective, pending);
    }
    if (shared->gone) {
        return FAIL(STATUS_PEER, "a rank has left in the middle of the %s number %" PRId64,
                    collective_kind_name(pending->call.kind), pending->number);
    }
    shared->reading++;
    return STATUS_OK;
}

static void read_end(struct collective *collective)
{
    struct loop_collective *shared = collective->state;

    shared->reading--;
    signal_all(world_of(collective));
}

/* Until `count` has come to all ranks; with the mutex. */
static status_t sleep_until_all(struct collective *collective, const struct pending_call *pending,
                                const int *count)
{
    int64_t until = group_deadline(collective->group);

    while (*count < collective->group->size) {
        TRY(sleep_on(collective, pending, until));
    }
    return STATUS_OK;
}

static status_t threads_start(struct collective *collective, struct pending_call *pending)
{
    struct loop_world *world = world_of(collective);
    struct record *record = record_of(collective, pending->number);
    int64_t until = group_deadline(collective->group);
    int rank = collective->group->rank;
    status_t status;

    pthread_mutex_lock(world->mutex);
    TRY_GOTO(loop_sends(collective->group), unlock);
    while (record->number != pending->number && record->number >= 0) { /* of an earlier call */
        TRY_GOTO(sleep_on(collective, pending, until), unlock);
    }
    if (record->number < 0) {
        record->number = pending->number;
        record->started = record->left = record->finished[0] = record->finished[1] = 0;
    }
    record->in[rank] = pending->call.in;
    record->out[rank] = pending->call.out;
    record->started++;
    signal_all(world);

unlock:
    pthread_mutex_unlock(world->mutex);
    return status;
}

/* This rank's part of the sum, to `out`. */
static void reduce(const struct collective *collective, const struct pending_call *pending,
                   const struct record *record, void *out)
{
    int ranks = collective->group->size;
    size_t before = pending->before * pending->call.element;
    const void *x[ranks];

    for (int r = 0; r < ranks; r++) {
        x[r] = (const unsigned char *)record->in[r] + before;
    }
    collective_add(x, ranks, pending->counts[collective->group->rank], pending->call.bf16, out);
}

/* All parts but this rank's own, which `part` of another rank points at. */
static void gather(const struct collective *collective, const struct pending_call *pending,
                   const void *const *part, bool of_whole)
{
    size_t element = pending->call.element, before = 0;
    unsigned char *out = pending->call.out;

    for (int r = 0; r < collective->group->size; r++) {
        const unsigned char *from = part[r];
        from += of_whole ? before * element : 0;
        if (out + before * element != from && pending->counts[r] > 0) {
            memcpy(out + before * element, from, pending->counts[r] * element);
        }
        before += pending->counts[r];
    }
}

static void work(const struct collective *collective, const struct pending_call *pending,
                 const struct record *record)
{
    const struct collective_call *call = &pending->call;

    switch (call->kind) {
    case COLLECTIVE_REDUCE_SCATTER:
        reduce(collective, pending, record, call->out);
        break;
    case COLLECTIVE_ALL_REDUCE:
        reduce(collective, pending, record,
               (unsigned char *)call->out + pending->before * call->element);
        break;
    case COLLECTIVE_ALL_GATHER:
        gather(collective, pending, record->in, false);
        break;
    case COLLECTIVE_BROADCAST:
        if (call->out != record->in[call->root] && pending->total > 0) {
            memcpy(call->out, record->in[call->root], pending->total * call->element);
        }
        break;
    case COLLECTIVE_KINDS:
        break;
    }
}

/* A round is done here; until all ranks have done it. With the mutex. */
static status_t finish(struct collective *collective, struct pending_call *pending,
                       struct record *record, int round)
{
    record->finished[round]++;
    signal_all(world_of(collective));
    return sleep_until_all(collective, pending, &record->finished[round]);
}

static status_t threads_wait(struct collective *collective, struct pending_call *pending)
{
    struct loop_world *world = world_of(collective);
    struct record *record = record_of(collective, pending->number);
    status_t status;

    pthread_mutex_lock(world->mutex);
    TRY_GOTO(sleep_until_all(collective, pending, &record->started), unlock);
    TRY_GOTO(read_begin(collective, pending), unlock);
    pthread_mutex_unlock(world->mutex);
    work(collective, pending, record);
    pthread_mutex_lock(world->mutex);
    read_end(collective);
    TRY_GOTO(finish(collective, pending, record, 0), unlock);
    if (pending->call.kind == COLLECTIVE_ALL_REDUCE) {
        TRY_GOTO(read_begin(collective, pending), unlock);
        pthread_mutex_unlock(world->mutex);
        gather(collective, pending, (const void *const *)record->out, true);
        pthread_mutex_lock(world->mutex);
        read_end(collective);
        TRY_GOTO(finish(collective, pending, record, 1), unlock);
    }
    record->left++;
    if (record->left == collective->group->size) {
        record->number = -1;
        signal_all(world);
    }

unlock:
    pthread_mutex_unlock(world->mutex);
    return status;
}

const struct collective_class threads_collective_class = {
    .name = "host",
    .create = threads_create,
    .destroy = threads_destroy,
    .start = threads_start,
    .wait = threads_wait,
};
