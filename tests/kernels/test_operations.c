/* test_operations.c - what the case list does not say: exact orders, aliasing, accumulation, the
 * optimizer, choices by environment, several ranks in one process. */
#include <pthread.h>

#include "base/log.h"
#include "tests/kernels/cases.h"

static float *numbers(size_t count, uint64_t seed)
{
    float *x = kit_floats(count, 0);
    for (size_t i = 0; i < count; i++) {
        x[i] = (float)kit_random(&seed);
    }
    return x;
}

/* ---- orders that are law, bit for bit ---- */

enum { ROWS = 19, WIDTH = 1037, WAYS = 3, COUNT = 11 };

static float mix_one(const float *weights, float *const *key, size_t t, size_t d, size_t c)
{
    float sum = 0;
    for (size_t j = 0; j < COUNT; j++) {
        sum = fmaf(weights[(t * WAYS + c) * COUNT + j], key[j][t * WIDTH + d], sum);
    }
    return sum;
}

static void test_mix_order(void **state)
{
    (void)state;
    struct kernel_ctx ctx = kit_context(2);
    float *weights = numbers(ROWS * WAYS * COUNT, 1), *key[COUNT], *out[WAYS];
    for (size_t j = 0; j < COUNT; j++) {
        key[j] = numbers(ROWS * WIDTH, 2 + j);
    }
    for (size_t c = 0; c < WAYS; c++) {
        out[c] = kit_floats(ROWS * WIDTH, 0);
    }
    kit_table(NULL, NULL)->mudd_forward(&ctx, (void *const *)out, (const void *const *)key, weights,
                                        NULL, ROWS, WIDTH, WAYS, COUNT);
    for (size_t i = 0; i < WAYS * ROWS * WIDTH; i++) {
        size_t c = i / (ROWS * WIDTH), t = i / WIDTH % ROWS, d = i % WIDTH;
        assert_true(out[c][t * WIDTH + d] == mix_one(weights, key, t, d, c));
    }
    for (size_t j = 0; j < COUNT; j++) {
        kit_free(key[j], 0);
    }
    for (size_t c = 0; c < WAYS; c++) {
        kit_free(out[c], 0);
    }
    kit_free(weights, 0);
    kit_context_free(&ctx);
}

/* Terms in the order given, ways ascending, on top of what is there; and split over two calls. */
static void test_key_order(void **state)
{
    (void)state;
    struct kernel_ctx ctx = kit_context(2);
    const struct kernels *k = kit_table(NULL, NULL);
    float *weights = numbers(ROWS * WAYS * COUNT, 1), *dout[WAYS], *dkey = numbers(ROWS * WIDTH, 9);
    float *again = kit_floats(ROWS * WIDTH, 0), *expected = kit_floats(ROWS * WIDTH, 0);
    struct mudd_term terms[COUNT];
    for (size_t c = 0; c < WAYS; c++) {
        dout[c] = numbers(ROWS * WIDTH, 20 + c);
    }
    for (size_t j = 0; j < COUNT; j++) {
        size_t ways = 1 + j % WAYS, row_stride = j % 4 == 3 ? 0 : WAYS * COUNT;
        terms[j] = (struct mudd_term){weights + j, row_stride, COUNT, ways, {0}};
        for (size_t c = 0; c < ways; c++) {
            terms[j].dout[c] = dout[(c + j) % WAYS];
        }
    }
    for (size_t i = 0; i < ROWS * WIDTH; i++) {
        float sum = dkey[i];
        for (size_t j = 0; j < COUNT; j++) {
            for (size_t c = 0; c < terms[j].ways; c++) {
                float w = terms[j].weights[i / WIDTH * terms[j].row_stride + c * COUNT];
                sum = fmaf(w, ((const float *)terms[j].dout[c])[i], sum);
            }
        }
        expected[i] = sum;
    }
    memcpy(again, dkey, ROWS * WIDTH * sizeof *dkey);
    k->mudd_backward_key(&ctx, dkey, true, terms, COUNT, ROWS, WIDTH);
    assert_memory_equal(dkey, expected, ROWS * WIDTH * sizeof *dkey);
    k->mudd_backward_key(&ctx, again, true, terms, 4, ROWS, WIDTH);
    k->mudd_backward_key(&ctx, again, true, terms + 4, COUNT - 4, ROWS, WIDTH);
    assert_memory_equal(again, expected, ROWS * WIDTH * sizeof *dkey);
    for (size_t c = 0; c < WAYS; c++) {
        kit_free(dout[c], 0);
    }
    kit_free(weights, 0), kit_free(dkey, 0), kit_free(again, 0), kit_free(expected, 0);
    kit_context_free(&ctx);
}

