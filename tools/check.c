/* check.c - muddpipe check: one forward and backward, or optimizer steps, against a golden folder. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/runtime.h"
#include "tools/arguments.h"
#include "tools/check_case.h"
#include "tools/check_report.h"
#include "tools/tools.h"

/* What may differ, in tolerances. float32: another order of additions. bf16: rounding the weights alone,
 * with everything else in float32, already moves the logits of the golden cases by up to 0.07, their
 * losses by 3e-4 and some gradient (sums that cancel, dense_bs first) by 0.22; bf16 activations add as
 * much again. Over steps these cases, whose dense weights are random, part from the reference: losses stay
 * near, norms of single steps say nothing after the first. */
struct limits {
    double tolerance; /* by default */
    double logits, loss, gradient;
    double step_loss, step_norm;
    int64_t norms; /* of so many first steps */
};
static const struct limits limits_of[] = {
    [PRECISION_F32] = {1e-5, 1, 1, 10, 10, 20, INT64_MAX},
    [PRECISION_BF16] = {0.15, 1, 0.01, 2, 0.1, 1, 1},
};

struct check {
    const char *folder;
    double tolerance; /* in units of which struct limits says what is allowed */
    const struct limits *limits;
    int64_t steps;
    const char *save;
};

/* What one rank works with. */
struct checking {
    const struct check *check;
    struct group *group;
    struct check_case test;
    struct trainer_options options;
    struct trainer *trainer;
    float *logits;  /* [batch * T, V], head's rank */
    status_t taken; /* of the logits */
};

static const struct optimizer_args golden_optimizer = {
    .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1.0};

static int check_help(FILE *out, int code)
{
    fprintf(
        out,
        "usage: muddpipe check DIR [--tol X] [--steps N] [--save FILE] [key.path=value ...]\n"
        "       mpirun -n N muddpipe check DIR ...            (N pipeline stages)\n\n"
        "Runs forward and backward of the model in DIR (config.json, model.safetensors,\n"
        "tokens.safetensors) and compares logits, loss and every gradient with\n"
        "expected.safetensors. Error = max|a-b| / max|b| per tensor.\n\n"
        "  --tol X      limit for logits and loss; gradients 10 X (default 1e-5). With\n"
        "               precision=bf16: logits X, loss X/100, gradients 2 X (default 0.15: "
        "rounding\n"
        "               the weights alone moves logits by up to 0.07 and gradients by up to 0.22)\n"
        "  --steps N    instead, N optimizer steps against losses.json: losses within 10 X,\n"
        "               gradient norms within 20 X (bf16: X/10; the first step's norm X)\n"
        "  --save FILE  write logits, loss and gradients as safetensors (to compare layouts\n"
        "               bit for bit)\n"
        "  key=value    layout: parallel.pp, parallel.schedule, parallel.microbatches (default:\n"
        "               the batch of the case), parallel.transport, parallel.partition, ...\n\n"
        "Exit code 0 if everything is within its limit, 1 if not, 2 for a wrong command line.\n");
    return code;
}

/* ---- logits ---- */

static void take_logits(void *argument, struct part *part, int frame, int microbatch)
{
    struct checking *checking = argument;
    int64_t rows = checking->options.B * checking->options.T;
    checking->taken =
        part_logits(part, frame, 0, rows,
                    checking->logits + microbatch * rows * checking->test.config.vocab_size);
}

static bool hosts_head(const struct checking *checking)
{
    const struct plan *plan = trainer_plan(checking->trainer);
    int last = trainer_model(checking->trainer)->graph.units - 1;
    return plan_rank_of(plan, plan_stage_of(plan, last)) == group_rank(checking->group);
}

static int64_t logits_count(const struct checking *checking)
{
    return checking->test.batch * checking->test.T * checking->test.config.vocab_size;
}

/* ---- gradients against the reference ---- */

