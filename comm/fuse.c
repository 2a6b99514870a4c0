/* fuse.c - ends a process whose start hangs. */
#include "comm/fuse.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/trace.h"

#define SECOND INT64_C(1000000000)
#define SLICE (SECOND / 4)

double fuse_least_s = 45;

struct fuse {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake; /* CLOCK_MONOTONIC */
    bool out;
    int64_t length; /* ns */
    _Atomic(const char *) place;
};

double fuse_length(double heartbeat_s)
{
    double length = 1.5 * heartbeat_s;

    if (heartbeat_s <= 0) {
        return 0;
    }
    return length > fuse_least_s ? length : fuse_least_s;
}

static int launched_rank(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK",
                                        "SLURM_PROCID"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *text = getenv(names[i]);
        if (text != NULL) {
            return atoi(text);
        }
    }
    return -1;
}

static void fire(const struct fuse *fuse, int rank)
{
    char who[32] = "this rank";

    if (rank >= 0) {
        snprintf(who, sizeof who, "rank %d", rank);
    }
    log_set_rank(rank);
    log_error("%s: MPI has not started after %g s: a rank is stopped, or the launcher hangs "
              "(waiting in %s); if the start is only slow, raise health.heartbeat_s",
              who, (double)fuse->length / 1e9, fuse->place);
    _exit(1); /* holding the mutex: fuse_put_out cannot return any more */
}

static void *fuse_main(void *arg)
{
    struct fuse *fuse = arg;
    int64_t burnt = 0;
    int rank = launched_rank();

    pthread_mutex_lock(&fuse->mutex);
    while (!fuse->out) {
        int64_t begin = trace_now(), end = begin + SLICE;
        struct timespec time = {(time_t)(end / SECOND), (long)(end % SECOND)};
        pthread_cond_timedwait(&fuse->wake, &fuse->mutex, &time);
        int64_t passed = trace_now() - begin;
        burnt += passed < 4 * SLICE ? passed : SLICE; /* longer: this process was stopped */
        if (!fuse->out && burnt >= fuse->length) {
            fire(fuse, rank);
        }
    }
    pthread_mutex_unlock(&fuse->mutex);
    return NULL;
}

/* With all signals blocked: they are for threads that know what to do with them. */
static bool start_thread(struct fuse *fuse)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = pthread_create(&fuse->thread, NULL, fuse_main, fuse) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

static void fuse_free(struct fuse *fuse)
{
    pthread_cond_destroy(&fuse->wake);
    pthread_mutex_destroy(&fuse->mutex);
    free(fuse);
}

status_t fuse_light(double seconds, const char *place, struct fuse **out)
{
    struct fuse *fuse;
    pthread_condattr_t attributes;

    if (seconds <= 0 || seconds > 1e9) {
        *out = NULL;
        return STATUS_OK;
    }
    fuse = calloc(1, sizeof *fuse);
    if (fuse == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to watch over the start");
    }
    fuse->length = (int64_t)(seconds * 1e9);
    fuse->place = place;
    pthread_mutex_init(&fuse->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&fuse->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    if (!start_thread(fuse)) {
        fuse_free(fuse);
        return FAIL(STATUS_NOMEM, "the thread that watches over the start cannot be started");
    }
    *out = fuse;
    return STATUS_OK;
}

void fuse_move(struct fuse *fuse, const char *place)
{
    if (fuse != NULL) {
        fuse->place = place;
    }
}

void fuse_put_out(struct fuse *fuse)
{
    if (fuse == NULL) {
        return;
    }
    pthread_mutex_lock(&fuse->mutex);
    fuse->out = true;
    pthread_cond_signal(&fuse->wake);
    pthread_mutex_unlock(&fuse->mutex);
    pthread_join(fuse->thread, NULL);
    fuse_free(fuse);
}
