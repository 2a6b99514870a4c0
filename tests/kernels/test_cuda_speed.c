/* test_cuda_speed.c - how long each of the GPU's operations takes at a size of a real model (1.4B, one
 * sequence of 4096 tokens; attention: 32 heads, one sequence of 4096 or two of 2048), and what measuring
 * the algorithms of products gains. Medians; between two runs the caches are filled with something else.
 * Bytes count each operand once, operations each multiplication and addition of a product (attention:
 * of the half that is seen). Fails only if something does.
 *     test_cuda_speed [NAME [deterministic]]: those whose name begins with NAME; "algorithms": the last */
#include "tests/kernels/kit.h"

#include "base/device.h"

enum {
    N = 4096,
    D = 2048,
    H = 32,
    E = 64,
    WIDE_E = 128,
    HALF = N / 2,
    F = 5632,
    V = 50432,
    KEYS = 25,
    C = 4,
    TERMS = 24
};
enum { K = C * KEYS, HEAD_ROWS = 1024, REPEATS = 15, PATTERN = 1 << 22, FLUSH = 256 << 20 };

static struct {
    struct device *device;
    const struct kernels *k;
    struct kernel_ctx ctx;
    struct device_event *begin, *end;
    char *memory;
    size_t used, bytes;
    void *flush;
    /* elements of the table's dtype */
    void *wide[4], *hidden[3], *weight, *table, *key[KEYS], *dout[TERMS * C], *inner[2], *w1, *w2;
    void *bias, *head[8]; /* head: [N, H, WIDE_E] */
    float *f32[4], *logits, *rstd, *lse, *scale, *weights, *cosine, *sine;
    double *loss;
    int32_t *ids;
} b;

static void *take(size_t bytes)
{
    void *memory = b.memory + b.used;
    b.used += (bytes + 255) / 256 * 256;
    assert_true(b.used <= b.bytes);
    return memory;
}

static void *take_elements(size_t count)
{
    return take(count * dtype_size(b.k->dtype));
}

static float *take_floats(size_t count)
{
    return take(count * sizeof(float));
}

/* Random numbers everywhere: zeros would flatter. */
static void memory_fill(void)
{
    float *numbers = kit_numbers(PATTERN, 1);
    size_t unit = PATTERN * dtype_size(b.k->dtype);
    void *pattern;
    assert_int_equal(
        device_alloc(b.device, MEMORY_DEVICE, 8 * (size_t)PATTERN, "a pattern", &pattern),
        STATUS_OK);
    float *floats = (float *)pattern + PATTERN;
    assert_int_equal(device_copy(b.device, floats, numbers, PATTERN * sizeof(float), b.ctx.stream),
                     STATUS_OK);
    b.k->from_f32(&b.ctx, pattern, floats, PATTERN);
    for (size_t at = 0; at + unit <= b.bytes; at += unit) {
        assert_int_equal(device_copy(b.device, b.memory + at, pattern, unit, b.ctx.stream),
                         STATUS_OK);
    }
    assert_int_equal(device_stream_sync(b.device, b.ctx.stream), STATUS_OK);
    device_free(b.device, MEMORY_DEVICE, pattern);
    kit_free(numbers, 0);
}

static void floats_fill(float *to, size_t count, float scale)
{
    float *numbers = kit_numbers(count, 5);
    for (size_t i = 0; i < count; i++) {
        numbers[i] *= scale;
    }
    assert_int_equal(device_copy(b.device, to, numbers, count * sizeof(float), b.ctx.stream),
                     STATUS_OK);
    assert_int_equal(device_stream_sync(b.device, b.ctx.stream), STATUS_OK);
    kit_free(numbers, 0);
}

