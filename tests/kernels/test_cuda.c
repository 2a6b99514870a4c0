/* test_cuda.c - the GPU's operations against the CPU's, over the same problems and some larger ones:
 * values, gradients, the same bits twice, the additions whose order is law, aliasing. With an
 * argument: problems of that operation alone, once, without the large ones (for slow checkers). */
#include "tests/kernels/cases.h"
#include "tests/kernels/cuda_proxy.h"

static const char *wanted;

static bool problem_wanted(const struct problem *p, bool large)
{
    return !wanted || (strcmp(p->op, wanted) == 0 && !large);
}

/* float32 differs by the order of additions and the last bits of exp. bfloat16 starts from the same
 * rounded inputs and rounds results to 8 bits (2^-9 of each), attention also its probabilities and
 * their gradients on the way. */
static double tolerance(enum dtype dtype, const char *op)
{
    if (dtype == DTYPE_F32) {
        return 1e-5;
    }
    return strcmp(op, "attention") == 0 ? 0x1p-6 : 0x1p-7;
}

/* Sizes that fill whole vectors, tiles and blocks, and widths of real models. */
/* clang-format off */
static const struct problem wide_problems[] = {
    {"embed", 500, 2048, 50, 0, 0, 0},
    {"embed", 300, 1030, 7, 0, 0, 0},
    {"embed", 300, 1030, 8, 2, 0, 0},
    {"norm", 100, 2048, 0, 0, 0, 0},
    {"norm", 40, 5000, 0, 0, 0, 2},
    {"norm", 3000, 64, 0, 0, 0, 0},
    {"norm", 500, 1024, 0, 0, 0, 4},
    {"norm", 30000, 16, 0, 0, 0, 2},
    {"linear", 256, 512, 384, 0, 0, 0},
    {"linear", 384, 128, 256, 0, 0, 1 + 4},
    {"linear", 512, 104, 400, 0, 0, 3},
    {"linear", 500, 100, 100, 0, 0, 3},
    {"linear", 128, 2048, 1000, 0, 0, 2},
    {"linear", 1000, 8, 2048, 0, 0, 1},
    {"rope", 300, 128, 4, 128, 32, 0},
    {"attention", 1, 600, 4, 2, 64, 0},
    {"attention", 1, 513, 2, 1, 128, 0},
    {"attention", 2, 300, 4, 4, 80, 100},
    {"attention", 1, 333, 2, 2, 48, 40},
    {"attention", 1, 200, 2, 1, 160, 0},
    {"attention", 1, 100, 2, 1, 256, 33},
    {"attention", 1, 700, 3, 3, 128, 130},
    {"attention", 1, 257, 8, 1, 64, 50},
    {"attention", 1, 1024, 2, 2, 32, 0},
    {"attention", 2, 256, 8, 2, 64, 0},
    {"attention", 1, 1024, 6, 3, 64, 0},
    {"attention", 3, 384, 4, 1, 128, 0},
    {"attention", 2, 1280, 16, 8, 64, 0},
    {"attention", 1, 640, 4, 4, 128, 0},
    {"attention", 2, 256, 4, 2, 80, 0},
    {"attention", 2, 130, 4, 4, 96, 0},
    {"attention", 1, 64, 2, 2, 64, 0},
    {"swiglu", 1 << 20, 30, 0, 0, 0, 0},
    {"gelu", (1 << 20) + 3, 30, 0, 0, 0, 0},
    {"mudd", 40, 2048, 4, 25, 0, 4},
    {"mudd", 16, 2560, 3, 12, 0, 0},
    {"mudd", 30, 1024, 1, 33, 0, 0},
    {"mudd", 10, 640, 2, 7, 0, 1},
    {"mudd", 7, 4096, 4, 16, 0, 0},
    {"depth", 40, 2048, 25, 0, 0, 4},
    {"depth", 9000, 64, 3, 0, 0, 0},
    {"depth", 16, 4096, 49, 0, 0, 0},
    {"streams", 30, 2048, 4, 0, 0, 0},
    {"streams", 10, 1000, 8, 0, 0, 4},
    {"hyper", 300, 1024, 4, 0, 0, HYPER_MHC},
    {"hyper", 300, 512, 4, 0, 0, HYPER_DYNAMIC},
    {"xent", 64, 50432, 0, 0, 0, 0},
    {"xent", 33, 5000, 0, 0, 0, 1},
    {"xent_parts", 64, 50432, 4, 0, 0, 0},
    {"xent_parts", 33, 5000, 2, 0, 0, 1},
};
/* clang-format on */
enum { WIDE_PROBLEMS = sizeof wide_problems / sizeof *wide_problems };

