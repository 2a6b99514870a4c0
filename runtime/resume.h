/* resume.h - private to runtime/: where a run goes on (docs/checkpoints.md). */
#ifndef RUNTIME_RESUME_H
#define RUNTIME_RESUME_H

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/setup.h"

struct resume {
    char folder[PATH_MAX];         /* of the checkpoint */
    struct checkpoint *checkpoint; /* NULL = from the start */
    int64_t step, sequences;       /* the run goes on behind them */
};

/* checkpoint.resume=auto. */
/* Is checkpoint.resume anything but none? */
bool resume_wanted(const struct run_config *config);
bool resume_auto(const struct run_config *config);
/* Finds the newest checkpoint that is whole, of `run` (auto) or of the folder that checkpoint.resume names; a
 * broken one is passed over with a warning. Compares it with this run: what may not differ is refused, what
 * changes the numbers is said. Without checkpoint.resume, or with none there (auto), *out is the start.
 * Collective. */
MUST_USE status_t resume_find(struct setup *setup, const char *run, struct resume *out);
/* Weights and moments of this rank, and the number of the next step. Collective. */
MUST_USE status_t resume_load(struct setup *setup, const struct resume *resume);
void resume_close(struct resume *resume);

/* Weights alone, for whoever names a checkpoint's folder as a model. Local. */
MUST_USE status_t resume_weights(const struct model *model, struct part *part, const char *folder);

#endif
