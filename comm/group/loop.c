/* loop.c - a group of threads: all ranks in this process, one mutex for everything they share.
 *
 * A collective is one meeting. Each rank copies its part into the stage of the meeting's generation;
 * the last to come opens the next generation, and then everybody copies out. Two stages suffice: a
 * rank can be in generation g + 2 only after all have copied out of g.
 */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "comm/comm.h"
#include "comm/transport.h"

struct loop_rank { /* what a thread starts with */
    struct group *group;
    group_body_fn body;
    void *arg;
    status_t status;
};

static struct loop_world *world_of(const struct group *group)
{
    return group->state;
}

/* ---- collectives ---- */

/* Grows both stages to `bytes`, for the next collective of the kind comes to the other; the mutex is
 * held. */
static unsigned char *stage_reserve(struct loop_world *world, size_t bytes)
{
    for (int parity = 0; parity < 2 && world->stage_size < bytes; parity++) {
        unsigned char *grown = realloc(world->stage[parity], bytes);
        if (grown == NULL) {
            return NULL;
        }
        world->stage[parity] = grown;
    }
    world->stage_size = bytes > world->stage_size ? bytes : world->stage_size;
    return world->stage[world->generation & 1];
}

static int first_left(const struct loop_world *world)
{
    for (int i = 0; i < world->ranks; i++) {
        if (world->top->finished[world->member[i]]) {
            return world->member[i];
        }
    }
    return -1;
}

/* Until all ranks have come; the mutex is held. */
static status_t meet(struct group *group)
{
    struct loop_world *world = world_of(group);
    int64_t generation = world->generation;
    int64_t until = group_deadline(group);

    world->arrived++;
    if (world->arrived == world->ranks) {
        world->arrived = 0;
        world->generation++;
        for (int i = 0; i < world->ranks; i++) {
            wakeup_signal(&world->group[i].shared->wakeup);
        }
        return STATUS_OK;
    }
    while (world->generation == generation) {
        if (group->shared->failed) {
            return group_lost(group);
        }
        if (first_left(world) >= 0) {
            return FAIL(STATUS_PEER, "rank %d has left the group while rank %d was in %s",
                        first_left(world), group_named(group, group->rank),
                        group->shared->inside != NULL ? group->shared->inside : "a meeting");
        }
        if (!wakeup_wait(&group->shared->wakeup, until)) {
            return FAIL(STATUS_TIMEOUT,
                        "only %d of %d ranks came within %g s while rank %d was in "
                        "%s; see what the others did last, or raise health.deadline_s",
                        world->arrived, world->ranks, group->options.deadline_s,
                        group_named(group, group->rank),
                        group->shared->inside != NULL ? group->shared->inside : "a meeting");
        }
    }
    return STATUS_OK;
}

static status_t loop_exchange(struct group *group, const void *data, size_t begin, size_t bytes,
                              size_t total, void *out)
{
    struct loop_world *world = world_of(group);
    status_t status;

    pthread_mutex_lock(world->mutex);
    if (loop_is_dead(group)) {
        status = STATUS_INTERRUPTED;
        goto unlock;
    }
    int parity = (int)(world->generation & 1);
    unsigned char *stage = stage_reserve(world, total + 1);
    if (stage == NULL) {
        status = FAIL(STATUS_NOMEM, "no memory for an exchange of %zu bytes", total);
        goto unlock;
    }
    if (bytes > 0) {
        memcpy(stage + begin, data, bytes);
    }
    TRY_GOTO(meet(group), unlock);
    if (total > 0) {
        memcpy(out, world->stage[parity], total);
    }

unlock:
    pthread_mutex_unlock(world->mutex);
    return status;
}

static status_t loop_barrier(struct group *group)
{
    return loop_exchange(group, NULL, 0, 0, 0, NULL);
}

static status_t loop_broadcast(struct group *group, void *data, size_t bytes, int root)
{
    return loop_exchange(group, data, 0, group->rank == root ? bytes : 0, bytes, data);
}

static status_t loop_allgatherv(struct group *group, const void *data, const size_t *counts,
                                void *out)
{
    size_t begin = 0, total = 0;

    for (int i = 0; i < group->size; i++) {
        begin += i < group->rank ? counts[i] : 0;
        total += counts[i];
    }
    return loop_exchange(group, data, begin, counts[group->rank], total, out);
}

static status_t loop_clocks(struct group *group, int64_t *out_ahead)
{
    memset(out_ahead, 0, (size_t)group->size * sizeof *out_ahead);
    return STATUS_OK;
}

