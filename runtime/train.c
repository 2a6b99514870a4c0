/* train.c - the training loop of one rank, what it prints, and what it leaves behind. */
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/phases.h"
#include "runtime/print_memory.h"
#include "runtime/resume.h"
#include "runtime/run_folder.h"
#include "runtime/run_hash.h"
#include "runtime/save.h"
#include "runtime/setup.h"

/* A step whose cost is not known yet; on a GPU a few steps are under way. */
enum { PENDING = 8 };
struct pending {
    struct step_result result;
    double lr;
    int64_t tokens, sequences; /* of this step; the place in the data behind it */
    bool evaluated;            /* held-out tokens after this step */
    double heldout;
};

struct totals {
    double first_loss, last_loss, first_heldout, last_heldout; /* nats per token */
    bool has_first_heldout, has_last_heldout;                  /* not cut short */
    double seconds;
    double share[TRACE_CATEGORIES]; /* weighted by seconds */
    int64_t steps, tokens, bytes_plain, bytes_dense, bytes_collective, bytes_tensor;
};

struct training {
    struct setup setup;
    int64_t step; /* the last begun */
    struct run_folder folder;
    struct run_hash hash;
    struct resume resume; /* where this process began */
    struct totals totals;
    struct pending pending[PENDING]; /* by step, in turn */
    struct phases phases;            /* until the first step is done */
    bool root, stopped;
    status_t written;  /* of metrics.jsonl, on rank 0 */
    status_t saved;    /* of the last checkpoint */
    int64_t sequences; /* passed so far: the place in the data */
};

/* ---- what is printed ---- */

/* Where the weights come from. */
static void print_weights(const struct training *training)
{
    const struct setup *setup = &training->setup;
    if (training->resume.checkpoint) {
        printf("weights and moments: resumed after step %lld, from %s\n", (long long)training->step,
               training->resume.folder);
    } else if (setup->weights) {
        printf("weights: read from %s\n", setup->weights);
    } else {
        printf("weights: new ones, made from seed %lld\n", (long long)setup->job->config.seed);
    }
}

static void print_checkpoints(const struct training *training)
{
    const struct trainer *trainer = training->setup.trainer;
    saver_print_plan(&training->setup.job->config, trainer_plan(trainer), stdout);
    if (saver_bytes(trainer) > 0) {
        printf("  taken for it on rank 0: %.1f MiB\n", (double)saver_bytes(trainer) / 0x1p20);
    }
}

static status_t print_start(const struct training *training)
{
    const struct setup *setup = &training->setup;
    const struct model *model = trainer_model(setup->trainer);
    const struct plan *plan = trainer_plan(setup->trainer);
    int64_t workspace[plan->ranks];
    char hash[256], replicas[64] = "", together[48] = "";
    TRY(trainer_workspaces(setup->trainer, workspace));
    printf("model: %lld parameters, %lld layers of width %lld, %s connections\n",
           (long long)model_parameter_count(model), (long long)setup->model.n_layer,
           (long long)setup->model.dim, setup->model.dense ? "dense" : "no dense");
    print_weights(training);
    if (setup->replicas > 1) {
        snprintf(replicas, sizeof replicas, " on each of %d replicas", setup->replicas);
    }
    if (model->tp > 1) {
        snprintf(together, sizeof together, " of %d ranks each", model->tp);
    }
    printf("step: %d microbatch%s of %lld x %lld tokens%s; %d stage%s%s, schedule %s\n",
           setup->microbatches, setup->microbatches == 1 ? "" : "es", (long long)setup->B,
           (long long)setup->T, replicas, plan->stages, plan->stages == 1 ? "" : "s", together,
           plan->schedule);
    printf("%s\n\n", run_hash_print(&training->hash, hash, sizeof hash));
    log_debug("%s", hash);
    plan_print_partition(plan, stdout);
    printf("\n");
    plan_print_memory(plan, workspace, "", stdout);
    printf("\nrun folder: %s\n", training->folder.path);
    print_checkpoints(training);
    printf("\n");
    fflush(stdout);
    return STATUS_OK;
}

static void print_eta(double seconds, char *buffer, size_t size)
{
    long whole = (long)seconds;
    if (whole >= 3600) {
        snprintf(buffer, size, "%ldh%02ldm", whole / 3600, whole / 60 % 60);
    } else {
        snprintf(buffer, size, "%ldm%02lds", whole / 60, whole % 60);
    }
}