static void test_sum_squares(void **state)
{
    (void)state;
    static const size_t counts[] = {0, 1, 4095, 4096, 4097, 50000, 4096 * 1030 + 77};
    for (size_t n = 0; n < sizeof counts / sizeof *counts; n++) {
        float *x = numbers(counts[n] + 1, n);
        double expected = 0, value = -1;
        for (size_t begin = 0; begin < counts[n]; begin += 4096) {
            double chunk = 0;
            for (size_t i = begin; i < counts[n] && i < begin + 4096; i++) {
                chunk += (double)x[i] * (double)x[i];
            }
            expected += chunk;
        }
        for (int threads = 1; threads <= 3; threads++) {
            struct kernel_ctx ctx = kit_context(threads);
            kit_table(NULL, NULL)->sum_squares(&ctx, &value, x, counts[n]);
            assert_true(value == expected);
            kit_context_free(&ctx);
        }
        kit_free(x, 0);
    }
}

/* ---- the optimizer ---- */

static void test_adamw(void **state)
{
    (void)state;
    enum { N = 1001 };
    struct kernel_ctx ctx = kit_context(2);
    float *p = numbers(N, 1), *m = numbers(N, 2), *v = numbers(N, 3), *g = numbers(N, 4);
    struct adamw_args args = {0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, 7};
    double expected[N];
    for (size_t i = 0; i < N; i++) {
        v[i] = fabsf(v[i]) + 0.01f;
        double d = (double)g[i] * 0.5, b1 = (double)0.9f, b2 = (double)0.95f;
        double first = b1 * (double)m[i] + (1 - b1) * d, second = b2 * (double)v[i] + (1 - b2) * d * d;
        double step = first / (1 - pow(b1, 7)) / (sqrt(second / (1 - pow(b2, 7))) + 1e-8);
        expected[i] = (double)p[i] * (1 - (double)0.01f * (double)0.1f) - (double)0.01f * step;
    }
    kit_table(NULL, NULL)->adamw(&ctx, &args, p, m, v, g, N);
    assert_true(kit_error(p, expected, N) < 2e-7);
    kit_free(p, 0), kit_free(m, 0), kit_free(v, 0), kit_free(g, 0);
    kit_context_free(&ctx);
}

/* ---- accuracy of exp and the normal distribution over their range ---- */

