/* check.c - muddpipe check: golden folders in turn, one forward and backward or optimizer steps of each. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "runtime/runtime.h"
#include "tools/arguments.h"
#include "tools/check_run.h"
#include "tools/tools.h"

/* float32: another order of additions. bf16: rounding the weights alone,
 * with everything else in float32, already moves the logits of the golden cases by up to 0.07, their
 * losses by 3e-4 and some gradient (sums that cancel, dense_bs first) by 0.22; bf16 activations add as
 * much again. Over steps these cases, whose dense weights are random, part from the reference: losses stay
 * near, norms of single steps say nothing after the first. */
static const struct check_limits limits_of[] = {
    [PRECISION_F32] = {1e-5, 1, 1, 10, 10, 20, INT64_MAX},
    [PRECISION_BF16] = {0.15, 1, 0.01, 2, 0.1, 1, 1},
};

static int check_help(FILE *out, int code)
{
    fprintf(
        out,
        "usage: muddpipe check DIR [DIR ...] [--tol X] [--steps N] [--save FILE] [--same FILE]\n"
        "                      [key.path=value ...]\n"
        "       mpirun -n N muddpipe check DIR ...            (N pipeline stages)\n\n"
        "Runs forward and backward of the model in DIR (config.json, model.safetensors,\n"
        "tokens.safetensors) and compares logits, loss and every gradient with\n"
        "expected.safetensors. Error = max|a-b| / max|b| per tensor. Several folders are checked\n"
        "one after the other; what one of them fails at does not keep the others from their turn,\n"
        "and the last line says how many passed.\n\n"
        "  --tol X      limit for logits and loss; gradients 10 X (default 1e-5). With\n"
        "               precision=bf16: logits X, loss X/100, gradients 2 X (default 0.15: "
        "rounding\n"
        "               the weights alone moves logits by up to 0.07 and gradients by up to 0.22)\n"
        "  --steps N    instead, N optimizer steps against losses.json: losses within 10 X,\n"
        "               gradient norms within 20 X (bf16: X/10; the first step's norm X)\n"
        "  --save FILE  write logits, loss and gradients as safetensors; with several folders "
        "FILE\n"
        "               is a folder, which gets NAME.safetensors of every DIR/NAME\n"
        "  --same FILE  compare them bit for bit with what --save wrote, of another layout, say\n"
        "  key=value    layout: parallel.pp, parallel.schedule, parallel.microbatches (default:\n"
        "               the batch of the case), parallel.transport, parallel.partition, ...\n\n"
        "Exit code 0 if everything is within its limit and the same, 1 if not, 2 for a wrong "
        "command line.\n");
    return code;
}

/* ---- several cases ---- */

const char *check_name(const char *folder, int *out_length)
{
    size_t end = strlen(folder);
    while (end > 1 && folder[end - 1] == '/') {
        end--;
    }
    size_t begin = end;
    while (begin > 0 && folder[begin - 1] != '/') {
        begin--;
    }
    *out_length = (int)(end - begin);
    return folder + begin;
}

/* Another case may pass where this one did not. After the others some rank is gone or may be anywhere. */
static bool goes_on(status_t status, const struct group *group)
{
    return status != STATUS_TIMEOUT && status != STATUS_INTERNAL && status != STATUS_INTERRUPTED &&
           !group_is_lost(group);
}

/* What became of a case, on all ranks: the first that failed by itself tells. */
static status_t case_agree(struct group *group, status_t mine, status_t *out)
{
    int own = (int)mine, all[group_size(group)];
    TRY(group_allgather(group, &own, sizeof own, all));
    *out = mine;
    for (int rank = group_size(group) - 1; rank >= 0; rank--) {
        if (all[rank] != STATUS_OK && (all[rank] != STATUS_PEER || *out == STATUS_OK)) {
            *out = (status_t)all[rank];
        }
    }
    return STATUS_OK;
}

static bool is_refusal(status_t status)
{
    return status == STATUS_INVALID || status == STATUS_UNSUPPORTED;
}

static void print_names(const struct check *check, const status_t *came, bool refused)
{
    int named = 0;
    for (int i = 0; i < check->count; i++) {
        int length;
        const char *name = check_name(check->folder[i], &length);
        if (came[i] != STATUS_OK && is_refusal(came[i]) == refused) {
            printf("%s %.*s",
                   named++ > 0 ? ","
                   : refused   ? "; refused:"
                               : "; failed:",
                   length, name);
        }
    }
}