static void operands_make(void)
{
    int32_t ids[N];
    for (size_t i = 0; i < 4; i++) {
        b.wide[i] = take_elements((size_t)N * D);
        b.f32[i] = take_floats((size_t)D * F);
    }
    for (size_t i = 0; i < 3; i++) {
        b.hidden[i] = take_elements((size_t)N * F);
    }
    for (size_t j = 0; j < KEYS; j++) {
        b.key[j] = take_elements((size_t)N * D);
    }
    for (size_t j = 0; j < TERMS * C; j++) {
        b.dout[j] = take_elements((size_t)N * D);
    }
    for (size_t i = 0; i < 8; i++) {
        b.head[i] = take_elements((size_t)N * H * WIDE_E);
    }
    b.weight = take_elements((size_t)D * F);
    b.table = take_elements((size_t)V * D);
    b.inner[0] = take_elements((size_t)N * K);
    b.inner[1] = take_elements((size_t)N * K);
    b.w1 = take_elements((size_t)K * D);
    b.w2 = take_elements((size_t)K * K);
    b.bias = take_elements(K);
    b.logits = take_floats((size_t)HEAD_ROWS * V);
    b.rstd = take_floats((size_t)N * H);
    b.lse = take_floats((size_t)N * H);
    b.scale = take_floats((size_t)V * D);
    b.weights = take_floats((size_t)N * K);
    b.cosine = take_floats((size_t)N * E / 2);
    b.sine = take_floats((size_t)N * E / 2);
    b.loss = take(sizeof(double));
    b.ids = take(sizeof ids);
    for (size_t t = 0; t < N; t++) { /* words are not equally frequent */
        uint64_t state = 77 + t;
        double u = fabs(kit_random(&state)), v = fabs(kit_random(&state));
        ids[t] = (int32_t)((double)(V - 1) * u * v * v * v);
    }
    assert_int_equal(device_copy(b.device, b.ids, ids, sizeof ids, b.ctx.stream), STATUS_OK);
    assert_int_equal(device_stream_sync(b.device, b.ctx.stream), STATUS_OK);
    floats_fill(b.logits, (size_t)HEAD_ROWS * V, 3.0f);
    floats_fill(b.weights, (size_t)N * K, 0.2f);
    floats_fill(b.rstd, (size_t)N * H, 1.0f);
}

static const char *wanted = "";

static const struct norm_shape row_norm = {NORM_RMS, N, D, 1e-5f};
static const struct norm_shape head_norm = {NORM_RMS, (size_t)N *H, E, 1e-5f};
/* One sequence of N tokens or two of half as many. */
static const struct attention_shape scores = {1, N, H, H, E, 0.125f, NULL};
static const struct attention_shape half_scores = {2, HALF, H, H, E, 0.125f, NULL};
static const struct attention_shape wide_scores = {1, N, H, H, WIDE_E, 0.0884f, NULL};
static const struct attention_shape wide_half_scores = {2, HALF, H, H, WIDE_E, 0.0884f, NULL};
static const struct attention_shape odd_scores = {1, N, D / 80, D / 80, 80, 0.1118f, NULL};

static void attend(const struct kernels *k, const struct kernel_ctx *ctx,
                   const struct attention_shape *shape)
{
    k->attention_forward(ctx, shape, b.head[0], b.lse, b.head[1], b.head[2], b.head[3]);
}

static void attend_back(const struct kernels *k, const struct kernel_ctx *ctx,
                        const struct attention_shape *shape)
{
    k->attention_backward(ctx, shape, b.head[4], b.head[5], b.head[6], b.head[7], b.head[0], b.lse,
                          b.head[1], b.head[2], b.head[3]);
}

#define RUN(name, ...)                                                                             \
    static void run_##name(void)                                                                   \
    {                                                                                              \
        const struct kernels *k = b.k;                                                             \
        const struct kernel_ctx *ctx = &b.ctx;                                                     \
        __VA_ARGS__;                                                                               \
    }

RUN(embed, k->embed_forward(ctx, b.wide[0], b.table, b.ids, 0, V, N, D))
RUN(embed_b, k->embed_backward(ctx, b.scale, b.wide[0], b.ids, 0, V, N, D))
RUN(norm, k->norm_forward(ctx, &row_norm, b.wide[0], NULL, b.rstd, b.wide[1], b.w1, NULL))
RUN(norm_b, k->norm_backward(ctx, &row_norm, b.wide[0], false, b.f32[0], NULL, b.wide[1], b.wide[2],
                             NULL, b.rstd, b.w1))