static void test_functions(void **state)
{
    (void)state;
    enum { N = 400001 };
    struct kernel_ctx ctx = kit_context(2);
    const struct kernels *k = kit_table(NULL, NULL);
    float *x = kit_floats(N, 0), *one = kit_floats(N, 0), *y = kit_floats(N, 0);
    double silu = 0, gelu = 0, tail = 0;
    for (size_t i = 0; i < N; i++) {
        x[i] = (float)(-40.0 + 80.0 * (double)i / (N - 1));
        one[i] = 1;
    }
    k->swiglu_forward(&ctx, y, x, one, N);
    for (size_t i = 0; i < N; i++) {
        double a = (double)x[i], exact = a / (1 + exp(-a));
        silu = fmax(silu, fabs((double)y[i] - exact) / fmax(fabs(exact), 1e-30));
    }
    k->gelu_forward(&ctx, y, x, N);
    for (size_t i = 0; i < N; i++) {
        double a = (double)x[i], exact = a * 0.5 * erfc(-a / sqrt(2.0));
        double error = fabs((double)y[i] - exact);
        gelu = fmax(gelu, error / fmax(fabs(exact), 1.0));
        tail = a > -4 ? fmax(tail, error / fmax(fabs(exact), 1e-30)) : tail;
    }
    print_message("silu %.1e, gelu %.1e, relative above -4: %.1e\n", silu, gelu, tail);
    assert_true(silu < 4e-7 && gelu < 1.5e-7 && tail < 2e-6);
    kit_free(x, 0), kit_free(one, 0), kit_free(y, 0);
    kit_context_free(&ctx);
}

/* A number that is not one does not vanish on its way. */
static void test_not_a_number(void **state)
{
    (void)state;
    struct kernel_ctx ctx = kit_context(1);
    const struct kernels *k = kit_table(NULL, NULL);
    float x[40], y[40];
    int32_t target = 3;
    for (size_t at = 0; at < 40; at++) {
        double loss = 0;
        memset(x, 0, sizeof x);
        x[at] = NAN;
        k->gelu_forward(&ctx, y, x, 40);
        assert_true(isnan(y[at]));
        k->swiglu_forward(&ctx, y, x, x, 40);
        assert_true(isnan(y[at]));
        k->xent(&ctx, &loss, NULL, x, &target, 1.0f, 1, 40);
        assert_true(isnan(loss));
    }
    kit_context_free(&ctx);
}

/* ---- aliasing that kernels.h allows ---- */

static void test_aliases(void **state)
{
    (void)state;
    enum { N = 777 };
    struct kernel_ctx ctx = kit_context(2);
    const struct kernels *k = kit_table(NULL, NULL);
    float *a = numbers(N, 1), *b = numbers(N, 2), *c = numbers(N, 3), *y = kit_floats(N, 0);
    float *z = kit_floats(N, 0), *a2 = numbers(N, 1), *b2 = numbers(N, 2), *c2 = numbers(N, 3);
    size_t bytes = N * sizeof *a;

    k->swiglu_backward(&ctx, y, z, a, b, c, N);
    k->swiglu_backward(&ctx, b2, c2, a, b2, c2, N);
    assert_memory_equal(y, b2, bytes);
    assert_memory_equal(z, c2, bytes);
    k->gelu_backward(&ctx, y, a, b, N);
    k->gelu_backward(&ctx, a2, a2, b, N);
    assert_memory_equal(y, a2, bytes);
    k->add(&ctx, y, a, b, N);
    memcpy(a2, a, bytes);
    k->add(&ctx, a2, a2, b, N);
    assert_memory_equal(y, a2, bytes);
    memcpy(b2, b, bytes);
    k->add(&ctx, b2, a, b2, N);
    assert_memory_equal(y, b2, bytes);

    struct norm_shape shape = {NORM_LAYER, 7, N / 7, 1e-5f};
    float mean[7], rstd[7];
    memcpy(a2, a, bytes);
    k->norm_forward(&ctx, &shape, z, mean, rstd, b, NULL, NULL);
    k->norm_backward(&ctx, &shape, y, false, NULL, NULL, a, b, mean, rstd, c);
    k->norm_backward(&ctx, &shape, a2, false, NULL, NULL, a2, b, mean, rstd, c);
    assert_memory_equal(y, a2, bytes);
    kit_free(a, 0), kit_free(b, 0), kit_free(c, 0), kit_free(y, 0);
    kit_free(z, 0), kit_free(a2, 0), kit_free(b2, 0), kit_free(c2, 0);
    kit_context_free(&ctx);
}

/* ---- accumulation, small ones, cross-entropy's details ---- */

