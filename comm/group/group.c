/* group.c - the verbs of a group: argument checks, agreement and comparison, then the class. */
#include "comm/comm.h"
#include "comm/health/health.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/trace.h"
#include "comm/transport.h"

/* ---- wakeup ---- */

bool wakeup_wait(struct wakeup *wakeup, int64_t until)
{
    struct timespec at = {(time_t)(until / 1000000000), (long)(until % 1000000000)};

    return pthread_cond_timedwait(&wakeup->condition, wakeup->mutex, &at) != ETIMEDOUT ||
           trace_now() < until;
}

void wakeup_signal(struct wakeup *wakeup)
{
    pthread_cond_broadcast(&wakeup->condition);
}

static void wakeup_init(struct wakeup *wakeup, pthread_mutex_t *shared)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&wakeup->condition, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&wakeup->own_mutex, NULL);
    wakeup->mutex = shared != NULL ? shared : &wakeup->own_mutex;
}

/* ---- group ---- */

static void fields_init(struct group *group, const struct group_class *class, int rank, int size,
                        const struct group_options *options)
{
    memset(group, 0, sizeof *group);
    group->class = class;
    group->rank = rank;
    group->size = size;
    group->local_rank = rank;
    group->local_size = size;
    if (options != NULL) {
        group->options = *options;
    }
}

void group_init(struct group *group, const struct group_class *class, int rank, int size,
                const struct group_options *options, pthread_mutex_t *shared)
{
    fields_init(group, class, rank, size, options);
    group->shared = &group->own_shared;
    group->top = group;
    wakeup_init(&group->shared->wakeup, shared);
    pthread_mutex_init(&group->shared->watch_mutex, NULL);
}

status_t group_init_split(struct group *group, const struct group *parent, const int *members,
                          int size)
{
    int rank = 0;

    while (members[rank] != parent->rank) {
        rank++;
    }
    fields_init(group, parent->class, rank, size, &parent->options);
    group->shared = parent->shared;
    group->top = parent->top;
    group->named = malloc((size_t)size * sizeof *group->named);
    if (group->named == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a group of %d ranks", size);
    }
    for (int i = 0; i < size; i++) {
        group->named[i] = group_named(parent, members[i]);
    }
    return STATUS_OK;
}

void group_fini(struct group *group)
{
    free(group->named);
    if (group->shared == &group->own_shared) {
        pthread_cond_destroy(&group->shared->wakeup.condition);
        pthread_mutex_destroy(&group->shared->wakeup.own_mutex);
        pthread_mutex_destroy(&group->shared->watch_mutex);
    }
}

const char *group_doing(struct group *group, char *buffer, size_t size)
{
    pthread_mutex_lock(&group->shared->watch_mutex);
    if (group->shared->describe != NULL) {
        buffer[0] = '\0';
        group->shared->describe(group->shared->describe_arg, buffer, size);
    } else {
        snprintf(buffer, size, "%s",
                 group->shared->inside != NULL ? group->shared->inside : "its own work");
    }
    pthread_mutex_unlock(&group->shared->watch_mutex);
    return buffer;
}

static void group_enter(struct group *group, const char *collective)
{
    pthread_mutex_lock(&group->shared->watch_mutex);
    group->shared->inside = collective;
    pthread_mutex_unlock(&group->shared->watch_mutex);
}

void group_fail(struct group *group, bool locked, const char *reason)
{
    if (!locked) {
        pthread_mutex_lock(group->shared->wakeup.mutex);
    }
    if (!group->shared->failed) {
        snprintf(group->shared->reason, sizeof group->shared->reason, "%s", reason);
        group->shared->failed = true;
        for (struct release *each = group->shared->releases; each != NULL; each = each->next) {
            each->run(each->arg);
        }
    }
    wakeup_signal(&group->shared->wakeup);
    if (!locked) {
        pthread_mutex_unlock(group->shared->wakeup.mutex);
    }
}

void release_enlist(struct group *group, struct release *release)
{
    pthread_mutex_lock(group->shared->wakeup.mutex);
    release->next = group->shared->releases;
    group->shared->releases = release;
    pthread_mutex_unlock(group->shared->wakeup.mutex);
}

void release_strike(struct group *group, struct release *release)
{
    pthread_mutex_lock(group->shared->wakeup.mutex);
    struct release **link = &group->shared->releases;
    while (*link != NULL && *link != release) {
        link = &(*link)->next;
    }
    if (*link != NULL) {
        *link = release->next;
    }
    pthread_mutex_unlock(group->shared->wakeup.mutex);
}

status_t group_lost(struct group *group)
{
    char doing[DOING_SIZE];
    bool told = atomic_exchange(&group->shared->told, true);

    /* The liveness thread has no log file, for a disk that hangs must not hold it: once told, the
     * line goes from here to this rank's file. */
    if (!atomic_exchange(&group->shared->filed, true)) {
        log_write(told ? LOG_DEBUG : LOG_ERROR, "%s while rank %d was in %s", group->shared->reason,
                  group_named(group, group->rank), group_doing(group, doing, sizeof doing));
    }
    return STATUS_PEER;
}

status_t group_check(struct group *group)
{
    return group->shared->failed ? group_lost(group) : STATUS_OK;
}

bool group_is_lost(const struct group *group)
{
    return group->shared->failed;
}

void group_give_up(struct group *group, const char *reason)
{
    group_fail(group, false, reason);
}

int64_t group_deadline(const struct group *group)
{
    double limit = group->options.deadline_s;

    return limit > 0 && limit < 1e9 ? trace_now() + (int64_t)(limit * 1e9) : INT64_MAX;
}

void group_close(struct group *group)
{
    if (group != NULL) {
        group_enter(group, "the shut-down");
        group->class->close(group);
    }
}

