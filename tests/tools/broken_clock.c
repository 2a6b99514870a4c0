/* broken_clock.c - a host whose clock of the day is wrong, for a program that loads this before the C library.
 *
 * BROKEN_CLOCK=SECONDS:AFTER puts it SECONDS ahead from AFTER seconds of the program on; the monotonic clock is right.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static int (*real)(clockid_t, struct timespec *);

static double ahead(void)
{
    static double begun;
    const char *order = getenv("BROKEN_CLOCK");
    double by, after;
    struct timespec now;
    if (real == NULL) {
        *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
    }
    real(CLOCK_MONOTONIC, &now);
    double seconds = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
    begun = begun > 0 ? begun : seconds;
    return order != NULL && sscanf(order, "%lf:%lf", &by, &after) == 2 && seconds - begun >= after
               ? by
               : 0;
}

int clock_gettime(clockid_t clock, struct timespec *out)
{
    double by = ahead();
    int code = real(clock, out);
    if (clock == CLOCK_REALTIME) {
        out->tv_sec += (time_t)by;
    }
    return code;
}

int gettimeofday(struct timeval *out, void *zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out != NULL) {
        *out = now.tv_sec;
    }
    return now.tv_sec;
}