RUN(heads, k->norm_forward(ctx, &head_norm, b.wide[0], NULL, b.rstd, b.wide[1], b.w1, NULL))
RUN(heads_b, k->norm_backward(ctx, &head_norm, b.wide[0], false, b.f32[0], NULL, b.wide[1],
                              b.wide[2], NULL, b.rstd, b.w1))
RUN(square, k->linear_forward(ctx, b.wide[0], b.wide[1], b.weight, NULL, N, D, D))
RUN(linear, k->linear_forward(ctx, b.hidden[0], b.wide[1], b.weight, NULL, N, D, F))
RUN(linear_bi, k->linear_backward_input(ctx, b.wide[0], false, b.hidden[0], b.weight, N, D, F))
RUN(linear_bw, k->linear_backward_weight(ctx, b.f32[0], NULL, b.hidden[0], b.wide[0], N, D, F))
RUN(logits, k->logits_forward(ctx, b.logits, b.wide[0], b.table, HEAD_ROWS, D, V))
RUN(rope, k->rope(ctx, b.wide[0], b.cosine, b.sine, NULL, false, N, N, H, E, E))
RUN(attention, attend(k, ctx, &scores))
RUN(attention_b, attend_back(k, ctx, &scores))
RUN(attention_half, attend(k, ctx, &half_scores))
RUN(attention_b_half, attend_back(k, ctx, &half_scores))
RUN(attention_128, attend(k, ctx, &wide_scores))
RUN(attention_b_128, attend_back(k, ctx, &wide_scores))
RUN(attention_half_128, attend(k, ctx, &wide_half_scores))
RUN(attention_b_half_128, attend_back(k, ctx, &wide_half_scores))
RUN(attention_80, attend(k, ctx, &odd_scores))
RUN(attention_b_80, attend_back(k, ctx, &odd_scores))
RUN(inner_bw, k->linear_backward_weight(ctx, b.f32[0], NULL, b.inner[0], b.wide[0], N, D, K))
RUN(swiglu, k->swiglu_forward(ctx, b.hidden[0], b.hidden[1], b.hidden[2], (size_t)N *F))
RUN(swiglu_b, k->swiglu_backward(ctx, b.hidden[1], b.hidden[2], b.hidden[0], b.hidden[1],
                                 b.hidden[2], (size_t)N *F))
RUN(gelu, k->gelu_forward(ctx, b.inner[0], b.inner[1], (size_t)N *K))
RUN(gelu_b, k->gelu_backward(ctx, b.inner[0], b.inner[0], b.inner[1], (size_t)N *K))
RUN(weights, k->mudd_weights_forward(ctx, b.weights, b.inner[0], b.w2, b.bias, N, K, C *KEYS))
RUN(weights_bi,
    k->mudd_weights_backward_input(ctx, b.inner[1], false, b.weights, b.w2, N, K, C *KEYS))
RUN(weights_bw,
    k->mudd_weights_backward_weight(ctx, b.f32[0], b.f32[1], b.weights, b.inner[0], N, K, C *KEYS))
RUN(mudd, k->mudd_forward(ctx, b.wide, (const void *const *)b.key, b.weights, NULL, N, D, C, KEYS))
RUN(mudd_bw, k->mudd_backward_weights(ctx, b.weights, (const void *const *)b.wide,
                                      (const void *const *)b.key, N, D, C, KEYS))
RUN(xent, k->xent(ctx, b.loss, b.logits, b.logits, b.ids, 1.0f / N, HEAD_ROWS, V))
RUN(xent_loss, k->xent(ctx, b.loss, NULL, b.logits, b.ids, 1.0f / N, HEAD_ROWS, V))
RUN(copy, k->copy(ctx, b.hidden[0], b.hidden[1], (size_t)N *F))
RUN(add, k->add(ctx, b.wide[0], b.wide[0], b.wide[1], (size_t)N *D))
RUN(from_f32, k->from_f32(ctx, b.weight, b.f32[0], (size_t)D *F))
RUN(accumulate, k->accumulate_f32(ctx, b.f32[0], b.f32[1], (size_t)D *F))
RUN(squares, k->sum_squares(ctx, b.loss, b.f32[0], (size_t)D *F))

