/* print_memory.h - private to runtime/: what a run says of its memory at its end. */
#ifndef RUNTIME_PRINT_MEMORY_H
#define RUNTIME_PRINT_MEMORY_H

#include "runtime/runtime.h"

/* "1.5 MiB" */
void print_size(int64_t bytes, char *buffer, size_t size);
/* Used beside predicted, for every rank, on rank 0. Collective. */
MUST_USE status_t print_memory(struct group *group, const struct trainer *trainer);

#endif
