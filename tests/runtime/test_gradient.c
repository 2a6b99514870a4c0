/* test_gradient.c - the gradient of every parameter of every kind of model against finite differences
 * of the loss, along the gradient itself: (loss(w + h g/|g|) - loss(w - h g/|g|)) / 2h = |g|.
 */
#include "tests/test.h"

#include <math.h>
#include <string.h>

#include "base/log.h"
#include "shapes.h"

static const double change = 1e-3;     /* of the loss, aimed at; h follows */
static const double longest = 4e-3;    /* largest h */
static const double loss_noise = 2e-6; /* of a loss in float32 */
static const double relative_limit = 0.03;

struct probe {
    const struct shape *shape;
    struct trainer *trainer;
    struct batch batch;
    double tokens;
};

static double loss_at(struct probe *probe)
{
    double loss;
    assert_ok(trainer_evaluate(probe->trainer, &probe->batch, &loss));
    return loss / probe->tokens;
}

static void move(float *weight, const float *from, const float *gradient, double scale,
                 int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        weight[i] = (float)((double)from[i] + scale * (double)gradient[i]);
    }
}

/* Central difference along the gradient, which has this norm. */
static double slope_at(struct probe *probe, float *weight, const float *saved,
                       const float *gradient, double norm, double step, int64_t count)
{
    move(weight, saved, gradient, step / norm, count);
    double above = loss_at(probe);
    move(weight, saved, gradient, -step / norm, count);
    return (above - loss_at(probe)) / (2 * step);
}

static void probe_param(struct probe *probe, int p)
{
    const struct param *param = &trainer_model(probe->trainer)->param[p];
    struct part *part = trainer_part(probe->trainer);
    const float *gradient = part_values(part, STORE_GRADIENTS, p);
    float *weight = part_values(part, STORE_WEIGHTS, p);
    float *saved = calloc((size_t)param->count, sizeof *saved);
    double norm = 0;
    assert_non_null(saved);
    memcpy(saved, weight, (size_t)param->count * sizeof *saved);
    for (int64_t i = 0; i < param->count; i++) {
        norm += (double)gradient[i] * (double)gradient[i];
    }
    norm = sqrt(norm);
    if (!(norm > 0)) {
        fail_msg("%s: the gradient of %s is %g", probe->shape->name, param->name, norm);
    }
    double step = fmin(longest, change / norm);
    double far = slope_at(probe, weight, saved, gradient, norm, 2 * step, param->count);
    double near = slope_at(probe, weight, saved, gradient, norm, step, param->count);
    double slope = near + (near - far) / 3; /* Richardson: the cubic term drops out */
    memcpy(weight, saved, (size_t)param->count * sizeof *saved);
    free(saved);
    if (!(fabs(slope - norm) <= relative_limit * norm + loss_noise / step)) {
        fail_msg("%s: %s: slope %g, but the gradient's norm is %g", probe->shape->name, param->name,
                 slope, norm);
    }
}

static void probe_shape(const struct shape *shape)
{
    struct run_config run;
    struct model_config config;
    struct group *group;
    struct group_options patient = {.deadline_s = 30, .heartbeat_s = 30};
    struct step_result result;
    char *one_thread = "parallel.threads=1";
    struct probe probe = {.shape = shape};
    int64_t tokens = shape->microbatches * shape->B * shape->T;
    shape_load(shape, 1, &one_thread, &run, &config);
    int32_t *inputs = shape_tokens("inputs", tokens, config.vocab_size);
    int32_t *targets = shape_tokens("targets", tokens, config.vocab_size);
    assert_ok(group_open_alone(&patient, &group));
    struct trainer_options options = {.config = &run,
                                      .model = &config,
                                      .group = group,
                                      .B = shape->B,
                                      .T = shape->T,
                                      .microbatches = shape->microbatches,
                                      .training = true};
    assert_ok(trainer_create(&options, &probe.trainer));
    const struct model *model = trainer_model(probe.trainer);
    shape_stir(model, trainer_part(probe.trainer));
    int32_t *first = shape_documents(shape);
    probe.batch = (struct batch){.inputs = inputs, .targets = targets, .first = first};
    probe.tokens = (double)tokens;
    assert_ok(trainer_step(probe.trainer, &probe.batch, NULL, &result));
    assert_true(fabs(loss_at(&probe) - result.loss) < loss_noise);
    for (int p = 0; p < model->params; p++) {
        if (model->param[p].trained) {
            probe_param(&probe, p);
        }
    }
    trainer_destroy(probe.trainer);
    group_close(group);
    config_free(&run);
    free(inputs);
    free(targets);
    free(first);
}

static void test_every_parameter(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        probe_shape(&shapes[s]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_parameter)};
    log_set_level(LOG_WARN);
    return cmocka_run_group_tests_name("runtime/gradient", tests, NULL, NULL);
}