static void test_accumulation(void **state)
{
    (void)state;
    enum { N = 40, I = 24, O = 33 };
    struct kernel_ctx ctx = kit_context(2);
    const struct kernels *k = kit_table(NULL, "own");
    float *x = numbers(N * I, 1), *w = numbers(O * I, 2), *dy = numbers(N * O, 3);
    float dx[N * I], twice[N * I], dw[O * I] = {0}, before[O * I], db[O] = {0};
    k->linear_backward_input(&ctx, dx, false, dy, w, N, I, O);
    memcpy(twice, dx, sizeof dx);
    k->linear_backward_input(&ctx, twice, true, dy, w, N, I, O);
    k->linear_backward_weight(&ctx, dw, db, dy, x, N, I, O);
    memcpy(before, dw, sizeof dw);
    k->linear_backward_weight(&ctx, dw, db, dy, x, N, I, O);
    for (size_t i = 0; i < N * I; i++) {
        assert_true(fabsf(twice[i] - 2 * dx[i]) < 1e-5f);
    }
    for (size_t i = 0; i < O * I; i++) {
        assert_true(fabsf(dw[i] - 2 * before[i]) < 1e-5f);
    }
    k->copy(&ctx, dx, x, N * I);
    k->scale_add(&ctx, dx, twice, -0.3f, N * I);
    for (size_t i = 0; i < N * I; i++) {
        assert_true(dx[i] == fmaf(-0.3f, twice[i], x[i]));
    }
    k->copy(&ctx, dx, x, N * I);
    k->accumulate_f32(&ctx, dx, twice, N * I);
    for (size_t i = 0; i < N * I; i++) {
        assert_true(dx[i] == x[i] + twice[i]);
    }
    k->zero(&ctx, dx, sizeof dx);
    for (size_t i = 0; i < N * I; i++) {
        assert_true(dx[i] == 0);
    }
    kit_free(x, 0), kit_free(w, 0), kit_free(dy, 0);
    kit_context_free(&ctx);
}

static void test_xent(void **state)
{
    (void)state;
    enum { V = 100, R = 3 };
    struct kernel_ctx ctx = kit_context(2);
    const struct kernels *k = kit_table(NULL, NULL);
    float x[R * V], d[R * V];
    int32_t targets[R] = {5, -1, 7}, none[R] = {-1, -1, -1};
    double loss = 10;
    for (size_t i = 0; i < R * V; i++) {
        x[i] = i % V == 5 ? 200.0f : -200.0f; /* sure of 5 */
    }
    k->xent(&ctx, &loss, d, x, targets, 0.5f, R, V);
    assert_true(loss == 10 + 0 + 400);
    for (size_t i = 0; i < V; i++) {
        assert_true(d[i] == 0 && d[V + i] == 0);
        assert_true(d[2 * V + i] == (i == 5 ? 0.5f : i == 7 ? -0.5f : 0.0f));
    }
    k->xent(&ctx, &loss, d, x, none, 0.5f, R, V);
    assert_true(loss == 410);
    kit_context_free(&ctx);
}

/* ---- choosing ---- */

static void refuse(const char *isa, const char *gemm, const char *message)
{
    char text[512] = "";
    log_capture(text, sizeof text);
    const struct kernels *table = kit_table(isa, gemm);
    log_capture(NULL, 0);
    assert_null(table);
    assert_non_null(strstr(text, message));
}

static void test_choice(void **state)
{
    (void)state;
    refuse("v5", NULL, "MUDDPIPE_ISA=v5: must be v4, v3 or generic");
    refuse(NULL, "mkl", "MUDDPIPE_GEMM=mkl: must be dnnl, openblas or own");
    assert_string_equal(kit_table("generic", "own")->name, "cpu-generic (own)");
    assert_ptr_equal(kit_table(NULL, NULL), kit_table(NULL, NULL));
    assert_int_equal(kit_table(NULL, NULL)->dtype, DTYPE_F32);
}

