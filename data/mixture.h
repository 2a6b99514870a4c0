/* mixture.h - which source sequence s of a run comes from, without state.
 *
 * Weights are whole numbers q[i] with sum P. A table of one period of P sequences is made once, by
 * Tijdeman's rule for fair schedules: of the first n sequences source i gets n q[i] / P, give or take
 * less than one, for every n; a whole period gives it exactly q[i], so the table repeats for ever.
 */
#ifndef RUNTIME_MIXTURE_H
#define RUNTIME_MIXTURE_H

#include <stdint.h>

#include "base/status.h"

enum { MIXTURE_SOURCES = 256, MIXTURE_PERIOD = 1 << 20 };

struct mixture;

/* All weights at least 1, their sum at most MIXTURE_PERIOD. */
MUST_USE status_t mixture_create(const int64_t *weights, int sources, struct mixture **out);
void mixture_destroy(struct mixture *mixture);

/* Sequence s is the index-th (from 0) that its source gives. */
void mixture_at(const struct mixture *mixture, int64_t s, int *out_source, int64_t *out_index);

#endif
