/* test_orders.c - additions whose order is law, bit for bit; the optimizer; how exact exp and the
 * normal distribution are. */
#include "tests/kernels/kit.h"

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
    float *weights = kit_numbers(ROWS * WAYS * COUNT, 1), *key[COUNT], *out[WAYS];
    for (size_t j = 0; j < COUNT; j++) {
        key[j] = kit_numbers(ROWS * WIDTH, 2 + j);
    }
    for (size_t c = 0; c < WAYS; c++) {
        out[c] = kit_floats(ROWS * WIDTH, 0);
    }
    kit_table(NULL, NULL)
        ->mudd_forward(&ctx, (void *const *)out, (const void *const *)key, weights, NULL, ROWS,
                       WIDTH, WAYS, COUNT);
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
    float *weights = kit_numbers(ROWS * WAYS * COUNT, 1), *dout[WAYS],
          *dkey = kit_numbers(ROWS * WIDTH, 9);
    float *again = kit_floats(ROWS * WIDTH, 0), *expected = kit_floats(ROWS * WIDTH, 0);
    struct mudd_term terms[COUNT];
    for (size_t c = 0; c < WAYS; c++) {
        dout[c] = kit_numbers(ROWS * WIDTH, 20 + c);
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
        float *x = kit_numbers(counts[n] + 1, n);
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
    float *p = kit_numbers(N, 1), *m = kit_numbers(N, 2), *v = kit_numbers(N, 3),
          *g = kit_numbers(N, 4);
    struct adamw_args args = {0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, 7, NULL};
    double expected[N];
    for (size_t i = 0; i < N; i++) {
        v[i] = fabsf(v[i]) + 0.01f;
        double d = (double)g[i] * 0.5, b1 = (double)0.9f, b2 = (double)0.95f;
        double first = b1 * (double)m[i] + (1 - b1) * d,
               second = b2 * (double)v[i] + (1 - b2) * d * d;
        double step = first / (1 - pow(b1, 7)) / (sqrt(second / (1 - pow(b2, 7))) + 1e-8);
        expected[i] = (double)p[i] * (1 - (double)0.01f * (double)0.1f) - (double)0.01f * step;
    }
    kit_table(NULL, NULL)->adamw(&ctx, &args, p, m, v, g, N);
    assert_true(kit_error(p, expected, N) < 2e-7);
    kit_free(p, 0), kit_free(m, 0), kit_free(v, 0), kit_free(g, 0);
    kit_context_free(&ctx);
}

static void test_adamw_refused(void **state)
{
    (void)state;
    struct kernel_ctx ctx = kit_context(2);
    adamw_refused_check(kit_table(NULL, NULL), &ctx);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mix_order),     cmocka_unit_test(test_key_order),
        cmocka_unit_test(test_sum_squares),   cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_adamw_refused), cmocka_unit_test(test_functions),
        cmocka_unit_test(test_not_a_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