static double exposed(const double *share)
{
    return share[TRACE_EXPOSED_PLAIN] + share[TRACE_EXPOSED_DENSE] + share[TRACE_COLLECTIVE] +
           share[TRACE_TENSOR];
}

static struct pending *pending_of(struct training *training, int64_t step)
{
    return &training->pending[step % PENDING];
}

static void print_step(const struct training *training, const struct pending *step,
                       const struct step_cost *cost)
{
    int64_t steps = training->setup.job->config.optimizer.steps;
    char eta[32];
    double mean = training->totals.seconds / (double)training->totals.steps;
    print_eta(mean * (double)(steps - step->result.step), eta, sizeof eta);
    printf("step %4lld/%lld  loss %.4f  grad norm %.3f  %6.0f tokens/s  bubble %4.1f%%  "
           "exposed %4.1f%%  ETA %s\n",
           (long long)step->result.step, (long long)steps, step->result.loss,
           step->result.grad_norm, cost->seconds > 0 ? (double)step->tokens / cost->seconds : 0.0,
           100 * cost->share[TRACE_WAIT], 100 * exposed(cost->share), eta);
    if (step->evaluated) {
        printf("held-out loss after step %lld: %.4f\n", (long long)step->result.step,
               step->heldout);
    }
    fflush(stdout);
}

static void print_shares(const struct totals *totals)
{
    printf("time of a step (mean over ranks):");
    for (int c = 0; c < TRACE_CATEGORIES; c++) {
        if ((c == TRACE_COLLECTIVE && totals->bytes_collective == 0) ||
            (c == TRACE_TENSOR && totals->bytes_tensor == 0)) {
            continue; /* one replica; one rank a stage */
        }
        printf("%s %s %.1f%%", c > 0 ? "," : "", trace_category_name((enum trace_category)c),
               totals->seconds > 0 ? 100 * totals->share[c] / totals->seconds : 0.0);
    }
    printf("\n");
}

static void print_heldout(const struct training *training)
{
    const struct totals *totals = &training->totals;
    if (totals->has_last_heldout) {
        printf("held-out loss  %.4f -> %.4f nats, %.4f -> %.4f %s\n", totals->first_heldout,
               totals->last_heldout, totals->first_heldout / log(2.0),
               totals->last_heldout / log(2.0), setup_bits_name(&training->setup));
    } else if (totals->has_first_heldout) {
        printf(
            "held-out loss  %.4f nats at the start, not known at the end (stopped by a signal)\n",
            totals->first_heldout);
    } else {
        printf("held-out loss  not known (stopped by a signal)\n");
    }
}

static void print_summary(const struct training *training)
{
    const struct totals *totals = &training->totals;
    char plain[32], dense[32], collective[32], others[96] = "";
    int used = 0;
    double share[TRACE_CATEGORIES];
    for (int c = 0; c < TRACE_CATEGORIES; c++) {
        share[c] = totals->seconds > 0 ? totals->share[c] / totals->seconds : 0;
    }
    print_size(totals->bytes_plain, plain, sizeof plain);
    print_size(totals->bytes_dense, dense, sizeof dense);
    if (totals->steps == 0) {
        printf("\nloss           no step was made (%s)\n",
               training->stopped ? "stopped by a signal" : "the run was at its end");
    } else {
        printf("\nloss           %.4f -> %.4f in %lld step%s%s\n", totals->first_loss,
               totals->last_loss, (long long)totals->steps, totals->steps == 1 ? "" : "s",
               training->stopped ? " (stopped by a signal)" : "");
    }
    if (training->setup.valid) {
        print_heldout(training);
    }
    if (totals->steps == 0) {
        return;
    }
    if (training->setup.replicas > 1) {
        used = snprintf(others, sizeof others, ", replicas %.2f%%", 100 * share[TRACE_COLLECTIVE]);
    }
    if (totals->bytes_tensor > 0) {
        snprintf(others + used, sizeof others - (size_t)used, ", tensor parallel %.2f%%",
                 100 * share[TRACE_TENSOR]);
    }
    printf("speed          %.0f tokens/s; bubble %.1f%%, exposed communication %.2f%% (plain "
           "%.2f%%, dense %.2f%%%s)\n",
           totals->seconds > 0 ? (double)totals->tokens / totals->seconds : 0.0,
           100 * share[TRACE_WAIT], 100 * exposed(share), 100 * share[TRACE_EXPOSED_PLAIN],
           100 * share[TRACE_EXPOSED_DENSE], others);
    printf("shipped        %s plain, %s dense", plain, dense);
    print_size(totals->bytes_collective, collective, sizeof collective);
    printf(training->setup.replicas > 1 ? "; between replicas %s" : "", collective);
    print_size(totals->bytes_tensor, collective, sizeof collective);
    printf(totals->bytes_tensor > 0 ? "; within stages %s\n" : "\n", collective);
    if (!trainer_on_device(training->setup.trainer)) {
        print_shares(totals);
    }
}

