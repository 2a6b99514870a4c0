/* group.c - the verbs of a group: argument checks, agreement and comparison, then the class. */
#include "comm/comm.h"
#include "comm/health/health.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
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

void group_init(struct group *group, const struct group_class *class, int rank, int size,
                const struct group_options *options, pthread_mutex_t *shared)
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
    wakeup_init(&group->wakeup, shared);
    pthread_mutex_init(&group->watch_mutex, NULL);
}

void group_fini(struct group *group)
{
    pthread_cond_destroy(&group->wakeup.condition);
    pthread_mutex_destroy(&group->wakeup.own_mutex);
    pthread_mutex_destroy(&group->watch_mutex);
}

const char *group_doing(struct group *group, char *buffer, size_t size)
{
    pthread_mutex_lock(&group->watch_mutex);
    if (group->describe != NULL) {
        buffer[0] = '\0';
        group->describe(group->describe_arg, buffer, size);
    } else {
        snprintf(buffer, size, "%s", group->inside != NULL ? group->inside : "its own work");
    }
    pthread_mutex_unlock(&group->watch_mutex);
    return buffer;
}

static void group_enter(struct group *group, const char *collective)
{
    pthread_mutex_lock(&group->watch_mutex);
    group->inside = collective;
    pthread_mutex_unlock(&group->watch_mutex);
}

void group_fail(struct group *group, bool locked, const char *reason)
{
    if (!locked) {
        pthread_mutex_lock(group->wakeup.mutex);
    }
    if (!group->failed) {
        snprintf(group->reason, sizeof group->reason, "%s", reason);
        group->failed = true;
        for (struct wire *wire = group->wires; wire != NULL; wire = wire->next) {
            wire->class->release(wire);
        }
    }
    wakeup_signal(&group->wakeup);
    if (!locked) {
        pthread_mutex_unlock(group->wakeup.mutex);
    }
}

status_t group_lost(struct group *group)
{
    char doing[DOING_SIZE];
    bool told = atomic_exchange(&group->told, true);

    /* The liveness thread has no log file, for a disk that hangs must not hold it: once told, the
     * line goes from here to this rank's file. */
    if (!atomic_exchange(&group->filed, true)) {
        log_write(told ? LOG_DEBUG : LOG_ERROR, "%s while rank %d was in %s", group->reason,
                  group->rank, group_doing(group, doing, sizeof doing));
    }
    return STATUS_PEER;
}

status_t group_check(struct group *group)
{
    return group->failed ? group_lost(group) : STATUS_OK;
}

bool group_is_lost(const struct group *group)
{
    return group->failed;
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
        group->class->abandon(group, code != 0 ? code : 1);
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
    pthread_mutex_lock(&group->watch_mutex);
    group->describe = describe;
    group->describe_arg = arg;
    pthread_mutex_unlock(&group->watch_mutex);
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
                          i, status_name((status_t)all[i]), group->rank, i);
        }
    }
    return result;
}

/* "1, 3, 4 and 12 more" */
static void print_differing(const uint64_t *values, int size, char *buffer, size_t room)
{
    size_t used = 0;
    int shown = 0, differing = 0;

    for (int i = 1; i < size; i++) {
        if (values[i] == values[0]) {
            continue;
        }
        differing++;
        if (used + 40 < room) {
            used += (size_t)snprintf(buffer + used, room - used, "%s%d", shown > 0 ? ", " : "", i);
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
        print_differing(all, group->size, ranks, sizeof ranks);
        status = FAIL(STATUS_MISMATCH,
                      "%s on rank 0 is not the same on rank %s (rank %d has %016" PRIx64
                      ", rank 0 %016" PRIx64 "); start every rank with the same program, "
                      "files and arguments",
                      what, ranks, group->rank, value, all[0]);
    }
    return status;
}

void group_on_sigterm(void (*ask)(void))
{
    health_on_sigterm(ask);
}