static status_t compare(struct checking *checking, const char *name, const float *value,
                        int64_t count, double *out_error)
{
    float *reference;
    TRY(check_case_expected(&checking->test, name, count, &reference));
    *out_error = check_error(value, reference, count);
    free(reference);
    return STATUS_OK;
}

static status_t read_gradient(const struct part *part, int param, int64_t count, float **out)
{
    *out = malloc((size_t)count * sizeof **out);
    if (!*out) {
        return FAIL(STATUS_NOMEM, "no memory for a gradient of %lld values", (long long)count);
    }
    return part_read_gradient(part, param, *out);
}

static status_t compare_gradient(struct checking *checking, const struct part *part, int param,
                                 const char *name, double *out_error)
{
    int64_t count = trainer_model(checking->trainer)->param[param].count;
    float *gradient;
    status_t status = read_gradient(part, param, count, &gradient);
    if (status == STATUS_OK) {
        status = compare(checking, name, gradient, count, out_error);
    }
    free(gradient);
    return status;
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

static status_t compare_gradients(struct checking *checking, struct check_report *report,
                                  char (*names)[PARAM_NAME + 8])
{
    const struct model *model = trainer_model(checking->trainer);
    const struct part *part = trainer_part(checking->trainer);
    int item = 2;
    for (int p = 0; p < model->params; p++) {
        const struct param *param = &model->param[p];
        if (!param->trained) {
            continue;
        }
        snprintf(names[item], sizeof names[item], "grad.%s", param->name);
        report->name[item] = names[item];
        report->limit[item] = checking->check->limits->gradient * checking->check->tolerance;
        if (part_owns(part, p)) {
            TRY(compare_gradient(checking, part, p, names[item], &report->error[item]));
        }
        item++;
    }
    return STATUS_OK;
}

static int trained_params(const struct model *model)
{
    int count = 0;
    for (int p = 0; p < model->params; p++) {
        count += model->param[p].trained;
    }
    return count;
}

static status_t compare_all(struct checking *checking, const struct step_result *result)
{
    int items = 2 + trained_params(trainer_model(checking->trainer));
    struct check_report report;
    char(*names)[PARAM_NAME + 8] = calloc((size_t)items, sizeof *names);
    float loss = (float)result->loss;
    status_t status = check_report_create(items, &report);
    if (status == STATUS_OK && !names) {
        status = FAIL(STATUS_NOMEM, "no memory for %d names", items);
    }
    if (status == STATUS_OK) {
        report.name[0] = "logits";
        report.name[1] = "loss";
        report.limit[0] = checking->check->limits->logits * checking->check->tolerance;
        report.limit[1] = checking->check->limits->loss * checking->check->tolerance;
        status = check_names(checking);
    }
    if (status == STATUS_OK && hosts_head(checking)) {
        status =
            compare(checking, "logits", checking->logits, logits_count(checking), &report.error[0]);
        if (status == STATUS_OK) {
            status = compare(checking, "loss", &loss, 1, &report.error[1]);
        }
    }
    if (status == STATUS_OK) {
        status = compare_gradients(checking, &report, names);
    }
    status = group_agree(checking->group, status);
    if (status == STATUS_OK) {
        status = check_report_finish(&report, checking->group);
    }
    check_report_free(&report);
    free(names);
    return status;
}

/* ---- --save ---- */

static status_t save_gradient(const struct part *part, int param, const char *path,
                              const struct tensor_entry *entries, int count, int item)
{
    int64_t values = entries[item].shape[0] * (entries[item].dims > 1 ? entries[item].shape[1] : 1);
    float *gradient;
    status_t status = read_gradient(part, param, values, &gradient);
    if (status == STATUS_OK) {
        status = tensor_writer_write(path, entries, count, item, gradient);
    }
    free(gradient);
    return status;
}

static status_t save_own(struct checking *checking, const struct tensor_entry *entries, int count,
                         const struct step_result *result)
{
    const struct model *model = trainer_model(checking->trainer);
    const struct part *part = trainer_part(checking->trainer);
    const char *path = checking->check->save;
    float loss = (float)result->loss;
    if (hosts_head(checking)) {
        TRY(tensor_writer_write(path, entries, count, 0, checking->logits));
        TRY(tensor_writer_write(path, entries, count, 1, &loss));
    }
    for (int p = 0, item = 2; p < model->params; p++) {
        if (model->param[p].trained) {
            if (part_owns(part, p)) {
                TRY(save_gradient(part, p, path, entries, count, item));
            }
            item++;
        }
    }
    return STATUS_OK;
}

static void fill_entries(const struct checking *checking, struct tensor_entry *entries)
{
    const struct model *model = trainer_model(checking->trainer);
    entries[0] = (struct tensor_entry){
        "logits", 3, {checking->test.batch, checking->test.T, model->config.vocab_size}};
    entries[1] = (struct tensor_entry){"loss", 1, {1}};
    for (int p = 0, item = 2; p < model->params; p++) {
        const struct param *param = &model->param[p];
        if (param->trained) {
            struct tensor_entry *entry = &entries[item++];
            snprintf(entry->name, sizeof entry->name, "grad.%s", param->name);
            entry->dims = param->dims;
            entry->shape[0] = param->shape[0];
            entry->shape[1] = param->shape[1];
        }
    }
}

static status_t save(struct checking *checking, const struct step_result *result)
{
    int count = 2 + trained_params(trainer_model(checking->trainer));
    struct tensor_entry *entries = calloc((size_t)count, sizeof *entries);
    status_t status = entries ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for %d names", count);
    if (status == STATUS_OK) {
        fill_entries(checking, entries);
        if (group_rank(checking->group) == 0) {
            status = tensor_writer_create(checking->check->save, entries, count);
        }
    }
    status = group_agree(checking->group, status);
    if (status == STATUS_OK) {
        status = group_agree(checking->group, save_own(checking, entries, count, result));
    }
    free(entries);
    return status;
}

/* ---- the two modes ---- */

static status_t check_gradients(struct checking *checking)
{
    struct batch batch = {.inputs = checking->test.inputs, .targets = checking->test.targets};
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
    TRY(group_agree(checking->group, trainer_check_traffic(checking->trainer)));
    if (group_rank(checking->group) == 0) {
        printf("loss %.17g, gradient norm %.17g\n", result.loss, result.grad_norm);
    }
    if (checking->check->save) {
        TRY(save(checking, &result));
    }
    return compare_all(checking, &result);
}

static status_t check_steps(struct checking *checking)
{
    struct batch batch = {.inputs = checking->test.inputs, .targets = checking->test.targets};
    int64_t steps = checking->check->steps;
    double tolerance = checking->check->tolerance;
    double loss_limit = checking->check->limits->step_loss * tolerance;
    double norm_limit = checking->check->limits->step_norm * tolerance;
    double *reference = calloc((size_t)(2 * steps), sizeof *reference);
    status_t status = reference ? check_case_losses(&checking->test, steps, reference)
                                : FAIL(STATUS_NOMEM, "no memory for the losses");
    bool root = group_rank(checking->group) == 0;
    int failed = 0;
    status = group_agree(checking->group, status);
    for (int64_t s = 0; s < steps && status == STATUS_OK; s++) {
        struct step_result result;
        status = trainer_step(checking->trainer, &batch, &golden_optimizer, &result);
        if (status == STATUS_OK) {
            status = trainer_settle(checking->trainer, &result);
        }
        if (status != STATUS_OK) {
            break;
        }
        double loss_error = fabs(result.loss / reference[2 * s] - 1);
        double norm_error = fabs(result.grad_norm / reference[2 * s + 1] - 1);
        bool norm_good = norm_error <= norm_limit || s >= checking->check->limits->norms;
        bool good = loss_error <= loss_limit && norm_good && isfinite(norm_error);
        failed += !good;
        if (root) {
            printf("step %3lld  loss %.17g (off by %.2g)  gradient norm %.17g (off by %.2g)%s\n",
                   (long long)result.step, result.loss, loss_error, result.grad_norm, norm_error,
                   good ? "" : "  FAILED");
        }
    }
    free(reference);
    if (status == STATUS_OK && failed > 0) {
        if (root) {
            fflush(stdout);
            (void)FAIL(STATUS_MISMATCH,
                       "%d of %lld steps are off (losses may by %.2g, gradient norms by %.2g)",
                       failed, (long long)steps, loss_limit, norm_limit);
        }
        status = STATUS_MISMATCH;
    }
    return status;
}

/* ---- one rank ---- */

static status_t choose_batch(struct checking *checking, const struct run_config *config)
{
    int64_t batch = checking->test.batch, microbatches = config->parallel.microbatches;
    if (microbatches == 0) {
        microbatches = batch;
    }
    if (batch % microbatches != 0) {
        return FAIL(STATUS_INVALID,
                    "parallel.microbatches is %lld, which does not divide the case's batch of %lld",
                    (long long)microbatches, (long long)batch);
    }
    checking->options.microbatches = (int)microbatches;
    checking->options.B = batch / microbatches;
    checking->options.T = checking->test.T;
    return STATUS_OK;
}

static status_t check_body(struct job *job, struct group *group, void *argument)
{
    struct checking checking = {.check = argument, .group = group};
    checking.options = (struct trainer_options){.config = &job->config,
                                                .model = &checking.test.config,
                                                .group = group,
                                                .training = true,
                                                .weights = checking.check->folder};
    status_t status = check_case_load(checking.check->folder, &job->config, &checking.test);
    if (status == STATUS_OK) {
        status = choose_batch(&checking, &job->config);
    }
    status = group_agree(group, status);
    if (status == STATUS_OK) {
        status = trainer_create(&checking.options, &checking.trainer);
    }
    if (status == STATUS_OK) {
        status = checking.check->steps > 0 ? check_steps(&checking) : check_gradients(&checking);
    }
    if (status == STATUS_OK && group_rank(group) == 0) {
        printf("passed: %s, %d stage%s, %s\n", checking.check->folder, group_size(group),
               group_size(group) == 1 ? "" : "s", trainer_plan(checking.trainer)->schedule);
    }
    trainer_destroy(checking.trainer);
    free(checking.logits);
    check_case_free(&checking.test);
    return status;
}

/* ---- the command line ---- */

/* A positive, finite number. */
static bool parse_tolerance(const char *text, double *out)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*out) && *out > 0;
}

