/* save.h - private to runtime/: the checkpoints of a run that goes on while they are written.
 *
 * Weights and moments change in STEP alone. So their copy is made while the next step's forwards and
 * backwards run, and nothing waits for it but the next STEP:
 *
 *     main    STEP n, save_begin | F B F B ...      | STEP n+1 waits for the copy ...
 *     copy    device: a stream; host: the saver     ====
 *     saver                                             encode, write, to the disk, read again
 *
 * In the exchange of a step a rank says up to which step its shards are there. When all have said so, rank
 * 0's saver makes the checkpoint of them and removes the ones that are too many.
 */
#ifndef RUNTIME_SAVE_H
#define RUNTIME_SAVE_H

#include "runtime/runtime.h"

struct trainer;
struct saver;

struct saver_options {
    const char *run;    /* folder */
    const char *config; /* texts of config.yaml and config.json */
    const char *model;
    uint64_t train_data; /* fingerprint */
    int64_t step;        /* the run begins behind this one; 0 = at the start */
};

/* Takes memory for the copies, and starts the thread. The trainer's from then on, until saver_destroy. Local. */
MUST_USE status_t saver_create(struct trainer *trainer, const struct saver_options *options);
void saver_destroy(struct trainer *trainer);
/* Bytes of host memory for the copies. */
int64_t saver_bytes(const struct trainer *trainer);

/* After `step`, if a checkpoint is due by steps or time: begins one, or, while the last is being written,
 * counts that it was passed over. The same on every rank. `sequences`: the place in the data. */
MUST_USE status_t saver_after(struct trainer *trainer, int64_t step, int64_t sequences);
/* Before weights change: waits for the copy (on a device the stream does). */
MUST_USE status_t saver_before_update(struct trainer *trainer);
/* What an exchange told of all ranks' saves. */
void saver_note(struct trainer *trainer, const struct step_result *result);
/* For the exchange, from any thread: the step of the newest shard, negative if it failed; 0 = none yet.
 * Whether rank 0's clock says that a checkpoint is due. */
int64_t saver_reached(const struct trainer *trainer);
bool saver_clock_due(const struct trainer *trainer);
/* Waits for the save under way, and saves the last step unless it is saved. Collective. */
MUST_USE status_t saver_finish(struct trainer *trainer, int64_t step, int64_t sequences);

#endif