static double array_error(const float *a, const float *b, size_t count)
{
    double *exact = malloc((count + 1) * sizeof *exact);
    assert_non_null(exact);
    for (size_t i = 0; i < count; i++) {
        exact[i] = (double)b[i];
    }
    double error = kit_error(a, exact, count);
    free(exact);
    return error;
}

static void trial_round(struct trial *t)
{
    for (size_t i = 0; i < t->inputs; i++) {
        for (size_t k = 0; k < t->sizes[i]; k++) {
            t->in[i][k] = bf16_round(t->in[i][k]);
        }
    }
    for (size_t k = 0; k < t->outputs; k++) {
        t->dout[k] = bf16_round(t->dout[k]);
    }
}

static void trial_start(struct trial *t, const struct problem *p, enum dtype dtype)
{
    trial_create(t, p, 0);
    if (dtype == DTYPE_BF16) {
        trial_round(t);
    }
}

/* True if a problem's results agree with the CPU's. */
static bool problem_agrees(const struct problem *p, const struct kernels *gpu)
{
    struct trial expected, t;
    char text[128];
    double value, gradient = 0, most = tolerance(gpu->dtype, p->op);
    trial_start(&expected, p, gpu->dtype);
    trial_start(&t, p, gpu->dtype);
    trial_run(&expected, kit_table(NULL, "own"), 4);
    trial_run(&t, gpu, 1);
    value = array_error(t.out, expected.out, t.outputs);
    if (strcmp(p->op, "attention") == 0) {
        value = fmax(value, array_error(t.kept, expected.kept, t.kept_size));
    }
    for (size_t i = 0; i < t.inputs; i++) {
        gradient = fmax(gradient, array_error(t.din[i], expected.din[i], t.sizes[i]));
    }
    bool agrees = value <= most && gradient <= most;
    print_message("%-4s %-40s value %.1e gradient %.1e%s\n", dtype_name(gpu->dtype),
                  problem_print(p, text, sizeof text), value, gradient, agrees ? "" : "  TOO MUCH");
    trial_free(&expected);
    trial_free(&t);
    return agrees;
}

static void values_check(enum dtype dtype)
{
    const struct kernels *gpu = proxy_open(dtype);
    bool all = true;
    print_message("%s, tolerance %.1e (attention %.1e)\n", gpu->name, tolerance(dtype, ""),
                  tolerance(dtype, "attention"));
    for (size_t i = 0; i < PROBLEMS; i++) {
        if (problem_wanted(&problems[i], false)) {
            all = problem_agrees(&problems[i], gpu) && all;
        }
    }
    for (size_t i = 0; i < WIDE_PROBLEMS; i++) {
        if (problem_wanted(&wide_problems[i], true)) {
            all = problem_agrees(&wide_problems[i], gpu) && all;
        }
    }
    assert_true(all);
}

static void test_f32(void **state)
{
    (void)state;
    values_check(DTYPE_F32);
}

static void test_bf16(void **state)
{
    (void)state;
    values_check(DTYPE_BF16);
}

static void deterministic_set(bool on)
{
    kernels_cuda_options(&(struct kernels_cuda_options){.deterministic = on});
}

/* Of what the switch changes; in one order, on other kernels. */
static void test_deterministic(void **state)
{
    (void)state;
    const struct kernels *gpu = proxy_open(DTYPE_BF16);
    bool all = true;
    deterministic_set(true);
    for (size_t i = 0; i < WIDE_PROBLEMS; i++) {
        if (strcmp(wide_problems[i].op, "attention") == 0 && !wanted) {
            all = problem_agrees(&wide_problems[i], gpu) && all;
        }
    }
    deterministic_set(false);
    assert_true(all);
}

/* ---- the same bits, three times ---- */

static void bits_check(const struct problem *p, const struct kernels *gpu)
{
    struct trial first, again;
    char text[128];
    trial_start(&first, p, gpu->dtype);
    trial_run(&first, gpu, 1);
    for (int i = 0; i < 2; i++) {
        trial_start(&again, p, gpu->dtype);
        trial_run(&again, gpu, 1);
        if (!trial_same(&first, &again)) {
            fail_msg("%s, %s: other bits", problem_print(p, text, sizeof text), gpu->name);
        }
        trial_free(&again);
    }
    trial_free(&first);
}

