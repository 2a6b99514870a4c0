/* test_bitwise.c - the bitwise law: any number of stages, any cut, schedule, number of threads and policy
 * of recomputation makes the same loss, gradient norm, gradients and weights, bit for bit; and the test
 * can fail.
 */
#include "tests/test.h"

#include <math.h>
#include <string.h>

#include "base/log.h"
#include "shapes.h"

enum { STEPS = 2 };

static const struct group_options patient = {.deadline_s = 30, .heartbeat_s = 30};
static const struct optimizer_args adamw = {
    .lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1.0};

/* ---- layouts ---- */

struct layout {
    int ranks;
    const char *partition; /* of the ten units of four layers; other depths, uncut layers: auto */
    const char *schedule, *threads, *prefetch;
    const char *recompute; /* NULL: none */
    int chunks;            /* stages a rank; 0: the schedule's own */
};

static const struct layout alone = {1, "auto", "1f1b", "1", "1", NULL, 0};
static const struct layout layouts[] = {
    {1, "auto", "gpipe", "2", "1", NULL, 0},
    {2, "auto", "1f1b", "1", "1", NULL, 0},
    {2, "layers", "gpipe", "1", "1", NULL, 0},
    {2, "4,6", "1f1b", "2", "0", NULL, 0},
    {2, "1,9", "gpipe", "1", "3", NULL, 0},
    {3, "auto", "gpipe", "2", "1", NULL, 0},
    {3, "layers", "1f1b", "1", "1", NULL, 0},
    {3, "2,3,5", "1f1b", "1", "0", NULL, 0},
    {4, "auto", "1f1b", "2", "1", NULL, 0},
    {4, "layers", "gpipe", "1", "1", NULL, 0},
    {4, "2,2,4,2", "gpipe", "1", "0", NULL, 0},
    {4, "3,2,4,1", "1f1b", "1", "2", NULL, 0},
    {4, "1,1,1,7", "1f1b", "1", "0", NULL, 0},
    {1, "auto", "1f1b", "1", "1", "selective", 0},
    {1, "auto", "gpipe", "2", "1", "full", 0},
    {2, "4,6", "1f1b", "1", "1", "full", 0},
    {3, "auto", "gpipe", "1", "0", "selective", 0},
    {4, "layers", "1f1b", "1", "1", "full", 0},
    {4, "3,2,4,1", "1f1b", "1", "2", "selective", 0},
    {2, "4,6", "zb-h1", "1", "1", NULL, 0},
    {3, "auto", "zb-h1", "2", "0", "selective", 0},
    {4, "3,2,4,1", "zb-h1", "1", "1", "full", 0},
    {1, "auto", "interleaved", "1", "1", NULL, 2},
    {2, "auto", "interleaved", "1", "0", NULL, 2},
    {2, "1,2,1,2,2,2", "interleaved", "2", "1", "selective", 3},
    {3, "auto", "interleaved", "1", "1", "full", 2},
    {1, "auto", "zb-v", "1", "1", "selective", 0},
    {2, "2,3,1,4", "zb-v", "1", "1", NULL, 0},
    {3, "auto", "zb-v", "2", "0", "full", 0},
    {3, "auto", "zb-v", "1", "1", "selective", 0},
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

static void load_run(const struct shape *shape, const struct layout *layout,
                     struct run_config *out_run, struct model_config *out_model)
{
    char partition[64], schedule[64], threads[64], prefetch[64], recompute[64], chunks[64];
    char *args[] = {partition, schedule, threads, prefetch, recompute, chunks};
    snprintf(partition, sizeof partition, "parallel.partition=%s", layout->partition);
    snprintf(schedule, sizeof schedule, "parallel.schedule=%s", layout->schedule);
    snprintf(threads, sizeof threads, "parallel.threads=%s", layout->threads);
    snprintf(prefetch, sizeof prefetch, "parallel.prefetch=%s", layout->prefetch);
    snprintf(recompute, sizeof recompute, "parallel.recompute=%s",
             layout->recompute ? layout->recompute : "none");
    snprintf(chunks, sizeof chunks, "parallel.virtual_stages=%d", layout->chunks);
    shape_load(shape, 6, args, out_run, out_model);
    bool cut = !out_model->use_parallel_residual && out_model->n_layer == 4;
    if (!cut && strchr(layout->partition, ',')) {
        snprintf(out_run->parallel.partition, sizeof out_run->parallel.partition, "auto");
    }
}

/* ---- what a run leaves ---- */

struct result {
    double loss[STEPS], norm[STEPS];
    float *gradient[STEPS], *weight; /* all parameters, one after the other */
    int64_t count;                   /* elements of these */
};

struct task {
    const struct shape *shape;
    const struct run_config *run;
    const struct model_config *config;
    const struct batch *batch;
    bool reorder; /* add up the gradient of X_0 backwards */
    struct result *result;
};

static void result_create(const struct model *model, struct result *out)
{
    *out = (struct result){.count = 0};
    for (int p = 0; p < model->params; p++) {
        out->count += model->param[p].count;
    }
    for (int s = 0; s < STEPS; s++) {
        out->gradient[s] = calloc((size_t)out->count, sizeof(float));
        assert_non_null(out->gradient[s]);
    }
    out->weight = calloc((size_t)out->count, sizeof(float));
    assert_non_null(out->weight);
}

static void result_free(struct result *result)
{
    for (int s = 0; s < STEPS; s++) {
        free(result->gradient[s]);
    }
    free(result->weight);
}

/* This rank's parameters into the common array; nobody else writes there. */
static void collect(const struct model *model, struct part *part, bool gradient, float *out)
{
    for (int p = 0; p < model->params; p++) {
        int64_t count = model->param[p].count;
        if (part_owns(part, p) && (!gradient || model->param[p].trained)) {
            const float *from = gradient ? part_values(part, STORE_GRADIENTS, p)
                                         : part_values(part, STORE_WEIGHTS, p);
            memcpy(out, from, (size_t)count * sizeof *out);
        }
        out += count;
    }
}

/* The plan is data, so another order of additions is a matter of turning some of it round. */
static void reorder_sums(struct plan *plan, int key)
{
    int turned = 0;
    for (int i = 0; i < plan->rank[0].ops; i++) {
        const struct op *op = &plan->rank[0].op[i];
        if (op->kind != OP_GRAD || op->key != key || op->microbatch != 0) {
            continue;
        }
        struct add *add = plan->add + op->first_add;
        for (int a = 0, b = op->adds - 1; a < b; a++, b--) {
            struct add other = add[a];
            add[a] = add[b];
            add[b] = other;
            turned++;
        }
    }
    assert_true(turned > 0);
}

static status_t walk_steps(struct task *task, struct trainer *trainer, bool root)
{
    const struct model *model = trainer_model(trainer);
    for (int s = 0; s < STEPS; s++) {
        struct step_result step;
        TRY(trainer_step(trainer, task->batch, &adamw, &step));
        collect(model, trainer_part(trainer), true, task->result->gradient[s]);
        if (root) {
            task->result->loss[s] = step.loss;
            task->result->norm[s] = step.grad_norm;
        }
    }
    collect(model, trainer_part(trainer), false, task->result->weight);
    return trainer_check_traffic(trainer);
}

static status_t run_rank(struct group *group, void *argument)
{
    struct task *task = argument;
    struct trainer *trainer;
    struct trainer_options options = {.config = task->run,
                                      .model = task->config,
                                      .group = group,
                                      .B = task->shape->B,
                                      .T = task->shape->T,
                                      .microbatches = task->shape->microbatches,
                                      .training = true};
    TRY(trainer_create(&options, &trainer));
    shape_stir(trainer_model(trainer), trainer_part(trainer));
    if (task->reorder) {
        reorder_sums(trainer->workers.train->plan, 0); /* X_0 */
    }
    status_t status = walk_steps(task, trainer, group_rank(group) == 0);
    trainer_destroy(trainer);
    return status;
}

static void run(const struct shape *shape, const struct layout *layout, bool reorder,
                struct result *out)
{
    struct run_config run;
    struct model_config config;
    struct model *model;
    int64_t tokens = shape->microbatches * shape->B * shape->T;
    load_run(shape, layout, &run, &config);
    assert_ok(model_create(&config, &(struct model_use){.B = shape->B, .T = shape->T}, &model));
    result_create(model, out);
    model_destroy(model);
    int32_t *inputs = shape_tokens("inputs", tokens, config.vocab_size);
    int32_t *targets = shape_tokens("targets", tokens, config.vocab_size);
    int32_t *first = shape_documents(shape);
    struct batch batch = {.inputs = inputs, .targets = targets, .first = first};
    struct task task = {shape, &run, &config, &batch, reorder, out};
    status_t status = group_run_threads(layout->ranks, &patient, NULL, run_rank, &task);
    free(inputs);
    free(targets);
    free(first);
    config_free(&run);
    if (status != STATUS_OK) {
        fail_msg("%s: %d ranks, %s, %s: status %d", shape->name, layout->ranks, layout->partition,
                 layout->schedule, status);
    }
}

/* ---- comparing ---- */

/* Name of the parameter that holds element `at`. */
static void name_of(const struct shape *shape, int64_t at, char *out, size_t size)
{
    struct run_config run;
    struct model_config config;
    struct model *model;
    load_run(shape, &alone, &run, &config);
    assert_ok(model_create(&config, &(struct model_use){.B = shape->B, .T = shape->T}, &model));
    int p = 0;
    while (at >= model->param[p].count) {
        at -= model->param[p++].count;
    }
    snprintf(out, size, "%s[%lld]", model->param[p].name, (long long)at);
    model_destroy(model);
    config_free(&run);
}

/* First element with other bits, or -1. */
static int64_t first_difference(const float *a, const float *b, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        if (memcmp(&a[i], &b[i], sizeof a[i]) != 0) {
            return i;
        }
    }
    return -1;
}

