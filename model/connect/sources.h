/* sources.h - private to model/: dense_pattern.sources, connectivity written out as a list. */
#ifndef MODEL_SOURCES_H
#define MODEL_SOURCES_H

#include <stdint.h>

#include "base/status.h"

/* What `text` says of one consumer (1..layers): reads [layers + 1] gets for each X_j the mask of ways
 * (1 q, 2 k, 4 v, 8 r) that read it, out_ways the ways formed (0: this consumer does not exist). The
 * whole text is checked whichever consumer is asked for; `source` ("" if nobody knows) goes before the
 * message. */
MUST_USE status_t sources_read(const char *text, int64_t layers, int consumer, const char *source,
                               int *reads, int *out_ways);

#endif
