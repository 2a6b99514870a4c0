/* runtime.h - the door of runtime/: the only place where model, schedule and comm meet.
 *
 *     job      one command on all ranks: configuration, group, agreement, exit code (job.c)
 *     trainer  model, plans and workers of this rank; steps, evaluation, samples, export (trainer.c)
 *     worker   what a rank holds of a plan: a part of the model, slots, and the wire (worker.c)
 *     executor walks the plan's operations of this rank for one step (executor.c)
 */
#ifndef RUNTIME_RUNTIME_H
#define RUNTIME_RUNTIME_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/config.h"
#include "comm/comm.h"
#include "model/model.h"
#include "schedule/schedule.h"

/* ---- job ---- */

/* One command, as started on this process. */
struct job {
    const char *command; /* "train" */
    int argc;            /* the whole command line, for hints */
    char **argv;
    struct run_config config;
    _Atomic int exit_code; /* of a job in which nothing failed; any rank may set it */
};

/* The exit code of a run that a signal ended with its last step saved: started again, it goes on. */
enum { EXIT_UNFINISHED = 75 };

/* Opens the group that the configuration asks for (alone, mpi, or threads: then `body` runs once a
 * rank in its own thread), sees to it that all ranks have the same configuration and that
 * parallel.pp fits the number of ranks, runs `body`, and leaves in order or, after a failure, without
 * waiting. Returns the process's exit code. */
typedef status_t (*job_body_fn)(struct job *job, struct group *group, void *arg);
int job_run(struct job *job, job_body_fn body, void *arg);

/* Some signals ask the run to finish its step, to cut an evaluation or a sample short, and to leave its weights:
 * SIGUSR1 and SIGHUP; SIGTERM where no mpirun is above; of a process without a launcher the first SIGINT. */
void job_catch_signals(void);
/* To be called before libraries are there (UCX takes SIGHUP when it is loaded): a SIGHUP that is ignored, as nohup
 * has it, stays ignored. */
void job_before_libraries(void);
bool job_stop_requested(void);
/* Whether any rank was asked to. Collective. */
MUST_USE status_t job_stop_agreed(struct group *group, bool *out);

/* ---- trainer ---- */

struct trainer;

/* Tokens of one step, of this rank's replica: [microbatches][B*T] each; whoever hosts the embedding looks at inputs, the head
 * at targets (-1 counts nothing; NULL = no loss wanted). */
struct batch {
    const int32_t *inputs, *targets;
    /* [microbatches][B*T] position in its sequence of the first token of each token's document: attention
     * does not look before it and positions start again there. NULL = one document a sequence. Every
     * rank must have it. */
    const int32_t *first;
    int microbatches; /* of this step, at most the trainer's; 0 = the trainer's */
};

struct trainer_options {
    const struct run_config *config;
    const struct model_config *model;
    struct group *group;
    int64_t B, T;
    int microbatches;
    bool training;           /* false: evaluation only */
    bool evaluates, samples; /* training will: what that takes is made before the first step */
    const char *weights;     /* safetensors file or folder; NULL = initialize from config.seed */
    bool weights_later;      /* not here: by trainer_load_weights, or from a checkpoint */
};

/* Builds model tables, plan, stage and wire; every rank compares the plan's hash. Collective. */
MUST_USE status_t trainer_create(const struct trainer_options *options, struct trainer **out);
void trainer_destroy(struct trainer *trainer);
/* As trainer_options has it. Local. */
MUST_USE status_t trainer_load_weights(struct trainer *trainer, const char *weights);

const struct model *trainer_model(const struct trainer *trainer);
/* The ranks of this one's replica, numbered as in the plan; those at its place of all replicas, NULL with one.
 * Closed by trainer_destroy. */