static void test_bits(void **state)
{
    (void)state;
    deterministic_set(true);
    for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16 && !wanted; dtype++) {
        const struct kernels *gpu = proxy_open((enum dtype)dtype);
        for (size_t i = 0; i < PROBLEMS; i++) {
            bits_check(&problems[i], gpu);
        }
        for (size_t i = 0; i < WIDE_PROBLEMS; i++) {
            bits_check(&wide_problems[i], gpu);
        }
    }
    deterministic_set(false);
}

/* ---- orders that kernels.h fixes: in float32 the CPU's bits ---- */

static void test_orders(void **state)
{
    (void)state;
    const struct kernels *gpu = proxy_open(DTYPE_F32), *cpu = kit_table(NULL, "own");
    static const struct problem exact[] = {{"mudd", 20, 100, 4, 13, 0, 4},
                                           {"mudd", 9, 1037, 3, 11, 0, 0},
                                           {"embed", 300, 1030, 7, 0, 0, 0}};
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++) {
        struct trial a, b;
        trial_create(&a, &exact[i], 0);
        trial_create(&b, &exact[i], 0);
        trial_run(&a, cpu, 2);
        trial_run(&b, gpu, 1);
        assert_memory_equal(a.out, b.out, a.outputs * sizeof(float));
        for (size_t k = strcmp(exact[i].op, "mudd") == 0; k < a.inputs; k++) { /* not dweights */
            assert_memory_equal(a.din[k], b.din[k], a.sizes[k] * sizeof(float));
        }
        trial_free(&a);
        trial_free(&b);
    }
}

/* More terms than one launch takes, of one to four ways, static ones among them. */
static void test_many_terms(void **state)
{
    (void)state;
    enum { N = 13, D = 72, TERMS = 130 };
    const struct kernels *gpu = proxy_open(DTYPE_F32), *cpu = kit_table(NULL, "own");
    struct kernel_ctx ctx = kit_context(1);
    float *weights = kit_numbers(N * WAYS_MAX * TERMS, 1), *dout[WAYS_MAX];
    struct mudd_term terms[TERMS];
    for (size_t c = 0; c < WAYS_MAX; c++) {
        dout[c] = kit_numbers(N * D, 2 + c);
    }
    for (size_t k = 0; k < TERMS; k++) {
        size_t row_stride = k % 5 == 4 ? 0 : WAYS_MAX * TERMS;
        terms[k] = (struct mudd_term){weights + k, row_stride, TERMS, 1 + k % WAYS_MAX, {0}};
        for (size_t c = 0; c < terms[k].ways; c++) {
            terms[k].dout[c] = dout[(c + k) % WAYS_MAX];
        }
    }
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        for (size_t count = 0; count <= TERMS; count += 65) {
            float *a = kit_numbers(N * D, 7), *b = kit_numbers(N * D, 7);
            cpu->mudd_backward_key(&ctx, a, accumulate, terms, count, N, D);
            gpu->mudd_backward_key(&ctx, b, accumulate, terms, count, N, D);
            assert_memory_equal(a, b, N * D * sizeof *a);
            kit_free(a, 0), kit_free(b, 0);
        }
    }
    for (size_t c = 0; c < WAYS_MAX; c++) {
        kit_free(dout[c], 0);
    }
    kit_free(weights, 0);
    kit_context_free(&ctx);
}

/* ---- elementwise, optimizer, aliasing ---- */

static void elementwise_check(const struct kernels *gpu, size_t N)
{
    const struct kernels *cpu = kit_table(NULL, "own");
    struct kernel_ctx ctx = kit_context(1);
    double most = gpu->dtype == DTYPE_F32 ? 1e-6 : 0x1p-8;
    float *a = kit_numbers(N, 1), *b = kit_numbers(N, 2), *x = kit_floats(N, 0);
    float *y = kit_floats(N, 0), *same = kit_floats(N, 0);
    gpu->from_f32(&ctx, x, a, N);
    for (size_t i = 0; i < N; i++) {
        assert_true(x[i] == (gpu->dtype == DTYPE_F32 ? a[i] : bf16_round(a[i])));
        a[i] = bf16_round(a[i]);
        b[i] = bf16_round(b[i]);
    }
    gpu->copy(&ctx, x, a, N);
    assert_memory_equal(x, a, N * sizeof *x);
    gpu->zero(&ctx, x, N * sizeof *x);
    for (size_t i = 0; i < N; i++) {
        assert_true(x[i] == 0);
    }
    cpu->add(&ctx, y, a, b, N);
    gpu->add(&ctx, x, a, b, N);
    assert_true(array_error(x, y, N) <= most);
    memcpy(same, a, N * sizeof *a);
    gpu->add(&ctx, same, same, b, N);
    assert_memory_equal(same, x, N * sizeof *x);
    memcpy(x, a, N * sizeof *a), memcpy(y, a, N * sizeof *a);
    cpu->scale_add(&ctx, y, b, -0.3f, N);
    gpu->scale_add(&ctx, x, b, -0.3f, N);
    assert_true(array_error(x, y, N) <= most);
    memcpy(x, a, N * sizeof *a), memcpy(y, a, N * sizeof *a);
    cpu->accumulate_f32(&ctx, y, b, N);
    gpu->accumulate_f32(&ctx, x, b, N);
    assert_memory_equal(x, y, N * sizeof *x);
    size_t columns = N % 5 == 3 ? 3 : 1;
    columns = N % 8 == 0 ? 8 : columns;
    cpu->scale_columns(&ctx, y, b, N / columns, columns);
    gpu->scale_columns(&ctx, x, b, N / columns, columns);
    assert_memory_equal(x, y, N * sizeof *x);
    kit_free(a, 0), kit_free(b, 0), kit_free(x, 0), kit_free(y, 0), kit_free(same, 0);
    kit_context_free(&ctx);
}