void group_abandon(struct group *group, int code)
{
    if (group != NULL) {
        group->class->abandon(group->top, code != 0 ? code : 1);
    }
}

int group_rank(const struct group *group)
{
    return group->rank;
}

int group_size(const struct group *group)
{
    return group->size;
}

int group_named(const struct group *group, int rank)
{
    return group->named != NULL ? group->named[rank] : rank;
}

int group_local_rank(const struct group *group)
{
    return group->local_rank;
}

int group_local_size(const struct group *group)
{
    return group->local_size;
}

bool group_is_threads(const struct group *group)
{
    return group->class->threads;
}

void group_watch(struct group *group, group_describe_fn describe, void *arg)
{
    pthread_mutex_lock(&group->shared->watch_mutex);
    group->shared->describe = describe;
    group->shared->describe_arg = arg;
    pthread_mutex_unlock(&group->shared->watch_mutex);
}

/* ---- splitting ---- */

struct membership { /* of a rank in what it is split into */
    int color, key, rank;
};

static int by_key(const void *a, const void *b)
{
    const struct membership *one = a, *other = b;

    return one->key != other->key ? (one->key > other->key ? 1 : -1)
                                  : (one->rank > other->rank) - (one->rank < other->rank);
}

status_t group_split(struct group *group, int color, int key, struct group **out)
{
    struct membership own = {color, key, group->rank}, *all;
    int *members, count = 0;
    status_t status = STATUS_OK;

    all = malloc((size_t)group->size * sizeof *all);
    members = malloc((size_t)group->size * sizeof *members);
    if (all == NULL || members == NULL) {
        status = FAIL(STATUS_NOMEM, "no memory to split a group of %d ranks", group->size);
    }
    TRY_GOTO(group_agree(group, status), free_lists);
    TRY_GOTO(group_allgather(group, &own, sizeof own, all), free_lists);
    for (int i = 0; i < group->size; i++) {
        if (all[i].color == color) {
            all[count++] = all[i];
        }
    }
    qsort(all, (size_t)count, sizeof *all, by_key);
    for (int i = 0; i < count; i++) {
        members[i] = all[i].rank;
    }
    group_enter(group, "the splitting of a group");
    status = group->class->split(group, members, count, out);
    group_enter(group, NULL);

free_lists:
    free(all);
    free(members);
    return status;
}

/* ---- collectives ---- */

status_t group_barrier(struct group *group)
{
    group_enter(group, "a barrier");
    status_t status = group->class->barrier(group);
    group_enter(group, NULL);
    return status;
}

status_t group_broadcast(struct group *group, void *data, size_t bytes, int root)
{
    CHECK(root >= 0 && root < group->size, "broadcast from rank %d of %d", root, group->size);
    group_enter(group, "a broadcast");
    status_t status = group->class->broadcast(group, data, bytes, root);
    group_enter(group, NULL);
    return status;
}

status_t group_allgatherv(struct group *group, const void *data, const size_t *counts, void *out)
{
    group_enter(group, "an exchange of values");
    status_t status = group->class->allgatherv(group, data, counts, out);
    group_enter(group, NULL);
    return status;
}

status_t group_allgather(struct group *group, const void *data, size_t bytes, void *out)
{
    size_t counts[group->size];

    for (int i = 0; i < group->size; i++) {
        counts[i] = bytes;
    }
    return group_allgatherv(group, data, counts, out);
}

status_t group_agree(struct group *group, status_t mine)
{
    int own = (int)mine;
    int all[group->size];
    status_t result = mine;

    status_t status = group_allgather(group, &own, sizeof own, all);
    if (status != STATUS_OK) {
        return mine != STATUS_OK ? mine : status;
    }
    for (int i = 0; i < group->size && result == STATUS_OK; i++) {
        if (all[i] != STATUS_OK) {
            result = FAIL(STATUS_PEER,
                          "rank %d failed (%s), so rank %d ends too; the message of "
                          "rank %d says why",
                          group_named(group, i), status_name((status_t)all[i]),
                          group_named(group, group->rank), group_named(group, i));
        }
    }
    return result;
}

/* "1, 3, 4 and 12 more" */
static void print_differing(const struct group *group, const uint64_t *values, char *buffer,
                            size_t room)
{
    size_t used = 0;
    int shown = 0, differing = 0;

    for (int i = 1; i < group->size; i++) {
        if (values[i] == values[0]) {
            continue;
        }
        differing++;
        if (used + 40 < room) {
            used += (size_t)snprintf(buffer + used, room - used, "%s%d", shown > 0 ? ", " : "",
                                     group_named(group, i));
            shown++;
        }
    }
    if (differing > shown) {
        snprintf(buffer + used, room - used, " and %d more", differing - shown);
    }
}

status_t group_same(struct group *group, uint64_t value, const char *what)
{
    uint64_t all[group->size];
    status_t status = STATUS_OK;
    char ranks[256];

    TRY(group_allgather(group, &value, sizeof value, all));
    for (int i = 1; i < group->size; i++) {
        if (all[i] != all[0]) {
            status = STATUS_MISMATCH;
        }
    }
    if (status != STATUS_OK) {
        print_differing(group, all, ranks, sizeof ranks);
        status = FAIL(STATUS_MISMATCH,
                      "%s on rank %d is not the same on rank %s (rank %d has %016" PRIx64
                      ", rank %d %016" PRIx64 "); start every rank with the same program, "
                      "files and arguments",
                      what, group_named(group, 0), ranks, group_named(group, group->rank), value,
                      group_named(group, 0), all[0]);
    }
    return status;
}

void group_on_sigterm(void (*ask)(void))
{
    health_on_sigterm(ask);
}
