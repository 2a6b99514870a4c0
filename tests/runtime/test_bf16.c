/* test_bf16.c - bf16 activations and weights under float32 masters: close to the golden cases within what
 * `muddpipe check` allows, the same bits for every policy of recomputation and for evaluation, and rounded
 * weights that follow their masters.
 */
#include "tests/test.h"

#include <stdio.h>

#include "base/json.h"
#include "base/log.h"
#include "rounded.h"
#include "runtime/runtime.h"

static const char *const cases[] = {
    "muddformer-tiny",
    "muddformer-tiny-noqk",
    "transformerpp-tiny",
    "muddpythia-tiny",
    "pythia-tiny",
    "muddformer-k2-tiny",
    "muddformer-p2-tiny",
    "muddformer-blocks-tiny",
    "muddformer-window-tiny",
    "muddformer-static-tiny",
    "muddformer-single-tiny",
    "muddformer-noq-tiny",
    "muddformer-ppn-tiny",
    "depth-attention-tiny",
    "depth-attention-blocks-tiny",
    "hyper-mhc-tiny",
    "hyper-dynamic-tiny",
};
enum { CASES = sizeof cases / sizeof cases[0] };

/* One rank that hosts everything. */
struct alone {
    struct model *model;
    struct plan *plan;
    struct part *part;
    void **gradient; /* [keys] */
    int32_t *inputs, *targets;
    int64_t batch, T;
    float *logits;
    double loss; /* mean */
    double sum;  /* of the microbatch under way */
};

static const char *path_of(const char *name, const char *file)
{
    static char path[1024];
    snprintf(path, sizeof path, "%s/golden/%s/%s", TEST_FOLDER, name, file);
    return path;
}

static void load_tokens(const char *name, struct alone *alone)
{
    struct tensor_file *file;
    struct tensor tokens;
    assert_ok(tensor_file_open(path_of(name, "tokens.safetensors"), &file));
    assert_true(tensor_file_find(file, "tokens", &tokens));
    alone->batch = tokens.shape[0];
    alone->T = tokens.shape[1] - 1;
    alone->inputs = calloc((size_t)tokens.count, sizeof(int32_t));
    alone->targets = calloc((size_t)tokens.count, sizeof(int32_t));
    assert_true(alone->inputs && alone->targets);
    for (int64_t b = 0; b < alone->batch; b++) {
        const char *row = (const char *)tokens.data + b * (alone->T + 1) * 4;
        memcpy(alone->inputs + b * alone->T, row, (size_t)alone->T * 4);
        memcpy(alone->targets + b * alone->T, row + 4, (size_t)alone->T * 4);
    }
    tensor_file_close(file);
}

static void create(const char *name, enum recompute_choice recompute, bool training,
                   struct alone *out)
{
    struct model_config config;
    struct tensor_file *file;
    *out = (struct alone){.loss = 0};
    load_tokens(name, out);
    assert_ok(model_config_load(path_of(name, "config.json"), NULL, NULL, &config));
    struct model_use use = {.B = 1,
                            .T = out->T,
                            .dtype = DTYPE_BF16,
                            .recompute = recompute,
                            .weights_at_once = recompute == RECOMPUTE_FULL};
    assert_ok(model_create(&config, &use, &out->model));
    const struct model *model = out->model;
    struct plan_options plan = {.ranks = 1,
                                .microbatches = (int)out->batch,
                                .chunks = 1,
                                .schedule = training ? "gpipe" : "forward",
                                .partition = "auto",
                                .weights_at_once = recompute == RECOMPUTE_FULL};
    assert_ok(plan_create(&model->graph, &plan, &out->plan));
    struct part_stage stage;
    struct part_options part = {.model = model,
                                .kernels = rounded_kernels(),
                                .stage = &stage,
                                .stages = part_stages_of(out->plan, 0, &stage),
                                .training = training,
                                .threads = 1};
    assert_ok(part_create(&part, &out->part));
    assert_ok(tensor_file_open(path_of(name, "model.safetensors"), &file));
    assert_ok(part_import(out->part, file));
    tensor_file_close(file);
    out->gradient = calloc((size_t)model->graph.keys, sizeof *out->gradient);
    out->logits = calloc((size_t)(out->batch * out->T * config.vocab_size), sizeof *out->logits);
    assert_true(out->gradient && out->logits);
    for (int key = 0; key < model->graph.keys; key++) {
        size_t bytes = (size_t)model->graph.key[key].bytes;
        out->gradient[key] = aligned_alloc(256, (bytes + 255) / 256 * 256);
        assert_non_null(out->gradient[key]);
    }
}

