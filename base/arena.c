/* arena.c - a bump allocator that can also only count. */
#include "base/arena.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void arena_init_measure(struct arena *arena)
{
    *arena = (struct arena){0};
}

enum { HUGE_PAGE = 2 << 20 };

/* Large memory in huge pages, where the system gives them to those who ask: it is there several times sooner, and
 * its addresses cost less to look up. */
static void *aligned_memory(size_t bytes)
{
    bool large = bytes >= 2 * HUGE_PAGE;
    void *memory = NULL;
    if (posix_memalign(&memory, large ? HUGE_PAGE : ARENA_ALIGN, bytes) != 0) {
        return NULL;
    }
    if (large) {
        (void)madvise(memory, bytes, MADV_HUGEPAGE);
    }
    return memory;
}

status_t arena_create(struct arena *arena, size_t size, const char *what)
{
    size_t bound = size > 0 ? size : 1; /* an empty arena is bound too: it counts nothing */
    unsigned char *base = NULL;

    if (bound <= SIZE_MAX - ARENA_ALIGN) {
        bound = (bound + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
        base = aligned_memory(bound);
    }
    if (base == NULL) {
        return FAIL(STATUS_NOMEM, "%s: cannot allocate %.1f MiB of host memory", what,
                    (double)bound / (1024.0 * 1024.0));
    }
    memset(base, 0, bound);
    *arena = (struct arena){.base = base, .size = bound};
    return STATUS_OK;
}

status_t arena_create_on(struct arena *arena, struct device *device, enum memory_kind kind,
                         void *stream, size_t size, const char *what)
{
    void *base;

    if (device == NULL) {
        return arena_create(arena, size, what);
    }
    size_t bound = size > 0 ? size : 1;
    TRY(device_alloc(device, kind, bound, what, &base));
    *arena = (struct arena){.base = base, .size = bound, .device = device, .kind = kind};
    return device_fill(device, base, 0, bound, stream);
}

void arena_destroy(struct arena *arena)
{
    if (arena->device != NULL) {
        device_free(arena->device, arena->kind, arena->base);
    } else {
        free(arena->base);
    }
    *arena = (struct arena){0};
}

void *arena_alloc(struct arena *arena, size_t bytes)
{
    size_t offset = arena->used;

    if (bytes == 0) {
        return NULL;
    }
    CHECK(bytes <= SIZE_MAX - ARENA_ALIGN, "a piece of %zu bytes", bytes);
    size_t padded = (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    CHECK(padded <= SIZE_MAX - offset, "the arena's size overflows after %zu bytes", offset);
    arena->used = offset + padded;
    if (arena->size == 0) {
        return NULL;
    }
    CHECK(arena->used <= arena->size, "%zu of %zu bytes used, %zu more asked for", offset,
          arena->size, bytes);
    return arena->base + offset;
}
