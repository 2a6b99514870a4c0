/* check_run.c - one case: forward and backward, or optimizer steps, and what they are compared with. */
#include "tools/check_run.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/check_case.h"
#include "tools/check_report.h"
#include "tools/check_results.h"

/* What one rank works with. */
struct checking {
    const struct check *check;
    const char *folder;
    struct group *group;
    struct check_case test;
    struct trainer_options options;
    struct trainer *trainer;
    float *logits;   /* [batch * T, V], head's rank */
    status_t taken;  /* of the logits */
    char worst[192]; /* for the line that says what passed */
};

static const struct optimizer_args golden_optimizer = {
    .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1.0};

/* ---- logits ---- */

static void take_logits(void *argument, struct part *part, int frame, int microbatch)
{
    struct checking *checking = argument;
    int64_t rows = checking->options.B * checking->options.T;
    checking->taken =
        trainer_logits(checking->trainer, part, frame, 0, rows,
                       checking->logits + microbatch * rows * checking->test.config.vocab_size);
}

static bool hosts_head(const struct checking *checking)
{
    const struct plan *plan = trainer_plan(checking->trainer);
    int last = trainer_model(checking->trainer)->graph.units - 1;
    return plan_rank_of(plan, plan_stage_of(plan, last)) ==
           group_rank(trainer_pipeline(checking->trainer));
}

static int replica_of(const struct checking *checking)
{
    struct group *replicas = trainer_replicas(checking->trainer);
    return replicas ? group_rank(replicas) : 0;
}

/* The tokens of the case that this replica computes. */
static struct batch batch_of(const struct checking *checking)
{
    const struct trainer_options *options = &checking->options;
    int64_t begin = replica_of(checking) * options->microbatches * options->B * options->T;
    return (struct batch){.inputs = checking->test.inputs + begin,
                          .targets = checking->test.targets + begin};
}

static int64_t logits_count(const struct checking *checking)
{
    return checking->test.batch * checking->test.T * checking->test.config.vocab_size;
}

/* The other replicas' logits behind those of the first, on the head's rank of each. */
static status_t gather_logits(struct checking *checking)
{
    struct group *replicas = trainer_replicas(checking->trainer);
    size_t bytes = (size_t)logits_count(checking) * sizeof(float);
    if (!replicas || !checking->logits) {
        return STATUS_OK;
    }
    bytes /= (size_t)group_size(replicas);
    return group_allgather(replicas, checking->logits, bytes, checking->logits);
}

/* ---- against the reference ---- */

struct comparing {
    const struct checking *checking;
    struct check_report report;
};

static status_t compare_one(void *argument, int item, const float *values, int64_t count)
{
    struct comparing *comparing = argument;
    float *reference;
    TRY(check_case_expected(&comparing->checking->test, comparing->report.name[item], count,
                            &reference));
    comparing->report.error[item] = check_error(values, reference, count);
    free(reference);
    return STATUS_OK;
}

/* Every gradient of the reference must be one of ours. */
static status_t check_names(const struct checking *checking)
{
    const struct tensor_file *file = checking->test.expected;
    for (int i = 0; i < tensor_file_count(file); i++) {
        struct tensor tensor;
        tensor_file_at(file, i, &tensor);
        if (strncmp(tensor.name, "grad.", 5) != 0) {
            continue;
        }
        const struct param *param =
            model_find_param(trainer_model(checking->trainer), tensor.name + 5);
        if (!param || !param->trained) {
            return FAIL(STATUS_INVALID, "%s: `%s` is not a gradient of this model",
                        tensor_file_path(file), tensor.name);
        }
    }
    return STATUS_OK;
}

static void name_items(const struct check *check, const struct check_results *results,
                       struct check_report *report)
{
    const struct check_limits *limits = check->limits;
    for (int i = 0; i < results->count; i++) {
        double limit = i == 0 ? limits->logits : i == 1 ? limits->loss : limits->gradient;
        report->name[i] = results->entries[i].name;
        report->limit[i] = limit * check->tolerance;
    }
}

static status_t compare_all(struct checking *checking, const struct check_results *results)
{
    struct comparing comparing = {.checking = checking};
    struct check_report *report = &comparing.report;
    status_t status = check_report_create(results->count, report);
    if (status == STATUS_OK) {
        name_items(checking->check, results, report);
        status = check_names(checking);
    }
    if (status == STATUS_OK) {
        status = check_results_each(results, compare_one, &comparing);
    }
    status = group_agree(checking->group, status);
    if (status == STATUS_OK) {
        status = check_report_finish(report, checking->group, checking->folder);
        check_report_worst(report, checking->worst, sizeof checking->worst);
    }
    check_report_free(report);
    return status;
}

