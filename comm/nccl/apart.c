/* apart.c - calls that block without a limit, in a thread of their own (apart.h). */
#include "comm/nccl/apart.h"

#include <string.h>

#include "base/log.h"

enum { RUNNING, FINISHED, FORSAKEN };

static void *run(void *argument)
{
    struct apart *apart = argument;
    struct wakeup *wakeup = &apart->group->shared->wakeup;
    int running = RUNNING;

    log_set_rank(group_named(apart->group, apart->group->rank));
    log_capture(apart->said, sizeof apart->said);
    apart->result = apart->body(apart->arg);
    if (atomic_compare_exchange_strong(&apart->state, &running, FINISHED)) {
        pthread_mutex_lock(wakeup->mutex);
        wakeup_signal(wakeup);
        pthread_mutex_unlock(wakeup->mutex);
    }
    return NULL;
}

status_t apart_run(struct apart *apart, int64_t until)
{
    struct group_shared *shared = apart->group->shared;
    int running = RUNNING;
    pthread_t thread;

    apart->state = RUNNING;
    apart->said[0] = '\0';
    if (pthread_create(&thread, NULL, run, apart) != 0) {
        return FAIL(STATUS_TIMEOUT, "rank %d: no thread for NCCL to run in",
                    group_named(apart->group, apart->group->rank));
    }
    pthread_mutex_lock(shared->wakeup.mutex);
    while (apart->state == RUNNING && !shared->failed && wakeup_wait(&shared->wakeup, until)) {
    }
    pthread_mutex_unlock(shared->wakeup.mutex);
    if (atomic_compare_exchange_strong(&apart->state, &running, FORSAKEN)) {
        pthread_detach(thread);
        return shared->failed ? STATUS_PEER : STATUS_TIMEOUT;
    }
    pthread_join(thread, NULL);
    return STATUS_OK;
}

status_t apart_result(const struct apart *apart)
{
    return apart->result == STATUS_OK
               ? STATUS_OK
               : FAIL(apart->result, "%.*s", (int)strcspn(apart->said, "\n"), apart->said);
}
