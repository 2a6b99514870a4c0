/* clocks.c - how far the clocks of the hosts are apart, to a millisecond or so: enough to match their logs. */
#include <time.h>

#include "base/trace.h"
#include "tools/preflight/preflight.h"

enum { ROUNDS = 12 };

static double wall_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* All ranks leave a barrier at about the same moment and look at their clocks. What they differ by is the clocks'
 * difference and some luck: the middle of what the rounds gave, give or take half of their spread. */
status_t clocks_measure(struct group *group, double *out_ahead, double *out_error)
{
    double all[group_size(group)], least = 0, most = 0;
    for (int round = 0; round < ROUNDS; round++) {
        TRY(group_barrier(group));
        double now = wall_clock();
        TRY(group_allgather(group, &now, sizeof now, all));
        double ahead = now - all[0];
        least = round == 0 || ahead < least ? ahead : least;
        most = round == 0 || ahead > most ? ahead : most;
    }
    *out_ahead = (least + most) / 2;
    *out_error = (most - least) / 2;
    return STATUS_OK;
}
