/* test_cuda_algorithms.c - the table of measured algorithms: what is missing after a run, measuring,
 * text and back, results with it. */
#include "tests/kernels/kit.h"

#include "base/device.h"
#include "base/log.h"

enum { N = 256, I = 192, O = 320, BYTES = 4 << 20 };

static struct {
    struct device *device;
    const struct kernels *run;
    struct kernel_ctx ctx;
    char *memory; /* x, weight, y, dy, dx, dweight: BYTES each */
} t;

static void *place(int i)
{
    return t.memory + (size_t)i * BYTES;
}

static void steps(void)
{
    const struct kernels *k = t.run;
    k->linear_forward(&t.ctx, place(2), place(0), place(1), NULL, N, I, O);
    k->linear_backward_input(&t.ctx, place(4), false, place(3), place(1), N, I, O);
    k->linear_backward_input(&t.ctx, place(4), true, place(3), place(1), N, I, O);
    k->linear_backward_weight(&t.ctx, place(5), NULL, place(3), place(0), N, I, O);
}

static size_t lines_of(const char *text)
{
    size_t lines = 0;
    for (; *text; text++) {
        lines += *text == '\n';
    }
    return lines;
}

static void open_once(void)
{
    void *memory;
    struct kernel_limits limits = {.B = 1, .T = N, .D = O, .H = 1, .G = 1, .E = 8, .F = O};
    assert_int_equal(device_open(DEVICE_CUDA, 0, &t.device), STATUS_OK);
    assert_int_equal(device_stream_create(t.device, false, &t.ctx.stream), STATUS_OK);
    assert_int_equal(kernels_cuda(DTYPE_BF16, &t.run), STATUS_OK);
    t.ctx.workspace_bytes = kernels_workspace(t.run, &limits);
    assert_int_equal(
        device_alloc(t.device, MEMORY_DEVICE, t.ctx.workspace_bytes, "ws", &t.ctx.workspace),
        STATUS_OK);
    assert_int_equal(device_alloc(t.device, MEMORY_DEVICE, 6 * (size_t)BYTES, "operands", &memory),
                     STATUS_OK);
    t.memory = memory;
    assert_int_equal(device_fill(t.device, memory, 0x3c, 6 * (size_t)BYTES, t.ctx.stream), 0);
}

static void fetch(void *out, int i)
{
    assert_int_equal(device_copy(t.device, out, place(i), BYTES, t.ctx.stream), STATUS_OK);
    assert_int_equal(device_stream_sync(t.device, t.ctx.stream), STATUS_OK);
}

static void test_table(void **state)
{
    (void)state;
    steps();
    char *missing = kernels_cuda_algorithms_missing(), *empty = kernels_cuda_algorithms_save();
    print_message("%s", missing);
    assert_true(lines_of(missing) == 4 && lines_of(empty) == 0);
    assert_int_equal(kernels_cuda_algorithms_measure(missing), STATUS_OK);
    char *table = kernels_cuda_algorithms_save(), *none = kernels_cuda_algorithms_missing();
    print_message("%s", table);
    assert_true(lines_of(table) == 4 && lines_of(none) == 0);
    assert_int_equal(kernels_cuda_algorithms_load("a copy", table), STATUS_OK);
    char *again = kernels_cuda_algorithms_save();
    assert_true(strcmp(table, again) == 0);
    free(missing), free(empty), free(table), free(none), free(again);
}

/* 2^-7: 0x3c3c is a bfloat16 near 0.0115; sums of equal terms. */
static void test_results(void **state)
{
    (void)state;
    uint16_t *y = malloc(BYTES), *same = malloc(BYTES);
    assert_true(y && same);
    steps();
    fetch(y, 2);
    steps();
    fetch(same, 2);
    assert_memory_equal(y, same, (size_t)N * O * sizeof *y);
    uint32_t one = 0x3c3c0000u, bits = (uint32_t)y[0] << 16;
    float x, result;
    memcpy(&x, &one, sizeof x);
    memcpy(&result, &bits, sizeof result);
    assert_true(fabs((double)result / ((double)x * (double)x * I) - 1) < 0x1p-8);
    for (size_t i = 1; i < (size_t)N * O; i++) {
        assert_true(y[i] == y[0]);
    }
    free(y), free(same);
}

static void refused(const char *text, const char *wanted)
{
    char messages[1024] = "";
    log_capture(messages, sizeof messages);
    assert_int_equal(kernels_cuda_algorithms_load("table.txt", text), STATUS_INVALID);
    log_capture(NULL, 0);
    print_message("%s", messages);
    assert_non_null(strstr(messages, wanted));
}

/* Three splits that race for the result; where cuBLASLt 13 keeps both (test_algorithm_order.c). */
static void refused_racing(const char *line)
{
    char other[2048];
    char *before = kernels_cuda_algorithms_save();
    snprintf(other, sizeof other, "%.*s algorithm=42-300000023-1 us=1.00 first=1.00\n",
             (int)(strstr(line, " algorithm=") - line), line);
    assert_int_equal(kernels_cuda_algorithms_load("table.txt", other), STATUS_OK);
    char *after = kernels_cuda_algorithms_save();
    assert_string_equal(before, after);
    free(before), free(after);
}

static void test_text(void **state)
{
    (void)state;
    char *table = kernels_cuda_algorithms_save();
    char *cut = strdup(table), other[2048];
    refused("# a comment\n\nnonsense\n", "table.txt, line 3");
    *strstr(cut, " algorithm=") = '\0';
    refused(cut, "line 1");
    *strchr(table, '\n') = '\0';
    snprintf(other, sizeof other, "card=Other_Card/1 library=1%s\n", strstr(table, " product="));
    assert_int_equal(kernels_cuda_algorithms_load("table.txt", other), STATUS_OK);
    assert_int_equal(kernels_cuda_algorithms_load("table.txt", ""), STATUS_OK);
    refused_racing(table);
    /* bits that are no algorithm are measured again, and meanwhile not used */
    snprintf(other, sizeof other, "%.*s algorithm=ffffffff us=1.00 first=1.00\n",
             (int)(strstr(table, " algorithm=") - table), table);
    assert_int_equal(kernels_cuda_algorithms_load("table.txt", other), STATUS_OK);
    char *missing = kernels_cuda_algorithms_missing();
    assert_true(lines_of(missing) == 1);
    steps();
    assert_int_equal(device_stream_sync(t.device, t.ctx.stream), STATUS_OK);
    assert_int_equal(kernels_cuda_algorithms_measure(missing), STATUS_OK);
    free(missing);
    missing = kernels_cuda_algorithms_missing();
    assert_true(lines_of(missing) == 0);
    free(missing), free(cut), free(table);
}

int main(void)
{
    char why[256] = "";
    if (device_count(DEVICE_CUDA, why, sizeof why) == 0) {
        printf("skipped: %s\n", why);
        return 77;
    }
    open_once();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_table), cmocka_unit_test(test_results),
                                       cmocka_unit_test(test_text)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