static void run_key(void)
{
    struct mudd_term terms[TERMS];
    for (size_t k = 0; k < TERMS; k++) {
        terms[k] = (struct mudd_term){b.weights + k, K, KEYS, C, {0}};
        memcpy(terms[k].dout, b.dout + k * C, C * sizeof(void *));
    }
    b.k->mudd_backward_key(&b.ctx, b.wide[0], true, terms, TERMS, N, D);
}

/* Coefficients of TERMS consumers of KEYS sources each, one behind the other. */
static void run_depth_key(void)
{
    struct depth_term terms[TERMS];
    for (size_t k = 0; k < TERMS; k++) {
        terms[k] = (struct depth_term){b.logits + k * N * 3 * KEYS, KEYS, b.dout[k], b.w1, b.w2};
    }
    b.k->depth_backward_key(&b.ctx, b.wide[0], true, terms, TERMS, b.key[0], N, D);
}

/* The lists of gradients lie one behind the other: four of them are [N, 4, D]. */
enum { STREAMS = 4, W = 2 * STREAMS + STREAMS * STREAMS };
RUN(depth,
    k->depth_forward(ctx, b.wide[0], (const void *const *)b.key, b.w1, b.w2, 1e-6f, N, D, KEYS))
RUN(depth_b, k->depth_backward(ctx, b.logits, b.f32[0], b.f32[1], b.wide[0],
                               (const void *const *)b.key, b.w1, b.w2, 1e-6f, N, D, KEYS))
RUN(streams_sum, k->streams_sum(ctx, b.wide[0], b.weights, W, b.dout[0], N, D, STREAMS))
RUN(streams_mix, k->streams_mix(ctx, b.dout[4], false, b.weights, false, b.dout[0], b.weights,
                                b.wide[0], NULL, NULL, W, N, D, STREAMS))
RUN(streams_dots,
    k->streams_dots(ctx, b.weights, b.logits, W, b.dout[0], b.dout[4], b.wide[0], N, D, STREAMS))
RUN(generate, k->mudd_weights_forward(ctx, b.weights, b.dout[0], b.weight, NULL, N, STREAMS *D,
                                      STREAMS *STREAMS))
RUN(hyper, k->hyper_weights_forward(ctx, b.logits, b.weights, b.rstd, b.bias, b.bias, b.bias,
                                    b.bias, b.bias, b.bias, HYPER_MHC, N, STREAMS))
RUN(hyper_b, k->hyper_weights_backward(ctx, b.f32[0], b.f32[1], b.f32[2], b.logits, b.weights,
                                       b.rstd, b.bias, b.bias, b.bias, b.bias, b.bias, b.bias,
                                       HYPER_MHC, (size_t)STREAMS *D, N, STREAMS))

static void run_adamw(void)
{
    static const struct adamw_args args = {2e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 1.0f, 10, NULL};
    b.k->adamw(&b.ctx, &args, b.f32[0], b.f32[1], b.f32[2], b.f32[3], (size_t)D * F);
}

struct timed {
    const char *name;
    void (*run)(void);
    double elements, bytes, flops; /* elements of the dtype; other bytes */
};