/* ---- the two modes ---- */

/* Where --save and --same have the results of a case. */
static status_t results_path(const struct checking *checking, const char *base, char *out,
                             size_t size)
{
    struct stat info;
    const struct check *check = checking->check;
    bool folder = check->count > 1 || (stat(base, &info) == 0 && S_ISDIR(info.st_mode));
    int name, length;
    const char *first = check_name(checking->folder, &name);
    length = folder ? snprintf(out, size, "%s/%.*s.safetensors", base, name, first)
                    : snprintf(out, size, "%s", base);
    return length > 0 && (size_t)length < size
               ? STATUS_OK
               : FAIL(STATUS_INVALID, "%s: no file can have so long a path", base);
}

/* Comparisons that are off are all told before one of them ends the case. */
static status_t judge(struct checking *checking, const struct check_results *results)
{
    const struct check *check = checking->check;
    char path[PATH_MAX];
    status_t same = STATUS_OK;
    if (check->same) {
        TRY(results_path(checking, check->same, path, sizeof path));
        same = check_results_same(results, path, checking->folder);
    }
    if (same != STATUS_OK && same != STATUS_MISMATCH) {
        return same;
    }
    if (check->save) {
        TRY(results_path(checking, check->save, path, sizeof path));
        TRY(check_results_save(results, path));
    }
    TRY(compare_all(checking, results));
    return same;
}

static status_t check_gradients(struct checking *checking)
{
    struct batch batch = batch_of(checking);
    struct check_results results;
    struct step_result result;
    status_t status = STATUS_OK;
    if (hosts_head(checking)) {
        checking->logits = malloc((size_t)logits_count(checking) * sizeof(float));
        status = checking->logits ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for the logits");
    }
    TRY(group_agree(checking->group, status));
    trainer_on_head(checking->trainer, take_logits, checking);
    TRY(trainer_step(checking->trainer, &batch, NULL, &result));
    TRY(trainer_settle(checking->trainer, &result));
    TRY(group_agree(checking->group, checking->taken));
    TRY(group_agree(checking->group, gather_logits(checking)));
    TRY(trainer_share_gradients(checking->trainer));
    TRY(group_agree(checking->group, trainer_check_traffic(checking->trainer)));
    if (group_rank(checking->group) == 0) {
        printf("loss %.17g, gradient norm %.17g\n", result.loss, result.grad_norm);
    }
    status = check_results_create(checking->group, checking->trainer, checking->test.batch,
                                  checking->test.T, &results);
    status = group_agree(checking->group, status);
    if (status == STATUS_OK) {
        results.logits = checking->logits;
        results.silent = replica_of(checking) > 0;
        results.loss = (float)result.loss;
        status = judge(checking, &results);
    }
    check_results_free(&results);
    return status;
}

struct following {
    double loss_limit, norm_limit, worst_loss, worst_norm;
    int failed;
};

static void follow(struct checking *checking, struct following *following,
                   const struct step_result *result, const double *reference)
{
    double loss_error = fabs(result->loss / reference[0] - 1);
    double norm_error = fabs(result->grad_norm / reference[1] - 1);
    bool norm_counts = result->step <= checking->check->limits->norms;
    bool norm_good = !norm_counts || norm_error <= following->norm_limit;
    bool good = loss_error <= following->loss_limit && norm_good && isfinite(norm_error);
    following->failed += !good;
    following->worst_loss = fmax(following->worst_loss, loss_error);
    following->worst_norm = fmax(following->worst_norm, norm_counts ? norm_error : 0);
    if (group_rank(checking->group) == 0) {
        printf("step %3lld  loss %.17g (off by %.2g)  gradient norm %.17g (off by %.2g)%s\n",
               (long long)result->step, result->loss, loss_error, result->grad_norm, norm_error,
               good ? "" : "  FAILED");
    }
}

