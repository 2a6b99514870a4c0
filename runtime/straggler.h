/* straggler.h - private to runtime/: a rank that has become slower than the others.
 *
 * The stages of a pipeline do different work, so a rank is compared with itself: the median of what its operations
 * took (a step without its waits) over a window of at least 16 steps and 10 s, by the least such median of the run. Where that ratio is more
 * than `limit` above the median of the other ranks' ratios, in two windows one after the other, the rank is told. What
 * slows all ranks alike (longer steps, a busy host) is none's fault.
 */
#ifndef RUNTIME_STRAGGLER_H
#define RUNTIME_STRAGGLER_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct straggler;

/* limit: 0.1 = 10 %; 0 or one rank: *out is NULL, which the others take. */
MUST_USE status_t straggler_create(int ranks, double limit, struct straggler **out);
void straggler_destroy(struct straggler *straggler);
/* What a rank's operations took in the step under way. Any thread, one at a time. */
void straggler_add(struct straggler *straggler, int rank, double seconds);
/* All ranks have been added; the step took so many seconds. Prints a line about steps up to `step`, or "" if there
 * is nothing to say. */
void straggler_step(struct straggler *straggler, int64_t step, double seconds, char *out,
                    size_t size);

#endif