#define ND ((double)N * D)
#define NF ((double)N * F)
#define DF ((double)D * F)
#define NK ((double)N * K)
#define HV ((double)HEAD_ROWS * V)
static const struct timed timed[] = {
    {"embed_forward", run_embed, 2 * ND, 0, 0},
    {"embed_backward", run_embed_b, ND, 8 * ND, 0},
    {"norm_forward [N, D]", run_norm, 2 * ND, 0, 0},
    {"norm_backward [N, D], dscale", run_norm_b, 3 * ND, 0, 0},
    {"norm_forward [N*H, E]", run_heads, 2 * ND, 0, 0},
    {"norm_backward [N*H, E], dscale", run_heads_b, 3 * ND, 0, 0},
    {"linear_forward D to D", run_square, 2 * ND, 0, 2 * ND *D},
    {"linear_forward D to F", run_linear, ND + NF + DF, 0, 2 * ND *F},
    {"linear_backward_input F to D", run_linear_bi, ND + NF + DF, 0, 2 * ND *F},
    {"linear_backward_weight [F, D]", run_linear_bw, ND + NF, 8 * DF, 2 * ND *F},
    {"logits_forward 1024 rows", run_logits, (double)V *D, 4 * HV, 2 * HV *D},
    {"linear_backward_weight [K, D]", run_inner_bw, ND + NK, 8.0 * K *D, 2 * NK *D},
    {"rope", run_rope, 2 * ND, 0, 0},
    {"attention_forward E=64 T=2048", run_attention_half, 4 * ND, 0, ND *N},
    {"attention_backward E=64 T=2048", run_attention_b_half, 8 * ND, 0, 2.5 * ND *N},
    {"attention_forward E=64 T=4096", run_attention, 4 * ND, 0, 2 * ND *N},
    {"attention_backward E=64 T=4096", run_attention_b, 8 * ND, 0, 5 * ND *N},
    {"attention_forward E=128 T=2048", run_attention_half_128, 8 * ND, 0, 2 * ND *N},
    {"attention_backward E=128 T=2048", run_attention_b_half_128, 16 * ND, 0, 5 * ND *N},
    {"attention_forward E=128 T=4096", run_attention_128, 8 * ND, 0, 4 * ND *N},
    {"attention_backward E=128 T=4096", run_attention_b_128, 16 * ND, 0, 10 * ND *N},
    {"attention_forward E=80 T=4096", run_attention_80, 4 * ND, 0, 2 * ND *N},
    {"attention_backward E=80 T=4096", run_attention_b_80, 8 * ND, 0, 5 * ND *N},
    {"swiglu_forward", run_swiglu, 3 * NF, 0, 0},
    {"swiglu_backward", run_swiglu_b, 5 * NF, 0, 0},
    {"gelu_forward [N, K]", run_gelu, 2 * NK, 0, 0},
    {"gelu_backward [N, K]", run_gelu_b, 3 * NK, 0, 0},
    {"mudd_weights_forward", run_weights, NK, 4 * NK, 2 * NK *K},
    {"mudd_weights_backward_input", run_weights_bi, NK, 4 * NK, 2 * NK *K},
    {"mudd_weights_backward_weight", run_weights_bw, NK, 4 * NK, 2 * NK *K},
    {"mudd_forward 25 keys", run_mudd, (KEYS + C) * ND, 4 * NK, 2 * C *KEYS *ND},
    {"mudd_backward_weights 25 keys", run_mudd_bw, (KEYS + C) * ND, 4 * NK, 2 * C *KEYS *ND},
    {"mudd_backward_key 24 terms", run_key, (TERMS * C + 2) * ND, 0, 2 * C *TERMS *ND},
    {"depth_forward 25 keys", run_depth, (KEYS + 1) * ND, 0, 6 * KEYS *ND},
    {"depth_backward 25 keys", run_depth_b, (KEYS + 1) * ND, 12.0 * N *KEYS, 8 * KEYS *ND},
    {"depth_backward_key 24 terms", run_depth_key, (TERMS + 3) * ND, 0, 6 * TERMS *ND},
    {"streams_sum 4", run_streams_sum, (STREAMS + 1) * ND, 0, 2 * STREAMS *ND},
    {"streams_mix 4", run_streams_mix, (2 * STREAMS + 1) * ND, 0, 40 * ND},
    {"streams_dots 4", run_streams_dots, (2 * STREAMS + 1) * ND, 0, 40 * ND},
    {"mudd_weights_forward [16, 4 D]", run_generate, STREAMS *ND, 64.0 * N, 128 * ND},
    {"hyper_weights_forward mhc", run_hyper, 0, 8.0 * N *W, 0},
    {"hyper_weights_backward mhc", run_hyper_b, 0, 12.0 * N *W, 0},
    {"xent, loss alone", run_xent_loss, 0, 4 * HV, 0},
    {"xent, in place", run_xent, HV, 4 * HV, 0},
    {"copy [N, F]", run_copy, 2 * NF, 0, 0},
    {"add [N, D]", run_add, 3 * ND, 0, 0},
    {"from_f32 [D, F]", run_from_f32, DF, 4 * DF, 0},
    {"accumulate_f32 [D, F]", run_accumulate, 0, 12 * DF, 0},
    {"sum_squares [D, F]", run_squares, 0, 4 * DF, 0},
    {"adamw [D, F]", run_adamw, 0, 28 * DF, 0},
};

