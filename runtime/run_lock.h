/* run_lock.h - private to runtime/: one job at a time in a run folder, which is one folder for all ranks. */
#ifndef RUNTIME_RUN_LOCK_H
#define RUNTIME_RUN_LOCK_H

#include "comm/comm.h"

/* Takes FOLDER/lock; *out is its descriptor, to be closed at the end of the run. The system lets go of it when
 * the process ends, however it ends, on other hosts too where the file system has locks. Where it has none, a
 * warning says so. Held by another job: STATUS_INVALID names it. */
MUST_USE status_t run_lock_take(const char *folder, int *out);
/* Every rank leaves a file there and rank 0 looks for all: STATUS_INVALID names the host of a rank that sees
 * another folder under this name. Collective. */
MUST_USE status_t run_lock_check_shared(struct group *group, const char *folder);

#endif