struct group *trainer_pipeline(const struct trainer *trainer);
struct group *trainer_replicas(const struct trainer *trainer);
/* The ranks that compute the same stages on the same data, numbered by their parts; NULL with one. */
struct group *trainer_tensor(const struct trainer *trainer);
const struct plan *trainer_plan(const struct trainer *trainer);
struct part *trainer_part(const struct trainer *trainer);
/* Not on the host: then costs do not tell operations apart, trainer_profile does. */
/* After a step with replicas a rank has the sum of its share of the gradients; from now on all of it, until the next
 * step. Collective. */
MUST_USE status_t trainer_share_gradients(struct trainer *trainer);
bool trainer_on_device(const struct trainer *trainer);

struct optimizer_args {
    double lr, beta1, beta2, eps, weight_decay, clip; /* clip 0 = none */
};

struct step_result {
    int64_t step;           /* from 1 */
    double loss, grad_norm; /* before the update; of the whole job, the same on every rank */
    bool stop;              /* some rank was asked to stop */
    bool
        skipped; /* loss or norm are not finite, and the weights are as before (optimizer.on_nan) */
    /* Checkpoints (save.h): up to which step all ranks have their shards, or did fail; 0 = none yet. */
    int64_t saved;
    bool save_failed; /* somewhere, at that step */
    bool save_due;    /* by the clock */
};

/* What a step cost, mean over ranks; known later: on the host it rides on the next exchange, on a GPU on
 * the one after. There `share` tells only of waits (plain ones as TRACE_WAIT; dense ones, which follow
 * them, whole as TRACE_EXPOSED_DENSE, the most that can be exposed) and of the rest as TRACE_OTHER. */
struct step_cost {
    int64_t step;
    double seconds;
    double share[TRACE_CATEGORIES];   /* fractions of the step's time */
    int64_t bytes_plain, bytes_dense; /* all links */
    int64_t bytes_collective;         /* received by all ranks from those of other replicas */
    int64_t bytes_tensor;             /* from those that compute the same stages with them */
    /* Of the ranks' GPUs at about that time; cards 0 = nobody asked them. */
    int cards;
    double sm_mhz_least, watts, celsius_most; /* watts of all */
    uint64_t throttle;                        /* of any; base/nvml.h */
};

/* One optimizer step over `microbatches`. A loss or norm that is not finite leaves the weights untouched:
 * STATUS_NUMERIC on every rank, or (optimizer.on_nan=skip) a step that is skipped. With optimizer NULL only gradients are made (muddpipe check). On a GPU it
 * only enqueues: at most two steps are under way, and it first waits for the result of the step before
 * the one before. *out: the newest result known (step 0: none yet); on the host this step's. */
MUST_USE status_t trainer_step(struct trainer *trainer, const struct batch *batch,
                               const struct optimizer_args *optimizer, struct step_result *out);
/* Whether it multiplies by a table of product algorithms (kernels.algorithms, bf16 on GPUs). */
bool trainer_has_algorithms(const struct trainer *trainer);
/* Rank 0 writes the table of product algorithms, if there is one, to algorithms.txt in the run folder. */
MUST_USE status_t trainer_keep_algorithms(const struct trainer *trainer, const char *folder);
/* Waits for all steps; *out (may be NULL): the last one's result. To be called before the group's
 * collectives are used between steps; evaluation, export and sampling do so themselves. */
MUST_USE status_t trainer_settle(struct trainer *trainer, struct step_result *out);
/* Exchanges the costs not yet told. Collective. */
MUST_USE status_t trainer_flush(struct trainer *trainer);
/* Called on every rank in the order of the steps, from trainer_step, _settle or _flush, with what just
 * became known: the result of a step and the cost of an earlier one; either may be NULL. A cost is
 * told before its exchange ends the run. */
typedef void (*trainer_known_fn)(void *arg, const struct step_result *result,
                                 const struct step_cost *cost);
void trainer_on_known(struct trainer *trainer, trainer_known_fn fn, void *arg);
/* This rank failed (and said why) at something that the others do not see: the next exchange ends the
 * run on all ranks, before the weights change. */
