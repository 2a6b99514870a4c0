/* limit.h - a bound on the start of a group, before anybody watches over it.
 *
 * MPI_Init_thread waits for all ranks without a limit: one that is stopped, or a launcher that hangs,
 * would hold the others for ever. A thread that is started before it counts the seconds. If the start is
 * not over in time, the thread says where this rank waits and ends the process with exit code 1, upon
 * which the launcher ends the others. Time in which this process itself was stopped does not count.
 *
 * Knows no MPI: the rank is the one that the launcher wrote into the environment.
 */
#ifndef COMM_HEALTH_START_LIMIT_H
#define COMM_HEALTH_START_LIMIT_H

#include "base/status.h"

extern double start_limit_least_s; /* 45; a test lowers it */

struct start_limit;

/* Seconds that a start may take: 1.5 times the heartbeat's limit, at least `start_limit_least_s`, so that a
 * stopped rank is told within a minute by default and whoever starts thousands of ranks from a slow
 * disk can raise health.heartbeat_s. 0, without a limit, if heartbeat_s <= 0. */
double start_limit_seconds(double heartbeat_s);

/* `place` (a literal) is where this rank waits from now on. seconds <= 0: no thread, *out is NULL. */
MUST_USE status_t start_limit_begin(double seconds, const char *place, struct start_limit **out);
void start_limit_move(struct start_limit *limit, const char *place); /* NULL is fine */
/* The start is over: from the return on the process is not ended any more. Frees it. NULL is fine. */
void start_limit_end(struct start_limit *limit);

#endif