static int compare(const void *x, const void *y)
{
    double a = *(const double *)x, c = *(const double *)y;
    return a < c ? -1 : a > c;
}

static double once(const struct timed *t)
{
    double ms;
    assert_int_equal(device_fill(b.device, b.flush, 1, FLUSH, b.ctx.stream), STATUS_OK);
    assert_int_equal(device_event_record(b.device, b.begin, b.ctx.stream), STATUS_OK);
    t->run();
    assert_int_equal(device_event_record(b.device, b.end, b.ctx.stream), STATUS_OK);
    assert_int_equal(device_event_sync(b.device, b.end), STATUS_OK);
    assert_int_equal(device_event_elapsed(b.device, b.begin, b.end, &ms), STATUS_OK);
    return ms;
}

/* ---- algorithms ---- */

/* Linears of a layer of 1.4B and of 6.9B, and what generates weights: rows, inputs, outputs. */
static const size_t linears[][3] = {
    {N, 2048, 2048},  {N, 2048, 5632},  {N, 5632, 2048},      {N, 2048, 128},       {N, 4096, 4096},
    {N, 4096, 11008}, {N, 11008, 4096}, {HEAD_ROWS, 2048, V}, {HEAD_ROWS, 4096, V},
};

/* All that training does with a linear. */
static void linear_run(size_t rows, size_t I, size_t O, char *memory)
{
    if (O == V) {
        b.k->logits_forward(&b.ctx, (float *)memory, memory, memory, rows, I, O);
    } else {
        b.k->linear_forward(&b.ctx, memory, memory, memory, NULL, rows, I, O);
    }
    b.k->linear_backward_input(&b.ctx, memory, false, memory, memory, rows, I, O);
    b.k->linear_backward_weight(&b.ctx, (float *)memory, NULL, memory, memory, rows, I, O);
}

static void lines_print(char *text)
{
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        print_message("%s\n", strstr(line, "product="));
    }
}

/* Times of the table's lines, beside the library's first choice. */
static void algorithms_time(void)
{
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++) {
        linear_run(linears[i][0], linears[i][1], linears[i][2], b.memory);
    }
    assert_int_equal(device_stream_sync(b.device, b.ctx.stream), STATUS_OK);
    char *missing = kernels_cuda_algorithms_missing();
    int64_t begin = trace_now();
    assert_int_equal(kernels_cuda_algorithms_measure(missing), STATUS_OK);
    double seconds = (double)(trace_now() - begin) * 1e-9;
    char *table = kernels_cuda_algorithms_save();
    print_message("algorithms, measured in %.1f s\n", seconds);
    lines_print(table);
    free(missing);
    free(table);
}