/* Control characters would upset terminals. */
static void print_sample(const char *prompt, const char *text, bool whole)
{
    printf("\nsample         %s|", prompt);
    for (const char *c = text; *c; c++) {
        putchar(isprint((unsigned char)*c) || *c == '\n' ? *c : '.');
    }
    printf("%s\n", whole ? "" : "| (cut short by a signal)");
}

/* ---- the loop ---- */

static void note_result(struct training *training, const struct step_result *result)
{
    pending_of(training, result->step)->result = *result;
    if (result->step == training->resume.step + 1) {
        training->totals.first_loss = result->loss;
    }
    training->totals.last_loss = result->loss;
    training->stopped |= result->stop;
}

/* The step's line, now that its cost is known. */
static void note_cost(struct training *training, const struct step_cost *cost)
{
    const struct pending *step = pending_of(training, cost->step);
    struct totals *totals = &training->totals;
    totals->steps++;
    totals->tokens += step->tokens;
    totals->seconds += cost->seconds;
    totals->bytes_plain += cost->bytes_plain;
    totals->bytes_dense += cost->bytes_dense;
    totals->bytes_collective += cost->bytes_collective;
    totals->bytes_tensor += cost->bytes_tensor;
    for (int c = 0; c < TRACE_CATEGORIES; c++) {
        totals->share[c] += cost->share[c] * cost->seconds;
    }
    if (training->root) {
        training->written =
            run_folder_metrics(&training->folder, &step->result, step->lr, step->tokens,
                               step->sequences, cost, step->evaluated ? &step->heldout : NULL);
        if (training->written == STATUS_OK) {
            print_step(training, step, cost);
        } else {
            trainer_fail(training->setup.trainer, training->written);
        }
    }
    run_folder_check_log(&training->folder);
}

/* The first step is done. */
static void tell_phases(struct training *training)
{
    char line[320];
    phases_end(&training->phases, "the step");
    log_write(training->root && training->resume.step > 0 ? LOG_INFO : LOG_DEBUG,
              "from the start of the process to its first step %s",
              phases_print(&training->phases, line, sizeof line));
}

static void note(void *argument, const struct step_result *result, const struct step_cost *cost)
{
    struct training *training = argument;
    if (result && result->step == training->resume.step + 1) {
        tell_phases(training);
    }
    if (cost) {
        note_cost(argument, cost);
    }
    if (result) {
        note_result(argument, result);
    }
}

static status_t train_step(struct training *training, int64_t step)
{
    struct setup *setup = &training->setup;
    const struct run_config *config = &setup->job->config;
    struct batch batch = {.inputs = setup->inputs,
                          .targets = setup->targets,
                          .first = setup->first,
                          .microbatches = microbatches_at(
                              step, config->optimizer.steps, (int)config->optimizer.ramp_from,
                              setup->microbatches, config->optimizer.ramp)};
    int64_t rows = batch.microbatches * setup->B;
    struct lr_args rate = {.schedule = config->optimizer.schedule,
                           .steps = config->optimizer.steps,
                           .lr = config->optimizer.lr,
                           .min_lr_ratio = config->optimizer.min_lr_ratio,
                           .warmup = config->optimizer.warmup,
                           .decay = config->optimizer.decay};
    struct optimizer_args optimizer = {.lr = lr_at(&rate, step),
                                       .beta1 = config->optimizer.beta1,
                                       .beta2 = config->optimizer.beta2,
                                       .eps = config->optimizer.eps,
                                       .weight_decay = config->optimizer.weight_decay,
                                       .clip = config->optimizer.clip};
    struct step_result result;
    TRY(setup_batch(setup, training->sequences, rows));
    training->sequences += rows * setup->replicas;
    training->step = step;
    *pending_of(training, step) = (struct pending){.lr = optimizer.lr,
                                                   .tokens = rows * setup->replicas * setup->T,
                                                   .sequences = training->sequences};
    return trainer_step(setup->trainer, &batch, &optimizer, &result);
}