static void test_elementwise(void **state)
{
    (void)state;
    static const size_t counts[] = {1, 3, 8, 1024, 100003, 1 << 20};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        elementwise_check(proxy_open(DTYPE_F32), counts[i]);
        elementwise_check(proxy_open(DTYPE_BF16), counts[i]);
    }
}

static void test_optimizer(void **state)
{
    (void)state;
    static const size_t counts[] = {1, 5000, 1000003, 6 << 20};
    const struct kernels *gpu = proxy_open(DTYPE_BF16), *cpu = kit_table(NULL, "own");
    struct kernel_ctx ctx = kit_context(4);
    float scale = 0.7f;
    struct adamw_args args = {3e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.7f, 5, NULL};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        size_t N = counts[i];
        float *g = kit_numbers(N, 1), *p = kit_numbers(N, 2), *m = kit_numbers(N, 3);
        float *v = kit_numbers(N, 4), *p2 = kit_numbers(N, 2), *m2 = kit_numbers(N, 3);
        float *v2 = kit_floats(N, 0);
        double sum = 0, sum2 = 0;
        for (size_t k = 0; k < N; k++) {
            v2[k] = v[k] = fabsf(v[k]);
        }
        cpu->sum_squares(&ctx, &sum, g, N);
        gpu->sum_squares(&ctx, &sum2, g, N);
        assert_true(fabs(sum - sum2) <= 1e-12 * sum);
        args.gradient_scale_at = NULL;
        args.gradient_scale = scale;
        cpu->adamw(&ctx, &args, p, m, v, g, N);
        args.gradient_scale_at = i % 2 ? &scale : NULL;
        args.gradient_scale = i % 2 ? NAN : scale;
        gpu->adamw(&ctx, &args, p2, m2, v2, g, N);
        assert_true(array_error(p2, p, N) <= 1e-6 && array_error(m2, m, N) <= 1e-6 &&
                    array_error(v2, v, N) <= 1e-6);
        kit_free(g, 0), kit_free(p, 0), kit_free(m, 0), kit_free(v, 0);
        kit_free(p2, 0), kit_free(m2, 0), kit_free(v2, 0);
    }
    adamw_refused_check(gpu, &ctx);
    kit_context_free(&ctx);
}

static void aliases_check(const struct kernels *gpu)
{
    enum { R = 37, W = 72, N = R * W };
    struct kernel_ctx ctx = kit_context(1);
    struct norm_shape shape = {NORM_LAYER, R, W, 1e-5f};
    float *a = kit_numbers(N, 1), *b = kit_numbers(N, 2), *c = kit_numbers(N, 3);
    float *y = kit_floats(N, 0), *z = kit_floats(N, 0), mean[R], rstd[R];
    float *b2 = kit_numbers(N, 2), *c2 = kit_numbers(N, 3), *a2 = kit_numbers(N, 1);
    size_t bytes = N * sizeof *a;
    gpu->swiglu_backward(&ctx, y, z, a, b, c, N);
    gpu->swiglu_backward(&ctx, b2, c2, a, b2, c2, N);
    assert_memory_equal(y, b2, bytes);
    assert_memory_equal(z, c2, bytes);
    gpu->gelu_backward(&ctx, y, a, b, N);
    gpu->gelu_backward(&ctx, a2, a2, b, N);
    assert_memory_equal(y, a2, bytes);
    memcpy(b2, b, bytes);
    gpu->gelu_backward(&ctx, b2, a, b2, N);
    assert_memory_equal(y, b2, bytes);
    memcpy(a2, a, bytes);
    gpu->norm_forward(&ctx, &shape, z, mean, rstd, b, NULL, NULL);
    gpu->norm_backward(&ctx, &shape, y, false, z, NULL, a, b, mean, rstd, c);
    gpu->norm_backward(&ctx, &shape, a2, false, b2, NULL, a2, b, mean, rstd, c);
    assert_memory_equal(y, a2, bytes);
    assert_memory_equal(z, b2, W * sizeof *z);
    memcpy(b2, b, bytes);
    gpu->norm_backward(&ctx, &shape, b2, false, c2, NULL, a, b2, mean, rstd, c);
    assert_memory_equal(y, b2, bytes);
    assert_memory_equal(z, c2, W * sizeof *z);
    kit_free(a, 0), kit_free(b, 0), kit_free(c, 0), kit_free(y, 0), kit_free(z, 0);
    kit_free(b2, 0), kit_free(c2, 0), kit_free(a2, 0);
    kit_context_free(&ctx);
}

