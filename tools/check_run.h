/* check_run.h - private to `muddpipe check`: what is asked of every case, and one case. */
#ifndef TOOLS_CHECK_RUN_H
#define TOOLS_CHECK_RUN_H

#include "runtime/runtime.h"

/* What may differ, in tolerances. */
struct check_limits {
    double tolerance; /* by default */
    double logits, loss, gradient;
    double step_loss, step_norm;
    int64_t norms; /* of so many first steps */
};

struct check {
    const char **folder;
    int count;
    double tolerance; /* in units of which struct check_limits says what is allowed */
    const struct check_limits *limits;
    int64_t steps;           /* 0 = forward and backward */
    const char *save, *same; /* a file; a folder with several cases, or if it is one */
};

/* The last part of a folder's path: where it begins and how long it is. */
const char *check_name(const char *folder, int *out_length);
/* Runs the case in `folder` and says what came out. The same on all ranks, but for STATUS_PEER where a
 * failure is another rank's alone. Collective. */
MUST_USE status_t check_run(const struct check *check, const char *folder,
                            const struct run_config *config, struct group *group);

#endif