/* ---- leaving ---- */

/* `failed`: the others cannot go on without this rank. */
static void leave(struct group *group, bool failed)
{
    struct loop_world *world = world_of(group);
    char reason[REASON_SIZE];

    snprintf(reason, sizeof reason, "rank %d gave up (its own message says why)", group->rank);
    pthread_mutex_lock(world->mutex);
    world->finished[group->rank] = true;
    for (int i = 0; i < world->ranks; i++) {
        if (failed && i != group->rank) {
            group_fail(&world->group[i], true, reason);
        }
        wakeup_signal(&world->group[i].shared->wakeup);
    }
    pthread_mutex_unlock(world->mutex);
}

static void world_fini(struct loop_world *world);

/* The last to close a split world frees it. */
static void loop_close(struct group *group)
{
    struct loop_world *world = world_of(group);

    if (world->top == world) {
        leave(group, false);
        return;
    }
    pthread_mutex_t *mutex = world->mutex;
    pthread_mutex_lock(mutex);
    bool last = --world->holders == 0;
    pthread_mutex_unlock(mutex);
    if (last) {
        world_fini(world);
        free(world);
    }
}

static void loop_abandon(struct group *group, int code)
{
    (void)code;
    leave(group, true);
}

static status_t loop_split(struct group *group, const int *members, int size, struct group **out);

static const struct group_class loop_class = {
    .threads = true,
    .close = loop_close,
    .abandon = loop_abandon,
    .barrier = loop_barrier,
    .broadcast = loop_broadcast,
    .allgatherv = loop_allgatherv,
    .clocks = loop_clocks,
    .split = loop_split,
};

/* ---- the world ---- */

static void world_fini(struct loop_world *world)
{
    for (int i = 0; world->group != NULL && i < world->ranks; i++) {
        group_fini(&world->group[i]);
    }
    pthread_mutex_destroy(&world->own_mutex);
    free(world->group);
    free(world->member);
    free(world->puts);
    free(world->dead);
    free(world->finished);
    free(world->wires_created);
    free(world->stage[0]);
    free(world->stage[1]);
}

/* What a world has, split or opened. */
static status_t world_alloc(struct loop_world *world, struct loop_world *top, int ranks)
{
    size_t n = (size_t)ranks;

    memset(world, 0, sizeof *world);
    pthread_mutex_init(&world->own_mutex, NULL);
    world->top = top;
    world->mutex = top == world ? &world->own_mutex : top->mutex;
    world->member = calloc(n, sizeof *world->member);
    world->wires_created = calloc(n, sizeof *world->wires_created);
    world->group = calloc(n, sizeof *world->group);
    if (world->member == NULL || world->wires_created == NULL || world->group == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a group of %d threads", ranks);
    }
    return STATUS_OK;
}

static status_t world_init(struct loop_world *world, int ranks, const struct group_options *options,
                           const struct loop_faults *faults)
{
    size_t n = (size_t)ranks;

    TRY(world_alloc(world, world, ranks));
    if (faults != NULL) {
        world->faults = *faults;
    }
    world->puts = calloc(n, sizeof *world->puts);
    world->dead = calloc(n, sizeof *world->dead);
    world->finished = calloc(n, sizeof *world->finished);
    if (world->puts == NULL || world->dead == NULL || world->finished == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a group of %d threads", ranks);
    }
    world->ranks = ranks;
    for (int i = 0; i < ranks; i++) {
        group_init(&world->group[i], &loop_class, i, ranks, options, world->mutex);
        world->group[i].state = world;
        world->member[i] = i;
    }
    return STATUS_OK;
}

/* A world of those `members` of another one. */
static status_t world_split(struct loop_world *from, const int *members, int size,
                            struct loop_world **out)
{
    struct loop_world *world = malloc(sizeof *world);
    status_t status = STATUS_NOMEM;

    if (world == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a group of %d threads", size);
    }
    TRY_GOTO(world_alloc(world, from->top, size), fini_world);
    for (int i = 0; i < size; i++) {
        world->ranks = i + 1;
        world->member[i] = from->member[members[i]];
        TRY_GOTO(group_init_split(&world->group[i], &from->group[members[i]], members, size),
                 fini_world);
        world->group[i].state = world;
    }
    world->holders = size;
    *out = world;
    return STATUS_OK;

fini_world:
    world_fini(world);
    free(world);
    return status;
}