void trainer_fail(struct trainer *trainer, status_t status);

/* Records the steps that the configuration names (profile.first_step, profile.steps) into
 * `folder`/trace/rank-N.json, on every rank; rank 0 prints what operations took. Host and device stand
 * still before the first and after the last of them. */
MUST_USE status_t trainer_profile(struct trainer *trainer, const char *folder);
/* After the last step: writes what was recorded if the run ended before profile.steps were. */
MUST_USE status_t trainer_profile_end(struct trainer *trainer);

/* Called on the head's rank when the logits of a microbatch are there: after the head's F in a forward that
 * no backward follows, else after its B. */
typedef void (*trainer_head_fn)(void *arg, struct part *part, int frame, int microbatch);
void trainer_on_head(struct trainer *trainer, trainer_head_fn fn, void *arg);
/* From there, on all ranks that compute the head together: part_logits of all words, out [rows, V]. */
MUST_USE status_t trainer_logits(struct trainer *trainer, struct part *part, int frame,
                                 int64_t first, int64_t rows, float *out);

/* The whole gradient of a parameter of this rank's stages, out [count]: on all ranks that compute it together. */
MUST_USE status_t trainer_gradient(const struct trainer *trainer, int param, float *out);

/* Forward only over `microbatches` with the current weights; *out_loss = sum over counted tokens, on
 * every rank. Collective. */
MUST_USE status_t trainer_evaluate(struct trainer *trainer, const struct batch *batch,
                                   double *out_loss);

/* Measured payload of the steps so far against the plan: STATUS_INTERNAL (our bug) if any shipment's
 * bytes differ from bytes * microbatches * steps, or those from other replicas from what a step moves. After a
 * step, on all ranks. */
MUST_USE status_t trainer_check_traffic(struct trainer *trainer);

/* Writes config.json and model.safetensors of the whole model into `folder` (made if absent, which
 * every rank must see); files appear whole or not at all. Collective. */
MUST_USE status_t trainer_export(struct trainer *trainer, const char *folder);

/* Rank 0 gets `count` bytes continuing `prompt` (byte vocabularies: at least 256 entries), drawn by
 * seed at temperature 0.8; out [count + 1]. A request to stop makes it shorter. Collective. */
MUST_USE status_t trainer_sample(struct trainer *trainer, const char *prompt, int count,
                                 uint64_t seed, char *out, bool *out_whole);

/* Bytes of this rank, predicted by the plan and used. */
struct trainer_memory {
    struct plan_memory predicted;
    struct part_memory used;
    int64_t arrivals_used, gradient_slots_used;
    int64_t
        device_used; /* of the GPU's memory, by all that this rank did there, libraries too; 0 on
                            the host and where ranks share a GPU */
    int64_t
        transport_used; /* of that, what the transport took for itself while it connected (NCCL's
                               buffers); measured, not predicted */
    /* Of the host's memory, pinned by the wire of a GPU: for tensors that pass through it, where they do;
     * beside that for words. */
    int64_t staging_predicted, staging_used, pinned_beside;
    int64_t replicas_pinned; /* for what is exchanged with other replicas and parts, on its way */
};
void trainer_memory(const struct trainer *trainer, struct trainer_memory *out);
int64_t trainer_memory_used(const struct trainer_memory *memory); /* workspace not counted */
int64_t trainer_memory_predicted(const struct trainer_memory *memory);
/* [ranks] bytes that the operations of each want beside what the plan says, if all compute as this one. */
MUST_USE status_t trainer_workspaces(const struct trainer *trainer, int64_t *out);

/* ---- builds ---- */

/* A hash of the program that runs, which tells builds apart; 0 = not known. */
uint64_t program_id(void);

/* ---- checkpoints, before a run ---- */