static void test_trace(void **state)
{
    (void)state;
    struct trace trace;
    struct kernel_ctx ctx = kit_context(1);
    float *x = numbers(64 * 64, 1), *w = numbers(64 * 64, 2), *y = kit_floats(64 * 64, 0);
    ctx.trace = &trace;
    trace_reset(&trace);
    trace_switch(&trace, TRACE_WAIT);
    kit_table(NULL, NULL)->linear_forward(&ctx, y, x, w, NULL, 64, 64, 64);
    assert_int_equal(trace.current, TRACE_WAIT);
    assert_true(trace.ns[TRACE_GEMM] > 0);
    assert_true(trace.ns[TRACE_ATTENTION] == 0);
    kit_free(x, 0), kit_free(w, 0), kit_free(y, 0);
    kit_context_free(&ctx);
}

/* ---- the workspace asked for is enough ---- */

static void test_workspace(void **state)
{
    (void)state;
    const struct kernels *k = kit_table(NULL, NULL);
    for (size_t i = 0; i < PROBLEMS; i++) {
        const struct problem *p = &problems[i];
        struct kernel_limits limits = {.B = 1, .T = p->a, .D = p->b, .H = 1, .E = p->b, .threads = 3};
        if (strcmp(p->op, "attention") == 0) {
            limits = (struct kernel_limits){p->a, p->b, 8, p->c, p->d, p->e, 8, 8, 8, 8, 3};
        }
        struct trial t;
        trial_create(&t, p, 0);
        struct kernel_ctx ctx = {.threads = 3, .workspace_bytes = kernels_workspace(k, &limits)};
        ctx.workspace = malloc(ctx.workspace_bytes);
        t.op->forward(k, &ctx, p, t.in, t.out, t.kept);
        t.op->backward(k, &ctx, p, t.in, t.out, t.kept, t.dout, t.din);
        free(ctx.workspace);
        trial_free(&t);
    }
}

/* ---- several ranks of one process at once ---- */

struct rank {
    pthread_t thread;
    const struct kernels *table;
    const struct trial *expected;
    bool same;
};

static void *rank_run(void *argument)
{
    struct rank *rank = argument;
    rank->same = true;
    for (int i = 0; i < 3; i++) {
        struct trial t;
        trial_create(&t, rank->expected->problem, 0);
        trial_run(&t, rank->table, 1 + i % 2);
        rank->same = rank->same && trial_same(&t, rank->expected);
        trial_free(&t);
    }
    return NULL;
}

static void test_ranks_at_once(void **state)
{
    (void)state;
    static const char *const libraries[] = {"dnnl", "openblas", "own"};
    const struct problem p = {"linear", 300, 270, 530, 0, 0, 0};
    for (size_t i = 0; i < 3; i++) {
        struct rank ranks[4] = {{0}};
        struct trial expected;
        const struct kernels *table = kit_table(NULL, libraries[i]);
        if (!table) {
            continue;
        }
        trial_create(&expected, &p, 0);
        trial_run(&expected, table, 1);
        for (size_t r = 0; r < 4; r++) {
            ranks[r] = (struct rank){.table = table, .expected = &expected};
            assert_int_equal(pthread_create(&ranks[r].thread, NULL, rank_run, &ranks[r]), 0);
        }
        for (size_t r = 0; r < 4; r++) {
            pthread_join(ranks[r].thread, NULL);
            assert_true(ranks[r].same);
        }
        trial_free(&expected);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mix_order),     cmocka_unit_test(test_key_order),
        cmocka_unit_test(test_sum_squares),   cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_functions),     cmocka_unit_test(test_not_a_number),
        cmocka_unit_test(test_aliases),       cmocka_unit_test(test_accumulation),
        cmocka_unit_test(test_xent),          cmocka_unit_test(test_choice),
        cmocka_unit_test(test_trace),         cmocka_unit_test(test_workspace),
        cmocka_unit_test(test_ranks_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