/* *out_known: not cut short by a request to stop, after which there is none. */
static status_t heldout(struct training *training, double *out, bool *out_known)
{
    int64_t tokens;
    *out_known = false;
    TRY(trainer_settle(training->setup.trainer, NULL));
    if (!training->setup.valid || training->stopped) {
        return STATUS_OK;
    }
    TRY(setup_heldout(&training->setup, out, &tokens, out_known));
    training->stopped = !*out_known;
    if (training->root && training->stopped) {
        log_info("held-out evaluation after step %lld cut short by a signal after %lld tokens",
                 (long long)training->step, (long long)tokens);
    } else if (training->root) { /* all digits, for the run's log only */
        log_debug("held-out loss %.17g nats over %lld tokens after %lld steps", *out,
                  (long long)tokens, (long long)training->step);
    }
    return STATUS_OK;
}

/* Every data.valid_every steps and then after the last; without, train_all sees to both ends. */
static status_t heldout_after(struct training *training, int64_t step)
{
    const struct run_config *config = &training->setup.job->config;
    int64_t every = config->data.valid_every;
    if (every == 0 || (step % every != 0 && step != config->optimizer.steps)) {
        return STATUS_OK;
    }
    struct pending *pending = pending_of(training, step);
    return heldout(training, &pending->heldout, &pending->evaluated);
}

/* Ended by a signal, to be started again: the exit code says so. */
static void note_unfinished(struct training *training)
{
    struct job *job = training->setup.job;
    if (training->stopped && training->step < job->config.optimizer.steps &&
        saver_wanted(&job->config)) {
        job->exit_code = EXIT_UNFINISHED;
    }
}

/* A last checkpoint that cannot be written fails the run, but only after the model is out. */
static status_t finish_saving(struct training *training)
{
    struct setup *setup = &training->setup;
    status_t status = saver_finish(setup->trainer, training->step, training->sequences);
    if (status == STATUS_OK) {
        note_unfinished(training);
    }
    training->saved = status;
    return status == STATUS_PEER || status == STATUS_TIMEOUT ? status : STATUS_OK;
}

static status_t train_loop(struct training *training)
{
    struct setup *setup = &training->setup;
    int64_t steps = setup->job->config.optimizer.steps;
    for (int64_t step = training->step + 1; step <= steps && !training->stopped; step++) {
        TRY(train_step(training, step));
        TRY(heldout_after(training, step));
        TRY(saver_after(setup->trainer, step, training->sequences));
    }
    TRY(trainer_profile_end(setup->trainer));
    if (training->step > training->resume.step) {
        TRY(trainer_flush(setup->trainer));
        TRY(group_agree(setup->group, training->written));
        TRY(finish_saving(training));
    } else {
        note_unfinished(training);
    }
    return trainer_check_traffic(setup->trainer);
}

