/* fuse.h - a bound on the start of a group, before anybody watches over it.
 *
 * MPI_Init_thread waits for all ranks without a limit: one that is stopped, or a launcher that hangs,
 * would hold the others for ever. A thread lit before it counts the seconds. If the fuse is not put
 * out in time, the thread says where this rank waits and ends the process with exit code 1, upon
 * which the launcher ends the others. Time in which this process itself was stopped does not count.
 *
 * Knows no MPI: the rank is the one that the launcher wrote into the environment.
 */
#ifndef COMM_FUSE_H
#define COMM_FUSE_H

#include "base/status.h"

extern double fuse_least_s; /* 45; a test lowers it */

struct fuse;

/* Seconds that a start may take: 1.5 times the heartbeat's limit, at least `fuse_least_s`, so that a
 * stopped rank is told within a minute by default and whoever starts thousands of ranks from a slow
 * disk can raise health.heartbeat_s. 0, without a limit, if heartbeat_s <= 0. */
double fuse_length(double heartbeat_s);

/* `place` (a literal) is where this rank waits from now on. seconds <= 0: no thread, *out is NULL. */
MUST_USE status_t fuse_light(double seconds, const char *place, struct fuse **out);
void fuse_move(struct fuse *fuse, const char *place); /* NULL is fine */
/* Once this has returned the fuse cannot fire any more; frees it. NULL is fine. */
void fuse_put_out(struct fuse *fuse);

#endif