static void destroy(struct alone *alone)
{
    for (int key = 0; key < alone->model->graph.keys; key++) {
        free(alone->gradient[key]);
    }
    free(alone->gradient);
    free(alone->logits);
    free(alone->inputs);
    free(alone->targets);
    part_destroy(alone->part);
    plan_destroy(alone->plan);
    model_destroy(alone->model);
}

static void run_forward(struct alone *alone, const struct op *op)
{
    int64_t offset = op->microbatch * alone->T;
    double tokens = (double)(alone->batch * alone->T);
    part_set_tokens(alone->part, 0, op->frame, alone->inputs + offset, alone->targets + offset);
    part_set_loss(alone->part, 0, op->frame, (float)(1.0 / tokens), &alone->sum);
    part_forward(alone->part, op->unit, op->frame);
}

/* After the head's operation that made logits and loss. */
static void take_head(struct alone *alone, const struct op *op)
{
    const struct model *model = alone->model;
    if (op->unit == model->graph.units - 1) {
        alone->loss += alone->sum / (double)(alone->batch * alone->T);
        assert_ok(
            part_logits(alone->part, op->frame, 0, alone->T,
                        alone->logits + op->microbatch * alone->T * model->config.vocab_size));
    }
}

/* What runtime/executor.c does, for one rank. */
static void run(struct alone *alone)
{
    const struct plan *plan = alone->plan;
    alone->loss = 0;
    if (plan->training) {
        part_zero_gradients(alone->part);
    }
    for (int key = 0; plan->training && key < alone->model->graph.keys; key++) {
        part_set_key_gradient(alone->part, 0, 0, key, alone->gradient[key]);
    }
    for (int i = 0; i < plan->rank[0].ops; i++) {
        const struct op *op = &plan->rank[0].op[i];
        if (op->kind == OP_F) {
            run_forward(alone, op);
            if (!plan->training) {
                take_head(alone, op);
            }
        } else if (op->kind == OP_B) {
            part_backward(alone->part, op->unit, op->frame, op->backward_slot);
            take_head(alone, op);
        } else if (op->kind == OP_W) {
            part_weight_gradient(alone->part, op->unit, op->frame, op->backward_slot);
        } else if (op->kind == OP_GRAD) {
            struct key_sum sum = {.frame = op->frame,
                                  .slot = op->backward_slot,
                                  .key = op->key,
                                  .adds = plan->add + op->first_add,
                                  .count = op->adds};
            part_key_gradient(alone->part, &sum);
        }
    }
}

/* ---- against the golden cases ---- */

/* max|a - b| / max|b| against the case's tensor. */
static double error_of(const struct tensor_file *file, const char *name, const float *value)
{
    struct tensor tensor;
    double difference = 0, largest = 0;
    assert_true(tensor_file_find(file, name, &tensor));
    float *reference = malloc((size_t)tensor.count * sizeof *reference);
    assert_non_null(reference);
    assert_ok(tensor_to_float(&tensor, reference));
    for (int64_t i = 0; i < tensor.count; i++) {
        difference = fmax(difference, fabs((double)value[i] - (double)reference[i]));
        largest = fmax(largest, fabs((double)reference[i]));
    }
    free(reference);
    return largest > 0 ? difference / largest : difference;
}

/* As tools/check.c has them, and why. */
static const struct {
    double logits, loss, gradient, step_loss, step_norm;
} limits = {
    .logits = 0.15, .loss = 1.5e-3, .gradient = 0.3, .step_loss = 1.5e-2, .step_norm = 0.15};

static void assert_within(const char *name, const char *what, double error, double limit)
{
    if (!(error <= limit)) {
        fail_msg("%s: %s is off by %.3g, %.3g is allowed", name, what, error, limit);
    }
}

static void test_golden(void **state)
{
    (void)state;
    double worst = 0;
    for (int i = 0; i < CASES; i++) {
        struct alone alone;
        struct tensor_file *expected;
        create(cases[i], RECOMPUTE_NONE, true, &alone);
        run(&alone);
        assert_ok(tensor_file_open(path_of(cases[i], "expected.safetensors"), &expected));
        float loss = (float)alone.loss;
        double logits = error_of(expected, "logits", alone.logits);
        worst = fmax(worst, logits);
        assert_within(cases[i], "logits", logits, limits.logits);
        assert_within(cases[i], "loss", error_of(expected, "loss", &loss), limits.loss);
        for (int p = 0; p < alone.model->params; p++) {
            const struct param *param = &alone.model->param[p];
            char name[PARAM_NAME + 8];
            snprintf(name, sizeof name, "grad.%s", param->name);
            if (param->trained) {
                assert_within(cases[i], name,
                              error_of(expected, name, part_values(alone.part, STORE_GRADIENTS, p)),
                              limits.gradient);
            }
        }
        tensor_file_close(expected);
        destroy(&alone);
    }
    assert_true(worst > 1e-3); /* it was bf16 */
}

