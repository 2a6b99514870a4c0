/* phases.h - private to runtime/: what the time went into from the start of the process to its first step. */
#ifndef RUNTIME_PHASES_H
#define RUNTIME_PHASES_H

#include <stddef.h>
#include <stdint.h>

enum { PHASES_MOST = 8 };

struct phases {
    int64_t begun; /* ns, when the process was started (to 10 ms); 0 = nothing was noted */
    int count;
    int64_t end[PHASES_MOST];      /* ns */
    const char *name[PHASES_MOST]; /* static */
};

/* The phase that ends now, which began with the process or where the one before ended. */
void phases_end(struct phases *phases, const char *name);
/* "2.31 s: MPI and configuration 0.40, model and memory 1.02, ..."; returns `buffer`. */
const char *phases_print(const struct phases *phases, char *buffer, size_t size);

#endif
