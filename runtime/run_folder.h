/* run_folder.h - private to runtime/: the folder of a run.
 *
 *     config.yaml     the resolved configuration, as config_load reads it
 *     metrics.jsonl   one object per step, the source of truth
 *     hash.txt        the run's hash, its parts, and what they stand for (run_hash.h)
 *     algorithms.txt  which algorithm multiplied what (bf16 on GPUs; algorithms.c)
 *     trace/          rank-N.json of the profiled steps (profile.c)
 *     rank-N.log      messages of rank N, down to debug
 *     checkpoints/    step-N, what the run can go on from (save.h)
 *     lock            held while a job runs here
 *     model/          the trained model as an official Hugging Face folder (export.c)
 */
#ifndef RUNTIME_RUN_FOLDER_H
#define RUNTIME_RUN_FOLDER_H

#include <limits.h>

#include "runtime/runtime.h"

#define ALGORITHMS_FILE "algorithms.txt"

struct run_folder {
    char path[PATH_MAX];
    char model[PATH_MAX]; /* where the trained model goes */
    int metrics;          /* rank 0: descriptor of metrics.jsonl, else -1 */
    int64_t whole;        /* bytes of it: lines that are written whole */
    FILE *log;            /* every rank; NULL after a write that failed */
    int lock;             /* rank 0: descriptor of the lock, else -1 */
    bool old;             /* it was there: a run goes on in it */
};

/* Rank 0 makes the folder: the one that logging.run names must not exist (STATUS_INVALID says so), unless
 * checkpoint.resume is auto: then an old one is opened, and its log goes on; an empty logging.run gives
 * runs/<date>-<time>, with -2, -3 ... if that is taken. Refused: a folder in which another job runs, and one that
 * is not the same folder for all ranks. Nothing that is in an old one changes before run_folder_begin. Collective. */
MUST_USE status_t run_folder_create(const struct run_config *config, struct group *group,
                                    struct run_folder *out);
/* Rank 0, when it is known behind which step the run goes on: config.yaml, and in an old folder metrics.jsonl without
 * the steps after it. `table`: the run has one of product algorithms; config.yaml then names it where the folder will
 * keep it. */
MUST_USE status_t run_folder_begin(struct run_folder *folder, const struct run_config *config,
                                   bool table, int64_t step);
/* Appends one line to metrics.jsonl, the whole line or nothing. `sequences`: the place in the data
 * behind this step; `heldout`: the held-out loss after it, or NULL. Rank 0 only. */
MUST_USE status_t run_folder_metrics(struct run_folder *folder, const struct step_result *result,
                                     double lr, int64_t tokens, int64_t sequences,
                                     const struct step_cost *cost, const double *heldout);
/* A rank-N.log that cannot be written is given up with a warning. */
void run_folder_check_log(struct run_folder *folder);
/* STATUS_IO if what was written did not arrive. */
MUST_USE status_t run_folder_close(struct run_folder *folder);

#endif