/* The first of the members makes the world for all of them. */
static status_t loop_split(struct group *group, const int *members, int size, struct group **out)
{
    struct loop_world *made = NULL, *all[group->size];
    int rank = 0;
    status_t status = STATUS_OK;

    if (members[0] == group->rank) {
        status = world_split(world_of(group), members, size, &made);
    }
    TRY(group_agree(group, status));
    TRY(group_allgather(group, &made, sizeof made, all));
    while (members[rank] != group->rank) {
        rank++;
    }
    *out = &all[members[0]]->group[rank];
    return STATUS_OK;
}

/* The rank dies here: it does nothing more, and the others learn of it. */
static status_t die(struct loop_world *top, int rank)
{
    char reason[REASON_SIZE];

    top->dead[rank] = true;
    snprintf(reason, sizeof reason, "rank %d died", rank);
    for (int i = 0; i < top->ranks; i++) {
        if (i != rank) {
            group_fail(&top->group[i], true, reason);
        }
    }
    log_warn("rank %d dies at its put number %" PRId64 ", as the test asks", rank,
             top->faults.die_put);
    return STATUS_INTERRUPTED;
}

status_t loop_sends(struct group *group)
{
    struct loop_world *top = world_of(group)->top;
    const struct loop_faults *faults = &top->faults;
    int rank = world_of(group)->member[group->rank];

    if (top->dead[rank]) {
        return STATUS_INTERRUPTED;
    }
    if (faults->die && faults->die_rank == rank && top->puts[rank] == faults->die_put) {
        return die(top, rank);
    }
    top->puts[rank]++;
    return STATUS_OK;
}

static void *rank_main(void *arg)
{
    struct loop_rank *rank = arg;

    log_set_rank(rank->group->rank);
    rank->status = rank->body(rank->group, rank->arg);
    leave(rank->group, rank->status != STATUS_OK);
    return NULL;
}

/* Starts the ranks and joins those that started. */
static status_t run_ranks(struct loop_rank *rank, pthread_t *thread, int ranks)
{
    status_t first = STATUS_OK;
    int started = 0;

    while (started < ranks &&
           pthread_create(&thread[started], NULL, rank_main, &rank[started]) == 0) {
        started++;
    }
    if (started < ranks) {
        first = FAIL(STATUS_NOMEM, "only %d of %d threads could be started", started, ranks);
        leave(rank[started].group, true);
    }
    for (int i = 0; i < started; i++) {
        pthread_join(thread[i], NULL);
        status_t status = rank[i].status;
        if (status != STATUS_OK && (first == STATUS_OK || first == STATUS_PEER)) {
            first = status;
        }
    }
    return first;
}

status_t loop_faults_read(const char *text, struct loop_faults *out)
{
    long long us, one_in = 0, times = 0;
    int length = 0,
        values = sscanf(text, "%lld%n,%lld,%lld%n", &us, &length, &one_in, &times, &length);
    if ((values != 1 && values != 3) || text[length] != '\0' || us < 0 || us > 60000000 ||
        one_in < 0 || one_in > INT_MAX || times < 0 || times > 1000000) {
        return FAIL(
            STATUS_INVALID,
            "a delay of messages is US or US,ONE_IN,TIMES: microseconds, and one message in "
            "ONE_IN TIMES as late; not \"%s\"",
            text);
    }
    *out =
        (struct loop_faults){.delay_us = us, .late_one_in = (int)one_in, .late_times = (int)times};
    return STATUS_OK;
}

status_t group_run_threads(int ranks, const struct group_options *options,
                           const struct loop_faults *faults, group_body_fn body, void *arg)
{
    struct loop_world world;
    struct loop_rank *rank = calloc((size_t)ranks, sizeof *rank);
    pthread_t *thread = calloc((size_t)ranks, sizeof *thread);
    status_t status;

    CHECK(ranks > 0, "a group of %d ranks", ranks);
    TRY_GOTO(world_init(&world, ranks, options, faults), fini_world);
    if (rank == NULL || thread == NULL) {
        status = FAIL(STATUS_NOMEM, "no memory for %d threads", ranks);
        goto fini_world;
    }
    for (int i = 0; i < ranks; i++) {
        rank[i] = (struct loop_rank){&world.group[i], body, arg, STATUS_OK};
    }
    status = run_ranks(rank, thread, ranks);

fini_world:
    world_fini(&world);
    free(thread);
    free(rank);
    return status;
}