/* Enough for every shape here. */
static size_t workspace_bytes(void)
{
    static const struct attention_shape *const shapes[] = {&scores, &half_scores, &wide_scores,
                                                           &wide_half_scores, &odd_scores};
    size_t most = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const struct attention_shape *s = shapes[i];
        struct kernel_limits limits = {.B = s->B,
                                       .T = s->T,
                                       .D = D,
                                       .H = s->H,
                                       .G = s->G,
                                       .E = s->E,
                                       .F = F,
                                       .V = V,
                                       .K = K,
                                       .Cn = K};
        size_t bytes = kernels_workspace(b.k, &limits);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static void dtype_time(enum dtype dtype)
{
    assert_int_equal(kernels_cuda(dtype, &b.k), STATUS_OK);
    int64_t begin = trace_now();
    b.ctx.workspace_bytes = workspace_bytes();
    double seconds = (double)(trace_now() - begin) * 1e-9;
    assert_int_equal(device_alloc(b.device, MEMORY_DEVICE, b.ctx.workspace_bytes, "the workspace",
                                  &b.ctx.workspace),
                     STATUS_OK);
    b.used = 0;
    memory_fill();
    operands_make();
    print_message("%s, N=%d D=%d H=%d F=%d V=%d, %d keys, %d ways, workspace %.1f MiB, known "
                  "after %.2f s\n",
                  b.k->name, N, D, H, F, V, KEYS, C, (double)b.ctx.workspace_bytes / 0x1p20,
                  seconds);
    for (size_t i = 0; i < sizeof timed / sizeof *timed; i++) {
        const struct timed *t = &timed[i];
        double ms[REPEATS];
        if (strncmp(t->name, wanted, strlen(wanted)) != 0) {
            continue;
        }
        once(t);
        for (size_t r = 0; r < REPEATS; r++) {
            ms[r] = once(t);
        }
        qsort(ms, REPEATS, sizeof *ms, compare);
        double median = ms[REPEATS / 2];
        double bytes = t->elements * (double)dtype_size(dtype) + t->bytes;
        print_message("%-4s %-32s %9.3f ms %7.0f GB/s %7.1f TFLOP/s  (%.3f-%.3f)\n",
                      dtype_name(dtype), t->name, median, bytes / median / 1e6,
                      t->flops / median / 1e9, ms[0], ms[REPEATS - 1]);
    }
    if (dtype == DTYPE_BF16 && strncmp("algorithms", wanted, strlen(wanted)) == 0) {
        algorithms_time();
    }
    device_free(b.device, MEMORY_DEVICE, b.ctx.workspace);
}

static void test_speed(void **state)
{
    (void)state;
    struct device_info info;
    void *memory;
    assert_int_equal(device_open(DEVICE_CUDA, 0, &b.device), STATUS_OK);
    device_info(b.device, &info);
    print_message("%s, sm_%d\n", info.name, info.capability);
    assert_int_equal(device_stream_create(b.device, false, &b.ctx.stream), STATUS_OK);
    assert_int_equal(device_event_create(b.device, true, &b.begin), STATUS_OK);
    assert_int_equal(device_event_create(b.device, true, &b.end), STATUS_OK);
    b.bytes = (size_t)10 << 30;
    assert_int_equal(device_alloc(b.device, MEMORY_DEVICE, b.bytes, "operands", &memory),
                     STATUS_OK);
    b.memory = memory;
    assert_int_equal(device_alloc(b.device, MEMORY_DEVICE, FLUSH, "a flush", &b.flush), STATUS_OK);
    b.ctx.threads = 1;
    dtype_time(DTYPE_BF16);
    dtype_time(DTYPE_F32);
    device_free(b.device, MEMORY_DEVICE, b.flush);
    device_free(b.device, MEMORY_DEVICE, b.memory);
    device_event_destroy(b.device, b.begin);
    device_event_destroy(b.device, b.end);
    device_stream_destroy(b.device, b.ctx.stream);
    device_close(b.device);
}

int main(int argc, char **argv)
{
    char why[256] = "";
    wanted = argc > 1 ? argv[1] : wanted;
    kernels_cuda_options(&(struct kernels_cuda_options){
        .deterministic = argc > 2 && strcmp(argv[2], "deterministic") == 0});
    if (device_count(DEVICE_CUDA, why, sizeof why) == 0) {
        printf("skipped: %s\n", why);
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_speed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
