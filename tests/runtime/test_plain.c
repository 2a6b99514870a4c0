/* test_plain.c - the program against docs/model.md: losses and gradients of every kind of model
 * against a second implementation in double that was written from that page alone (plain.h).
 *
 * Gradients: of the first microbatch, each tensor's along a direction of signs drawn per element, by
 * central differences of the second implementation's loss, which double makes good to five digits.
 */
#include "tests/test.h"

#include <math.h>
#include <string.h>

#include "base/log.h"
#include "plain_model.h"
#include "shapes.h"

/* float32 leaves 1e-7 (where more, the shape itself says how much: loss_noise) and 7e-5, the latter in sums that cancel, elsewhere with another product. */
static const double loss_limit = 3e-7;     /* relative */
static const double gradient_limit = 2e-4; /* of what a direction sees of a gradient, see below */
static const double step = 1e-4;           /* length of a move: 1e-5 changes the slopes by 2e-6 */

/* Beside those of shapes.h. */
static const struct shape more[] = {
    {"widths by no rule",
     1,
     16,
     1,
     {"model.ffn_scale_with_layer=false", "model.expand_last=false", "model.round64=false"},
     false},
    {"three query heads a key, ways q and k",
     1,
     16,
     1,
     {"model.n_head=6", "model.n_local_heads=2", "model.dense_ways=qk"},
     false},
    {"residue of the query, k = 3",
     1,
     16,
     1,
     {"dense.key_dilation=3", "dense.key_residue=query"},
     false},
    {"Pythia family, one way", 1, 16, 1, {PYTHIA, "model.dense_type=l", PRENORM, POSTNORM}, true},
    {"hyper-connections, mhc, one layer, two streams",
     1,
     16,
     1,
     {HYPER, "model.n_layer=1", "model.hyper_streams=2"},
     false},
    {"depth attention, one layer", 1, 16, 1, {DEPTH, "model.n_layer=1"}, false},
    {"Pythia family, PrePostNorm of some",
     1,
     16,
     1,
     {PYTHIA, PRENORM, POSTNORM, "model.mudd_postnorm_ways=kv"},
     false},
};

enum { MORE = sizeof more / sizeof more[0] };

struct pair {
    const struct shape *shape;
    struct run_config run;
    struct model_config config;
    struct group *group;
    struct trainer *trainer;
    struct plain plain;
    struct batch batch;
    int32_t *inputs, *targets, *first;
};

static void pair_open(struct pair *pair, const struct shape *shape)
{
    struct group_options patient = {.deadline_s = 30, .heartbeat_s = 30};
    char *one_thread = "parallel.threads=1";
    int64_t tokens = shape->microbatches * shape->B * shape->T;
    *pair = (struct pair){.shape = shape};
    shape_load(shape, 1, &one_thread, &pair->run, &pair->config);
    pair->inputs = shape_tokens("inputs", tokens, pair->config.vocab_size);
    pair->targets = shape_tokens("targets", tokens, pair->config.vocab_size);
    pair->first = shape_documents(shape);
    pair->batch = (struct batch){
        .inputs = pair->inputs, .targets = pair->targets, .first = pair->first, .microbatches = 0};
    assert_ok(group_open_alone(&patient, &pair->group));
    struct trainer_options options = {.config = &pair->run,
                                      .model = &pair->config,
                                      .group = pair->group,
                                      .B = shape->B,
                                      .T = shape->T,
                                      .microbatches = shape->microbatches,
                                      .training = true};
    assert_ok(trainer_create(&options, &pair->trainer));
    shape_stir(trainer_model(pair->trainer), trainer_part(pair->trainer));
    plain_init(&pair->plain, trainer_model(pair->trainer), trainer_part(pair->trainer), shape->T);
}

static void pair_close(struct pair *pair)
{
    plain_fini(&pair->plain);
    trainer_destroy(pair->trainer);
    group_close(pair->group);
    config_free(&pair->run);
    free(pair->inputs);
    free(pair->targets);
    free(pair->first);
}

static double pair_loss(struct pair *pair, int microbatches)
{
    return plain_loss(&pair->plain, microbatches * pair->shape->B, pair->inputs, pair->targets,
                      pair->first);
}

/* Relative difference of the two losses over all microbatches. */
static double loss_error(struct pair *pair)
{
    double theirs, ours = pair_loss(pair, pair->shape->microbatches);
    assert_ok(trainer_evaluate(pair->trainer, &pair->batch, &theirs));
    theirs /= (double)(pair->shape->microbatches * pair->shape->B * pair->shape->T);
    return fabs(theirs - ours) / ours;
}

static double sign_of(int p, int64_t i)
{
    return rng_bits(3, (uint64_t)p, (uint64_t)i) & 1 ? 1 : -1;
}

/* How far the reference's loss moves when every weight moves by half the spacing of float32: what no
 * program in float32 can be asked to resolve. Most of some directions. Leaves the weights moved. */
static double loss_noise(struct pair *pair)
{
    double before = pair_loss(pair, pair->shape->microbatches), noise = 0;
    for (uint64_t direction = 0; direction < 8; direction++) {
        for (int p = 0; p < pair->plain.tensors; p++) {
            struct plain_tensor *tensor = &pair->plain.tensor[p];
            for (int64_t i = 0; i < tensor->count; i++) {
                bool up = rng_bits(4 + direction, (uint64_t)p, (uint64_t)i) & 1;
                tensor->value[i] *= 1 + (up ? 6e-8 : -6e-8);
            }
        }
        double after = pair_loss(pair, pair->shape->microbatches);
        noise = fmax(noise, fabs(after - before) / before);
        before = after;
    }
    return noise;
}