static int usage_failed(const char *what)
{
    fprintf(stderr, "muddpipe check: %s\n\n", what);
    return check_help(stderr, EXIT_USAGE);
}

static int run_check(struct job *job, struct check *check, const char *tolerance, const char *steps)
{
    long long number = 0;
    if (!check->folder) {
        return usage_failed("which folder?");
    }
    if (tolerance && !parse_tolerance(tolerance, &check->tolerance)) {
        return usage_failed("--tol wants a number above 0");
    }
    if (steps && arguments_number("--steps", steps, 1, &number) != STATUS_OK) {
        return EXIT_USAGE;
    }
    check->steps = number;
    return job_run(job, check_body, check);
}

int check_main(int argc, char **argv)
{
    struct check check = {0};
    struct job job = {.command = "check", .argc = argc + 1, .argv = argv - 1};
    struct arguments arguments;
    const char *tolerance = NULL, *steps = NULL;
    const struct flag flags[] = {
        {"--tol", &tolerance, NULL}, {"--steps", &steps, NULL}, {"--save", &check.save, NULL}};
    if (arguments_read(argc, argv, flags, 3, false, &arguments) != STATUS_OK) {
        return arguments_exit(&arguments);
    }
    if (arguments.help) {
        return check_help(stdout, EXIT_SUCCESS);
    }
    check.folder = arguments.path;
    job.config = arguments.config;
    check.limits = &limits_of[job.config.precision];
    check.tolerance = check.limits->tolerance;
    int code = run_check(&job, &check, tolerance, steps);
    config_free(&job.config);
    return code;
}