static void test_aliases(void **state)
{
    (void)state;
    aliases_check(proxy_open(DTYPE_F32));
    aliases_check(proxy_open(DTYPE_BF16));
}

/* ---- device.h ---- */

static void test_device(void **state)
{
    (void)state;
    enum { COUNT = 1 << 22 };
    const struct kernels *gpu = proxy_open(DTYPE_F32);
    struct device *d = proxy.device;
    struct device_event *begin, *end;
    struct device_info info;
    void *first, *second, *pinned, *on_device;
    size_t free_bytes, total;
    double ms;
    bool done = false;
    device_info(d, &info);
    print_message("%s, sm_%d, %d multiprocessors, driver %d, runtime %d; %s\n", info.name,
                  info.capability, info.multiprocessors, info.driver, info.runtime, gpu->name);
    assert_int_equal(device_kind(d), DEVICE_CUDA);
    assert_int_equal(device_stream_create(d, false, &first), STATUS_OK);
    assert_int_equal(device_stream_create(d, true, &second), STATUS_OK);
    assert_int_equal(device_event_create(d, true, &begin), STATUS_OK);
    assert_int_equal(device_event_create(d, true, &end), STATUS_OK);
    assert_int_equal(device_alloc(d, MEMORY_PINNED, COUNT, "pinned", &pinned), STATUS_OK);
    assert_int_equal(device_alloc(d, MEMORY_DEVICE, COUNT, "device", &on_device), STATUS_OK);
    assert_int_equal(device_memory(d, &free_bytes, &total), STATUS_OK);
    assert_true(free_bytes > 0 && free_bytes < total);
    memset(pinned, 0, COUNT);
    assert_int_equal(device_event_record(d, begin, first), STATUS_OK);
    assert_int_equal(device_fill(d, on_device, 0x5a, COUNT, first), STATUS_OK);
    assert_int_equal(device_event_record(d, end, first), STATUS_OK);
    assert_int_equal(device_event_wait(d, end, second), STATUS_OK);
    assert_int_equal(device_copy(d, pinned, on_device, COUNT, second), STATUS_OK);
    assert_int_equal(device_stream_sync(d, second), STATUS_OK);
    for (size_t i = 0; i < COUNT; i++) {
        assert_true(((unsigned char *)pinned)[i] == 0x5a);
    }
    assert_int_equal(device_event_sync(d, end), STATUS_OK);
    assert_int_equal(device_event_done(d, end, &done), STATUS_OK);
    assert_true(done);
    assert_int_equal(device_event_elapsed(d, begin, end, &ms), STATUS_OK);
    assert_true(ms > 0 && ms < 1000);
    device_free(d, MEMORY_PINNED, pinned);
    device_free(d, MEMORY_DEVICE, on_device);
    device_event_destroy(d, begin);
    device_event_destroy(d, end);
    device_stream_destroy(d, first);
    device_stream_destroy(d, second);
}

int main(int argc, char **argv)
{
    char why[256] = "";
    wanted = argc > 1 ? argv[1] : NULL;
    if (device_count(DEVICE_CUDA, why, sizeof why) == 0) {
        printf("skipped: %s\n", why);
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device),        cmocka_unit_test(test_elementwise),
        cmocka_unit_test(test_optimizer),     cmocka_unit_test(test_aliases),
        cmocka_unit_test(test_orders),        cmocka_unit_test(test_many_terms),
        cmocka_unit_test(test_f32),           cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_deterministic), cmocka_unit_test(test_bits),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    proxy_close();
    return failed;
}