static status_t leave_sample(struct training *training)
{
    const struct run_config *config = &training->setup.job->config;
    int count = (int)config->logging.sample_tokens;
    bool whole = false;
    if (count == 0 || training->stopped) {
        return STATUS_OK;
    }
    char *text = calloc(1, (size_t)count + 1);
    TRY(group_agree(training->setup.group,
                    text ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for a sample")));
    status_t status = trainer_sample(training->setup.trainer, config->logging.sample_prompt, count,
                                     (uint64_t)config->seed, text, &whole);
    if (status == STATUS_OK && training->root) {
        print_sample(config->logging.sample_prompt, text, whole);
    }
    free(text);
    return status;
}

/* What stands beside the metrics from the start. */
static status_t leave_hash(const struct training *training)
{
    const char *folder = training->folder.path;
    status_t status = training->root ? run_hash_keep(&training->hash, folder) : STATUS_OK;
    if (status == STATUS_OK) {
        status = trainer_keep_algorithms(training->setup.trainer, folder);
    }
    return group_agree(training->setup.group, status);
}

/* Texts of config.yaml and config.json, malloc'ed. */
static status_t print_texts(const struct setup *setup, char **out_config, char **out_model)
{
    size_t size;
    FILE *config = open_memstream(out_config, &size);
    FILE *model = config ? open_memstream(out_model, &size) : NULL;
    if (model) {
        config_print(&setup->job->config, config);
        model_config_print(&setup->model, model);
        fclose(model);
    }
    if (config) {
        fclose(config);
    }
    return model ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory to print the configuration");
}

static status_t begin_saving(struct training *training)
{
    struct setup *setup = &training->setup;
    char *config = NULL, *model = NULL;
    if (!saver_wanted(&setup->job->config)) {
        return STATUS_OK;
    }
    if (training->root) {
        checkpoint_sweep(training->folder.path);
    }
    status_t status = print_texts(setup, &config, &model);
    if (status == STATUS_OK) {
        struct saver_options options = {.run = training->folder.path,
                                        .config = config,
                                        .model = model,
                                        .train_data = setup->fingerprint[0],
                                        .step = training->folder.old ? training->step : 0};
        status = saver_create(setup->trainer, &options);
    }
    free(config);
    free(model);
    return group_agree(setup->group, status);
}

/* The folder, and in it the step to go on from, if there is one. */
static status_t begin_run(struct training *training)
{
    struct setup *setup = &training->setup;
    const struct run_config *config = &setup->job->config;
    bool table = trainer_has_algorithms(setup->trainer);
    TRY(run_folder_create(config, setup->group, &training->folder));
    phases_end(&training->phases, "hashes and folder");
    TRY(resume_find(setup, training->folder.path, &training->resume));
    phases_end(&training->phases, "checkpoint found and verified");
    if (resume_wanted(config) && !training->resume.checkpoint) { /* nothing there yet */
        TRY(group_agree(setup->group, trainer_load_weights(setup->trainer, setup->weights)));
    }
    TRY(resume_load(setup, &training->resume));
    phases_end(&training->phases, "read");
    training->step = training->resume.step;
    training->sequences = training->resume.sequences;
    TRY(group_agree(setup->group, training->root ? run_folder_begin(&training->folder, config,
                                                                    table, training->step)
                                                 : STATUS_OK));
    return begin_saving(training);
}

static status_t train_all(struct training *training)
{
    struct setup *setup = &training->setup;
    TRY(run_hash_create(setup, &training->hash));
    TRY(begin_run(training));
    TRY(group_agree(setup->group, training->root ? print_start(training) : STATUS_OK));
    const struct pending *last;
    TRY(trainer_profile(setup->trainer, training->folder.path));
    TRY(leave_hash(training));
    trainer_on_known(setup->trainer, note, training);
    TRY(heldout(training, &training->totals.first_heldout, &training->totals.has_first_heldout));
    phases_end(&training->phases, "made ready and evaluated");
    TRY(train_loop(training));
    /* A run that goes on from checkpoints, and had not begun when a signal came, must not look like one that ended. */
    bool begins_again =
        training->stopped && training->step == 0 && saver_wanted(&setup->job->config);
    bool exports = setup->job->config.logging.export && !begins_again;
    TRY(exports ? trainer_export(setup->trainer, training->folder.model)
                : trainer_settle(setup->trainer, NULL));
    last = pending_of(training, training->step);
    training->totals.last_heldout = last->heldout;
    training->totals.has_last_heldout = last->evaluated;
    if (!last->evaluated) {
        TRY(heldout(training, &training->totals.last_heldout, &training->totals.has_last_heldout));
    }
    if (training->root) {
        print_summary(training);
    }
    TRY(print_memory(setup->group, setup->trainer));
    fflush(stdout); /* before what a sample may complain about */
    TRY(leave_sample(training));
    if (training->root) {
        printf("\nrun folder     %s (%smetrics.jsonl, config.yaml, logs)\n", training->folder.path,
               exports ? "model/, " : "");
        fflush(stdout);
    }
    return training->saved;
}

status_t train_run(struct job *job, struct group *group, void *argument)
{
    (void)argument;
    struct training *training = calloc(1, sizeof *training);
    if (!training) {
        return FAIL(STATUS_NOMEM, "no memory for a run");
    }
    log_keep(); /* until there is a run folder */
    phases_end(&training->phases, "MPI and configuration");
    status_t status = setup_create(job, group, true, &training->setup);
    phases_end(&training->phases, "model and memory");
    if (status == STATUS_OK) {
        training->root = group_rank(group) == 0;
        training->folder.metrics = training->folder.lock = -1;
        status = train_all(training);
        resume_close(&training->resume);
        run_hash_free(&training->hash);
        setup_destroy(&training->setup);
        status_t closed = run_folder_close(&training->folder);
        status = status == STATUS_OK ? group_agree(group, closed) : status;
    }
    log_set_file(NULL);
    free(training);
    return status;
}