/* ---- steps ---- */

/* One step with the optimizer of tests/golden/README.md; *out_norm before clipping. */
static void step(struct alone *alone, int number, double *out_norm)
{
    double *squares = calloc((size_t)alone->model->params, sizeof *squares), sum = 0;
    assert_non_null(squares);
    run(alone);
    assert_ok(part_gradient_squares(alone->part, squares));
    for (int p = 0; p < alone->model->params; p++) {
        sum += squares[p];
    }
    free(squares);
    *out_norm = sqrt(sum);
    double scale = 1 / (*out_norm + 1e-6);
    struct adamw_args args = {.lr = 1e-3f,
                              .beta1 = 0.9f,
                              .beta2 = 0.95f,
                              .eps = 1e-8f,
                              .weight_decay = 0.1f,
                              .gradient_scale = (float)(scale < 1 ? scale : 1),
                              .step = number};
    part_adamw(alone->part, &args);
}

static void test_steps(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct alone alone;
        struct json *losses;
        create(cases[i], RECOMPUTE_NONE, true, &alone);
        assert_ok(json_load(path_of(cases[i], "losses.json"), &losses));
        const struct json *list = json_get(losses, "loss_and_grad_norm");
        for (size_t s = 0; s < 10; s++) {
            double loss, norm, own_norm;
            assert_true(json_get_real(json_at(json_at(list, s), 0), &loss));
            assert_true(json_get_real(json_at(json_at(list, s), 1), &norm));
            step(&alone, (int)s + 1, &own_norm);
            assert_within(cases[i], "the loss of a step", fabs(alone.loss / loss - 1),
                          limits.step_loss);
            assert_within(cases[i], "the norm of the first step", fabs(own_norm / norm - 1),
                          s == 0 ? limits.step_norm : 1e3);
        }
        json_free(losses);
        destroy(&alone);
    }
}

/* ---- the same bits ---- */

static void assert_same_gradients(const char *name, const struct alone *a, const struct alone *b)
{
    for (int p = 0; p < a->model->params; p++) {
        const struct param *param = &a->model->param[p];
        if (param->trained && memcmp(part_values(a->part, STORE_GRADIENTS, p),
                                     part_values(b->part, STORE_GRADIENTS, p),
                                     (size_t)param->count * sizeof(float)) != 0) {
            fail_msg("%s: other bits in the gradient of %s", name, param->name);
        }
    }
}

static void assert_same_logits(const struct alone *a, const struct alone *b)
{
    int64_t count = a->batch * a->T * a->model->config.vocab_size;
    assert_memory_equal(a->logits, b->logits, (size_t)count * sizeof *a->logits);
    assert_memory_equal(&a->loss, &b->loss, sizeof a->loss);
}

static void test_recompute(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct alone none, other;
        create(cases[i], RECOMPUTE_NONE, true, &none);
        run(&none);
        for (int policy = RECOMPUTE_SELECTIVE; policy <= RECOMPUTE_FULL; policy++) {
            create(cases[i], (enum recompute_choice)policy, true, &other);
            run(&other);
            assert_same_logits(&none, &other);
            assert_same_gradients(cases[i], &none, &other);
            destroy(&other);
        }
        destroy(&none);
    }
}

/* After steps the operations read what the masters round to: a part for evaluation that has nothing but
 * rounded copies of these masters computes the same. */
static void test_evaluation(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct alone trained, evaluated;
        double norm;
        create(cases[i], RECOMPUTE_SELECTIVE, true, &trained);
        create(cases[i], RECOMPUTE_NONE, false, &evaluated);
        step(&trained, 1, &norm);
        run(&evaluated);
        assert_same_logits(&trained, &evaluated); /* before the step */
        for (int p = 0; p < trained.model->params; p++) {
            size_t count = (size_t)trained.model->param[p].count;
            float *weight = malloc(count * sizeof *weight);
            assert_non_null(weight);
            struct slice whole = slice_whole(trained.model, STORE_WEIGHTS, p);
            assert_ok(part_read(trained.part, &whole, weight));
            assert_ok(part_write(evaluated.part, STORE_WEIGHTS, p, weight));
            free(weight);
        }
        double before = trained.loss;
        run(&trained);
        run(&evaluated);
        assert_true(trained.loss != before);
        assert_same_logits(&trained, &evaluated);
        destroy(&trained);
        destroy(&evaluated);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_recompute),
        cmocka_unit_test(test_evaluation),
    };
    log_set_level(LOG_WARN);
    return cmocka_run_group_tests_name("runtime/bf16", tests, NULL, NULL);
}