static status_t judge_steps(struct checking *checking, const struct following *following)
{
    snprintf(checking->worst, sizeof checking->worst,
             "loss %.2g of %.2g, gradient norm %.2g of %.2g", following->worst_loss,
             following->loss_limit, following->worst_norm, following->norm_limit);
    if (following->failed == 0) {
        return STATUS_OK;
    }
    if (group_rank(checking->group) == 0) {
        fflush(stdout);
        (void)FAIL(STATUS_MISMATCH,
                   "%s: %d of %lld steps are off (losses may by %.2g, gradient norms by %.2g)",
                   checking->folder, following->failed, (long long)checking->check->steps,
                   following->loss_limit, following->norm_limit);
    }
    return STATUS_MISMATCH;
}

static status_t check_steps(struct checking *checking)
{
    const struct check *check = checking->check;
    struct batch batch = batch_of(checking);
    struct following following = {.loss_limit = check->limits->step_loss * check->tolerance,
                                  .norm_limit = check->limits->step_norm * check->tolerance};
    double *reference = calloc((size_t)(2 * check->steps), sizeof *reference);
    status_t status = reference ? check_case_losses(&checking->test, check->steps, reference)
                                : FAIL(STATUS_NOMEM, "no memory for the losses");
    status = group_agree(checking->group, status);
    for (int64_t s = 0; s < check->steps && status == STATUS_OK; s++) {
        struct step_result result;
        status = trainer_step(checking->trainer, &batch, &golden_optimizer, &result);
        if (status == STATUS_OK) {
            status = trainer_settle(checking->trainer, &result);
        }
        if (status == STATUS_OK) {
            follow(checking, &following, &result, &reference[2 * s]);
        }
    }
    free(reference);
    return status == STATUS_OK ? judge_steps(checking, &following) : status;
}

/* ---- one rank ---- */

static status_t choose_batch(struct checking *checking, const struct run_config *config)
{
    int64_t batch = checking->test.batch, microbatches = config->parallel.microbatches;
    int64_t replicas = config->parallel.dp;
    if (batch % replicas != 0) {
        return FAIL(STATUS_INVALID,
                    "parallel.dp is %lld, which does not divide the case's batch of %lld",
                    (long long)replicas, (long long)batch);
    }
    batch /= replicas;
    if (microbatches == 0) {
        microbatches = batch;
    }
    if (batch % microbatches != 0) {
        return FAIL(
            STATUS_INVALID,
            "parallel.microbatches is %lld, which does not divide the batch of %lld that %s",
            (long long)microbatches, (long long)batch,
            replicas > 1 ? "a replica has of the case" : "the case has");
    }
    checking->options.microbatches = (int)microbatches;
    checking->options.B = batch / microbatches;
    checking->options.T = checking->test.T;
    return STATUS_OK;
}

static void print_replicas(const struct checking *checking, char *buffer, size_t size)
{
    struct group *replicas = trainer_replicas(checking->trainer);
    struct group *tensor = trainer_tensor(checking->trainer);
    int used =
        snprintf(buffer, size, tensor ? " of %d ranks" : "", tensor ? group_size(tensor) : 1);
    snprintf(buffer + used, size - (size_t)used, replicas ? ", %d replicas" : "",
             replicas ? group_size(replicas) : 1);
}

status_t check_run(const struct check *check, const char *folder, const struct run_config *config,
                   struct group *group)
{
    char replicas[64];
    struct checking checking = {.check = check, .folder = folder, .group = group};
    checking.options = (struct trainer_options){.config = config,
                                                .model = &checking.test.config,
                                                .group = group,
                                                .training = true,
                                                .weights = folder};
    status_t status = check_case_load(folder, config, &checking.test);
    if (status == STATUS_OK) {
        status = choose_batch(&checking, config);
    }
    status = group_agree(group, status);
    if (status == STATUS_OK) {
        status = trainer_create(&checking.options, &checking.trainer);
    }
    if (status == STATUS_OK) {
        status = check->steps > 0 ? check_steps(&checking) : check_gradients(&checking);
    }
    if (status == STATUS_OK && group_rank(group) == 0) {
        int stages = group_size(trainer_pipeline(checking.trainer));
        print_replicas(&checking, replicas, sizeof replicas);
        printf("passed: %s, %d stage%s%s, %s; worst: %s\n", folder, stages, stages == 1 ? "" : "s",
               replicas, trainer_plan(checking.trainer)->schedule, checking.worst);
    }
    trainer_destroy(checking.trainer);
    free(checking.logits);
    check_case_free(&checking.test);
    return status;
}