static bool same_bits(const struct result *a, const struct result *b, const char **out_what,
                      int64_t *out_at)
{
    static const char *const names[] = {"a gradient of step 1", "a gradient of step 2", "a weight"};
    const float *left[] = {a->gradient[0], a->gradient[1], a->weight};
    const float *right[] = {b->gradient[0], b->gradient[1], b->weight};
    assert_int_equal(a->count, b->count);
    for (int i = 0; i < 3; i++) {
        *out_what = names[i];
        *out_at = first_difference(left[i], right[i], a->count);
        if (*out_at >= 0) {
            return false;
        }
    }
    *out_what = "the loss";
    if (memcmp(a->loss, b->loss, sizeof a->loss) != 0) {
        return false;
    }
    *out_what = "the gradient norm";
    return memcmp(a->norm, b->norm, sizeof a->norm) == 0;
}

static void assert_sound(const struct shape *shape, const struct result *result)
{
    int64_t nonzero = 0;
    for (int64_t i = 0; i < result->count; i++) {
        assert_true(isfinite(result->gradient[0][i]));
        nonzero += result->gradient[0][i] != 0;
    }
    if (!(result->norm[0] > 0 && result->loss[1] > 0 && result->loss[1] < result->loss[0])) {
        fail_msg("%s: losses %g, %g", shape->name, result->loss[0], result->loss[1]);
    }
    if (nonzero < result->count / 2) {
        fail_msg("%s: only %lld of %lld gradients are not zero", shape->name, (long long)nonzero,
                 (long long)result->count);
    }
}