/* "11 of 13 passed; failed: a; refused: b" */
static status_t tell_cases(const struct check *check, const status_t *came, bool root)
{
    int passed = 0;
    for (int i = 0; i < check->count; i++) {
        passed += came[i] == STATUS_OK;
    }
    if (root) {
        printf("%d of %d passed", passed, check->count);
        print_names(check, came, false);
        print_names(check, came, true);
        printf("\n");
        fflush(stdout);
    }
    return passed == check->count ? STATUS_OK : STATUS_MISMATCH;
}

static status_t one_of_many(const struct check *check, int i, const struct run_config *config,
                            struct group *group, status_t *out)
{
    bool stops;
    TRY(job_stop_agreed(group, &stops));
    if (stops) {
        return FAIL(STATUS_INTERRUPTED, "stopped by a signal after %d of %d cases", i,
                    check->count);
    }
    status_t status = check_run(check, check->folder[i], config, group);
    if (!goes_on(status, group)) {
        return status != STATUS_OK ? status : group_check(group);
    }
    TRY(case_agree(group, status, out));
    if (group_rank(group) == 0) {
        fflush(stdout); /* what was said of this case stands above what follows */
    }
    if (group_rank(group) == 0 && *out != STATUS_OK) {
        log_error("%s %s (%s)", check->folder[i], is_refusal(*out) ? "is refused" : "failed",
                  status_name(*out));
    }
    return STATUS_OK;
}

/* The folder that --save fills. */
static status_t make_folder(const struct check *check, struct group *group)
{
    status_t status = STATUS_OK;
    if (check->save && group_rank(group) == 0 && mkdir(check->save, 0777) != 0 && errno != EEXIST) {
        status =
            FAIL(STATUS_IO, "--save: cannot make the folder %s: %s", check->save, strerror(errno));
    }
    return group_agree(group, status);
}

static status_t check_body(struct job *job, struct group *group, void *argument)
{
    const struct check *check = argument;
    if (check->count == 1) {
        return check_run(check, check->folder[0], &job->config, group);
    }
    status_t *came = calloc((size_t)check->count, sizeof *came);
    status_t status = came ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for the outcome of cases");
    status = group_agree(group, status);
    if (status == STATUS_OK) {
        status = make_folder(check, group);
    }
    for (int i = 0; i < check->count && status == STATUS_OK; i++) {
        status = one_of_many(check, i, &job->config, group, &came[i]);
    }
    if (status == STATUS_OK) {
        status = tell_cases(check, came, group_rank(group) == 0);
    }
    free(came);
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

/* Two cases of one name would have one file. */
static bool same_names(const struct check *check)
{
    for (int i = 0; i < check->count; i++) {
        for (int j = 0; j < i; j++) {
            int length, other;
            const char *name = check_name(check->folder[i], &length);
            const char *second = check_name(check->folder[j], &other);
            if (length == other && strncmp(name, second, (size_t)length) == 0) {
                return true;
            }
        }
    }
    return false;
}

static int run_check(struct job *job, struct check *check, const char *tolerance, const char *steps)
{
    long long number = 0;
    bool keeps = check->save || check->same;
    if (check->count == 0) {
        return usage_failed("which folder?");
    }
    if (keeps && steps) {
        return usage_failed("--save and --same are for forward and backward, not for --steps");
    }
    if (keeps && same_names(check)) {
        return usage_failed("--save and --same want folders of different names");
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
    const struct flag flags[] = {{"--tol", &tolerance, NULL},
                                 {"--steps", &steps, NULL},
                                 {"--save", &check.save, NULL},
                                 {"--same", &check.same, NULL}};
    if (arguments_read(argc, argv, flags, 4, false, &arguments) != STATUS_OK) {
        return arguments_exit(&arguments);
    }
    if (arguments.help) {
        return check_help(stdout, EXIT_SUCCESS);
    }
    check.folder = arguments.paths;
    check.count = arguments.path_count;
    job.config = arguments.config;
    check.limits = &limits_of[job.config.precision];
    check.tolerance = check.limits->tolerance;
    int code = run_check(&job, &check, tolerance, steps);
    config_free(&job.config);
    free(arguments.paths);
    return code;
}
