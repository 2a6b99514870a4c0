/* limit.c - ends a process whose start hangs. */
#include "comm/health/start_limit.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
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

double start_limit_least_s = 45;

struct start_limit {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake; /* CLOCK_MONOTONIC */
    bool out;
    int64_t length; /* ns */
    _Atomic(const char *) place;
};

double start_limit_seconds(double heartbeat_s)
{
    double length = 1.5 * heartbeat_s;

    if (heartbeat_s <= 0) {
        return 0;
    }
    return length > start_limit_least_s ? length : start_limit_least_s;
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

/* ", here eth0 10.0.0.1, docker0 172.17.0.1": IPv4 addresses that are up, loopback left out. */
static void interfaces_print(char *out, size_t size)
{
    struct ifaddrs *list = NULL;
    size_t length = 0;
    out[0] = '\0';
    if (getifaddrs(&list) != 0) {
        return;
    }
    for (const struct ifaddrs *at = list; at != NULL && length + 64 < size; at = at->ifa_next) {
        char address[INET_ADDRSTRLEN];
        if (at->ifa_addr == NULL || at->ifa_addr->sa_family != AF_INET ||
            (at->ifa_flags & IFF_UP) == 0 || (at->ifa_flags & IFF_LOOPBACK) != 0) {
            continue;
        }
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)at->ifa_addr;
        inet_ntop(AF_INET, &in->sin_addr, address, sizeof address);
        length += (size_t)snprintf(out + length, size - length, "%s%.15s %s",
                                   length == 0 ? ", here " : ", ", at->ifa_name, address);
    }
    freeifaddrs(list);
}

static void end_process(const struct start_limit *limit, int rank)
{
    char who[32] = "this rank", interfaces[256];

    if (rank >= 0) {
        snprintf(who, sizeof who, "rank %d", rank);
    }
    interfaces_print(interfaces, sizeof interfaces);
    log_set_rank(rank);
    log_error("%s: MPI has not started after %g s: a rank is stopped, or the launcher hangs "
              "(waiting in %s); or hosts have an address in common (docker0, virbr0%s), by which "
              "MPI looks "
              "for them: OMPI_MCA_btl_tcp_if_include=, OMPI_MCA_oob_tcp_if_include= and "
              "UCX_NET_DEVICES= name "
              "the network to use; if the start is only slow, raise health.heartbeat_s",
              who, (double)limit->length / 1e9, limit->place, interfaces);
    _exit(1); /* holding the mutex: start_limit_end cannot return any more */
}

static void *start_limit_main(void *arg)
{
    struct start_limit *limit = arg;
    int64_t passed_in_all = 0;
    int rank = launched_rank();

    pthread_mutex_lock(&limit->mutex);
    while (!limit->out) {
        int64_t begin = trace_now(), end = begin + SLICE;
        struct timespec time = {(time_t)(end / SECOND), (long)(end % SECOND)};
        pthread_cond_timedwait(&limit->wake, &limit->mutex, &time);
        int64_t passed = trace_now() - begin;
        passed_in_all += passed < 4 * SLICE ? passed : SLICE; /* longer: this process was stopped */
        if (!limit->out && passed_in_all >= limit->length) {
            end_process(limit, rank);
        }
    }
    pthread_mutex_unlock(&limit->mutex);
    return NULL;
}

/* With all signals blocked: they are for threads that know what to do with them. */
static bool start_thread(struct start_limit *limit)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = pthread_create(&limit->thread, NULL, start_limit_main, limit) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

static void start_limit_free(struct start_limit *limit)
{
    pthread_cond_destroy(&limit->wake);
    pthread_mutex_destroy(&limit->mutex);
    free(limit);
}

status_t start_limit_begin(double seconds, const char *place, struct start_limit **out)
{
    struct start_limit *limit;
    pthread_condattr_t attributes;

    if (seconds <= 0 || seconds > 1e9) {
        *out = NULL;
        return STATUS_OK;
    }
    limit = calloc(1, sizeof *limit);
    if (limit == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to watch over the start");
    }
    limit->length = (int64_t)(seconds * 1e9);
    limit->place = place;
    pthread_mutex_init(&limit->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&limit->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    if (!start_thread(limit)) {
        start_limit_free(limit);
        return FAIL(STATUS_NOMEM, "the thread that watches over the start cannot be started");
    }
    *out = limit;
    return STATUS_OK;
}

void start_limit_move(struct start_limit *limit, const char *place)
{
    if (limit != NULL) {
        limit->place = place;
    }
}

void start_limit_end(struct start_limit *limit)
{
    if (limit == NULL) {
        return;
    }
    pthread_mutex_lock(&limit->mutex);
    limit->out = true;
    pthread_cond_signal(&limit->wake);
    pthread_mutex_unlock(&limit->mutex);
    pthread_join(limit->thread, NULL);
    start_limit_free(limit);
}