/* Has the model as many places for cuts as the layout has stages? */
static bool fits(const struct shape *shape, const struct layout *layout)
{
    struct run_config run;
    struct model_config config;
    load_run(shape, layout, &run, &config);
    int64_t cuts = config.use_parallel_residual ? config.n_layer + 2 : 2 * config.n_layer + 2;
    bool two = strcmp(layout->schedule, "zb-v") == 0;
    config_free(&run);
    return layout->ranks * (two ? 2 : layout->chunks > 0 ? layout->chunks : 1) <= cuts;
}

static void compare_layouts(const struct shape *shape)
{
    struct result reference, result;
    run(shape, &alone, false, &reference);
    assert_sound(shape, &reference);
    for (int l = 0; l < LAYOUTS; l++) {
        const struct layout *layout = &layouts[l];
        const char *what;
        int64_t at;
        if (!fits(shape, layout)) {
            continue;
        }
        run(shape, layout, false, &result);
        if (!same_bits(&reference, &result, &what, &at)) {
            char name[128] = "";
            if (at >= 0) {
                name_of(shape, at, name, sizeof name);
            }
            fail_msg("%s: %s %s has other bits with %d ranks, partition %s, %s, %s threads, "
                     "recompute %s",
                     shape->name, what, name, layout->ranks, layout->partition, layout->schedule,
                     layout->threads, layout->recompute ? layout->recompute : "none");
        }
        result_free(&result);
    }
    result_free(&reference);
}

/* ---- tests ---- */

static void test_same_bits(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        compare_layouts(&shapes[s]);
    }
}

/* The same sums in another order: other bits, as good as equal. The comparison must see it. */
static void test_can_fail(void **state)
{
    struct result reference, result;
    const char *what;
    int64_t at;
    (void)state;
    run(&shapes[0], &alone, false, &reference);
    run(&shapes[0], &alone, true, &result);
    assert_false(same_bits(&reference, &result, &what, &at));
    assert_string_equal(what, "a gradient of step 1");
    double off = 0, largest = 0;
    for (int64_t i = 0; i < reference.count; i++) {
        double gradient = reference.gradient[0][i];
        off = fmax(off, fabs(gradient - (double)result.gradient[0][i]));
        largest = fmax(largest, fabs(gradient));
    }
    assert_true(off > 0 && off < 1e-5 * largest);
    assert_true(memcmp(&reference.loss[0], &result.loss[0], sizeof(double)) == 0); /* forward */
    result_free(&reference);
    result_free(&result);
}

/* One microbatch later the same tokens give other numbers: nothing compares constants. */
static void test_depends_on_batch(void **state)
{
    struct shape other = shapes[0];
    struct result reference, result;
    const char *what;
    int64_t at;
    (void)state;
    other.microbatches++;
    run(&shapes[0], &alone, false, &reference);
    run(&other, &alone, false, &result);
    assert_false(same_bits(&reference, &result, &what, &at));
    result_free(&reference);
    result_free(&result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_can_fail),
        cmocka_unit_test(test_depends_on_batch),
    };
    log_set_level(LOG_WARN);
    return cmocka_run_group_tests_name("runtime/bitwise", tests, NULL, NULL);
}