static double loss_moved(struct pair *pair, int p, double by)
{
    struct plain_tensor *tensor = &pair->plain.tensor[p];
    double *kept = tensor->value, *moved = calloc((size_t)tensor->count, sizeof *moved);
    assert_non_null(moved);
    for (int64_t i = 0; i < tensor->count; i++) {
        moved[i] = kept[i] + by * sign_of(p, i);
    }
    tensor->value = moved;
    double loss = pair_loss(pair, 1);
    tensor->value = kept;
    free(moved);
    return loss;
}

/* Slope of the first microbatch's loss along signs / sqrt(count), which sees |g| / sqrt(count) of a
 * gradient in the mean: |difference| as a part of that. */
static double gradient_error(struct pair *pair, int p)
{
    int64_t count = pair->plain.tensor[p].count;
    const float *gradient = part_values(trainer_part(pair->trainer), STORE_GRADIENTS, p);
    double root = sqrt((double)count), slope = 0, squares = 0;
    for (int64_t i = 0; i < count; i++) {
        slope += sign_of(p, i) * (double)gradient[i] / root;
        squares += (double)gradient[i] * (double)gradient[i];
    }
    double above = loss_moved(pair, p, step / root), below = loss_moved(pair, p, -step / root);
    double error = fabs((above - below) / (2 * step) - slope) * root;
    return error > 0 ? error / sqrt(squares) : error; /* of no gradient: 0 or infinite */
}

static void make_gradients(struct pair *pair)
{
    struct batch one = pair->batch;
    struct step_result result;
    one.microbatches = 1;
    assert_ok(trainer_step(pair->trainer, &one, NULL, &result));
}

static void check_gradients(struct pair *pair, double *worst)
{
    for (int p = 0; p < pair->plain.tensors; p++) {
        const struct param *param = &trainer_model(pair->trainer)->param[p];
        if (pair->plain.tensor[p].read != param->trained) {
            fail_msg("%s: %s: only one of the two has a use for it", pair->shape->name,
                     param->name);
        }
        double error = param->trained ? gradient_error(pair, p) : 0;
        if (!(error <= gradient_limit)) {
            fail_msg("%s: %s: the gradients differ by %g", pair->shape->name, param->name, error);
        }
        *worst = fmax(*worst, error);
    }
}

static void check_shape(const struct shape *shape, double *worst_loss, double *worst_gradient)
{
    struct pair pair;
    pair_open(&pair, shape);
    double error = loss_error(&pair);
    *worst_loss = fmax(*worst_loss, error);
    make_gradients(&pair);
    check_gradients(&pair, worst_gradient);
    if (!(error <= loss_limit) && !(error <= 3 * loss_noise(&pair))) {
        fail_msg("%s: the losses differ by %g", shape->name, error);
    }
    pair_close(&pair);
}
static void test_every_shape(void **state)
{
    double worst_loss = 0, worst_gradient = 0;

    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        check_shape(&shapes[s], &worst_loss, &worst_gradient);
    }
    for (int s = 0; s < MORE; s++) {
        check_shape(&more[s], &worst_loss, &worst_gradient);
    }
    print_message("largest difference: losses %.1e, gradients %.1e\n", worst_loss, worst_gradient);
}

/* A reference that is wrong in one place is told from the program, by loss and by gradient. */
static void test_mistakes(void **state)
{
    static const struct {
        enum mistake mistake;
        const char *shape;
    } cases[] = {
        {MISTAKE_WAYS, "full"},
        {MISTAKE_COLUMNS, "key dilation 2"},
        {MISTAKE_COLUMNS, "static weights"},
        {MISTAKE_GENERATOR, "PrePostNorm"},
        {MISTAKE_BLOCK, "prenorm, blocks, way k missing"},
        {MISTAKE_HEADS, "no QK-norm, two query heads a key"},
        {MISTAKE_DOCUMENTS, "documents"},
        {MISTAKE_PARALLEL, "Pythia family"},
        {MISTAKE_SOURCES, "depth attention"},
        {MISTAKE_SOURCES, "depth attention, blocks of two"},
        {MISTAKE_STREAMS, "hyper-connections, mhc"},
        {MISTAKE_STREAMS, "hyper-connections, dynamic, three streams"},
        {MISTAKE_ROUNDS, "hyper-connections, mhc"},
        {MISTAKE_GELU, "full"},
        {MISTAKE_GELU, "Pythia"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct pair pair;
        int s = 0;
        while (strcmp(shapes[s].name, cases[i].shape) != 0) {
            s++;
            assert_true(s < SHAPES);
        }
        pair_open(&pair, &shapes[s]);
        assert_true(loss_error(&pair) <= loss_limit);
        pair.plain.mistake = cases[i].mistake;
        double error = loss_error(&pair), worst = 0;
        make_gradients(&pair);
        for (int p = 0; p < pair.plain.tensors && worst <= gradient_limit; p++) {
            if (trainer_model(pair.trainer)->param[p].trained) {
                worst = fmax(worst, gradient_error(&pair, p));
            }
        }
        if (!(error > loss_limit && worst > gradient_limit)) {
            fail_msg("%s: mistake %d makes a difference of %g, %g only", shapes[s].name,
                     cases[i].mistake, error, worst);
        }
        pair_close(&pair);
        print_message("mistake %d, %s: loss %.1e, gradient %.1e\n", cases[i].mistake,
                      shapes[s].name, error, worst);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_shape),
        cmocka_unit_test(test_mistakes),
    };
    log_set_level(LOG_WARN);
    return cmocka_run_group_tests_name("runtime/plain", tests, NULL, NULL);
}
