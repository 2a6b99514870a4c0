/* test_contract.c - what kernels.h promises beyond values: aliasing, accumulation, choices by
 * environment, traces, workspace, several ranks in one process. */
#include <pthread.h>

#include "base/log.h"
#include "tests/kernels/cases.h"

/* ---- aliasing that kernels.h allows ---- */

static void test_aliases(void **state)
{
    (void)state;
    enum { N = 777 };
    struct kernel_ctx ctx = kit_context(2);
    const struct kernels *k = kit_table(NULL, NULL);
    float *a = kit_numbers(N, 1), *b = kit_numbers(N, 2), *c = kit_numbers(N, 3),
          *y = kit_floats(N, 0);
    float *z = kit_floats(N, 0), *a2 = kit_numbers(N, 1), *b2 = kit_numbers(N, 2),
          *c2 = kit_numbers(N, 3);
    size_t bytes = N * sizeof *a;

    k->swiglu_backward(&ctx, y, z, a, b, c, N);
    k->swiglu_backward(&ctx, b2, c2, a, b2, c2, N);
    assert_memory_equal(y, b2, bytes);
    assert_memory_equal(z, c2, bytes);
    k->gelu_backward(&ctx, y, a, b, N);
    k->gelu_backward(&ctx, a2, a2, b, N);
    assert_memory_equal(y, a2, bytes);
    memcpy(b2, b, bytes);
    k->gelu_backward(&ctx, b2, a, b2, N);
    assert_memory_equal(y, b2, bytes);
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
    k->norm_backward(&ctx, &shape, y, false, z, NULL, a, b, mean, rstd, c);
    memcpy(b2, b, bytes);
    k->norm_backward(&ctx, &shape, b2, false, c2, NULL, a, b2, mean, rstd, c);
    assert_memory_equal(y, b2, bytes);
    assert_memory_equal(z, c2, shape.width * sizeof *z);
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
    float *x = kit_numbers(N * I, 1), *w = kit_numbers(O * I, 2), *dy = kit_numbers(N * O, 3);
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
    float *x = kit_numbers(64 * 64, 1), *w = kit_numbers(64 * 64, 2), *y = kit_floats(64 * 64, 0);
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
        struct kernel_limits limits = {
            .B = 1, .T = p->a, .D = p->b, .H = 1, .E = p->b, .threads = 3};
        if (strcmp(p->op, "attention") == 0) {
            limits = (struct kernel_limits){p->a, p->b, 8, p->c, p->d, p->e, 8, 8, 8, 8, 3, 0};
        }
        if (strcmp(p->op, "hyper") == 0) { /* a token's parameters */
            limits.K = streams_weights(p) + 3;
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
        cmocka_unit_test(test_aliases),       cmocka_unit_test(test_accumulation),
        cmocka_unit_test(test_xent),          cmocka_unit_test(test_choice),
        cmocka_unit_test(test_trace),         cmocka_unit_test(test_workspace),
        cmocka_unit_test(test_ranks_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
