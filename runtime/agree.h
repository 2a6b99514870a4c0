/* agree.h - private to runtime/: what must be the same on all ranks, compared line by line. */
#ifndef RUNTIME_AGREE_H
#define RUNTIME_AGREE_H

#include "comm/comm.h"

/* Is `own` rank 0's text? A rank where it is not gets STATUS_MISMATCH and says "this rank <unlike> than
 * rank 0:", the first line that differs in both, and what to do; the others get STATUS_PEER. Collective. */
MUST_USE status_t agree_on_text(struct group *group, const char *own, const char *unlike,
                                const char *advice);

#endif
