/* arena.h - measure, allocate once, point.
 *
 * A layout is walked twice with the same code: first over an arena that only counts
 * (arena_init_measure), then over one bound to memory of that size (arena_create). Nothing is freed
 * before the whole arena is. Every piece is aligned to ARENA_ALIGN bytes and named; the names and
 * sizes are what the memory table prints.
 *
 *     offset 0 [ piece | pad | piece | pad | ... ] size
 */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include <stddef.h>

#include "base/device.h"
#include "base/status.h"

enum { ARENA_ALIGN = 256 }; /* bytes; also what GPU copies and vector loads like */

struct arena {
    unsigned char *base;   /* NULL while measuring */
    size_t size;           /* bytes bound; 0 while measuring */
    size_t used;           /* bytes handed out so far, padding included */
    struct device *device; /* whose memory it is; NULL = the host's */
    enum memory_kind kind;
};

void arena_init_measure(struct arena *arena);
/* Allocates `size` zeroed bytes of host memory (touched, so that it is really there). */
MUST_USE status_t arena_create(struct arena *arena, size_t size, const char *what);
/* The same on a device (borrowed; NULL = arena_create), zeroed when `stream` gets there. */
MUST_USE status_t arena_create_on(struct arena *arena, struct device *device, enum memory_kind kind,
                                  void *stream, size_t size, const char *what);
void arena_destroy(struct arena *arena);

/* Hands out `bytes` (0 gives NULL). While measuring it returns NULL and counts. Overflowing a bound
 * arena is our bug (CHECK). */
void *arena_alloc(struct arena *arena, size_t bytes);

#endif