/* Does the configuration ask for checkpoints? */
bool saver_wanted(const struct run_config *config);
/* What a save takes of the host's memory on each rank, and what waits for it. Nothing if there are none. */
void saver_print_plan(const struct run_config *config, const struct plan *plan, FILE *out);

/* ---- checkpoints, for muddpipe ckpt (docs/checkpoints.md) ----
 *
 * `path`: a checkpoint's folder, or a run's, of which the newest is taken. On one process. */
MUST_USE status_t checkpoint_inspect(const char *path, FILE *out);
/* Reads every byte and compares every hash. */
MUST_USE status_t checkpoint_prove(const char *path, FILE *out);
/* STATUS_MISMATCH where values, names or shapes differ; `out` says which. */
MUST_USE status_t checkpoint_compare(const char *path, const char *other_path, FILE *out);
/* Its weights as an official folder, which must not exist: config.json and one model.safetensors, or with
 * shard_bytes > 0 files of at most so many bytes of values (or one tensor), with model.safetensors.index.json. */
struct export_options {
    bool bf16; /* rounded to nearest, ties to even; else float32, bit for bit */
    int64_t shard_bytes;
};
MUST_USE status_t checkpoint_export(const char *path, const char *out,
                                    const struct export_options *options);
/* Rates of writing a shard into `folder`, in turn with the disk alone and one thread in memory. */
struct checkpoint_bench {
    const char *folder, *memory; /* memory: a folder that is no disk */
    int64_t bytes;               /* of values */
    int threads, level, rounds;
};
struct checkpoint_rates {
    int64_t raw, stored;      /* bytes of values; as written */
    double written, verified; /* bytes/s of values: the shard, with fsync; read again */
    double disk;              /* bytes/s of stored bytes: written and fsynced */
    double core;              /* bytes/s of values: one thread, in memory */
};
MUST_USE status_t checkpoint_bench(const struct checkpoint_bench *options,
                                   struct checkpoint_rates *out); /* [rounds] */
/* The weights of an official folder as a checkpoint of step 0 with moments of 0. */
MUST_USE status_t checkpoint_import(const char *official, const char *out);

/* ---- what tools share ---- */

enum { DEFAULT_MICROBATCHES = 8 };
/* The stages that a rank has, for its part; returns their number. out [plan->stages]. */
int part_stages_of(const struct plan *plan, int rank, struct part_stage *out);
/* The plan that a configuration asks for; `training` false: forward only. Borrows its strings. */
struct plan_options plan_options_of(const struct run_config *config, int ranks, int microbatches,
                                    bool training);

/* How it uses the model. */
struct model_use model_use_of(const struct run_config *config, int64_t B, int64_t T);

/* trainer_workspaces for whoever has a plan and no trainer. */
MUST_USE status_t memory_workspaces(const struct model *model, const struct plan *plan,
                                    const struct kernels *kernels, int threads, int64_t *out);
/* parallel.threads, else OMP_NUM_THREADS, else this host's cores shared among `ranks`. */
int place_threads(const struct run_config *config, int ranks);

struct lr_args {
    int schedule; /* enum lr_schedule */
    int64_t steps;
    double lr, min_lr_ratio; /* peak; the end is peak * ratio (constant: the peak) */
    double warmup, decay;    /* parts of the steps: linear rise; final fall of `wsd` */
};
/* Learning rate of step `step` (from 1): linear warm-up over floor(warmup * steps) steps, then the
 * schedule's shape down to min_lr_ratio * lr at the last step. */
double lr_at(const struct lr_args *args, int64_t step);
/* Microbatches of step `step`: from `first` (0 = no ramp) linearly to `full` over the first
 * floor(ramp * steps) steps. */
int microbatches_at(int64_t step, int64_t steps, int first, int full, double ramp);

/* The whole of `muddpipe train` and `muddpipe eval` on one rank. */
status_t train_run(struct job *job, struct group *group, void *arg);
status_t eval_run(struct job *job, struct group *group, void *arg);

#endif
