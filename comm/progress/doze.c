/* doze.c - sleeping until woken, or for a nap (doze.h). */
#include "comm/progress/doze.h"

#include <errno.h>
#include <time.h>

#include "base/trace.h"

void doze_init(struct doze *doze)
{
    pthread_condattr_t attributes;

    pthread_mutex_init(&doze->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&doze->condition, &attributes);
    pthread_condattr_destroy(&attributes);
    doze->woken = false;
}

void doze_fini(struct doze *doze)
{
    pthread_cond_destroy(&doze->condition);
    pthread_mutex_destroy(&doze->mutex);
}

void doze_wake(struct doze *doze)
{
    pthread_mutex_lock(&doze->mutex);
    doze->woken = true;
    pthread_cond_signal(&doze->condition);
    pthread_mutex_unlock(&doze->mutex);
}

void doze_sleep(struct doze *doze, int64_t nap)
{
    int64_t until = trace_now() + nap;
    struct timespec at = {(time_t)(until / 1000000000), (long)(until % 1000000000)};

    pthread_mutex_lock(&doze->mutex);
    while (!doze->woken) {
        if (nap == 0) {
            pthread_cond_wait(&doze->condition, &doze->mutex);
        } else if (pthread_cond_timedwait(&doze->condition, &doze->mutex, &at) == ETIMEDOUT) {
            break;
        }
    }
    doze->woken = false;
    pthread_mutex_unlock(&doze->mutex);
}
