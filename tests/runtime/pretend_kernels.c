/* pretend_kernels.c - kernels of a GPU of threads (tests/comm/pretend.c): every op copies its arguments,
 * as kernels.h promises for CUDA, and returns; the stream's thread then runs the CPU's op, in bf16 that of
 * rounded.h. Its table of product algorithms knows one product. Linked with --wrap for each function that
 * ends this file, so that whoever asks for the GPU gets this one.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "tests/comm/pretend.h"

#define assert_true(condition) CHECK(condition, "a GPU of threads")
#define assert_ok(call) CHECK((call) == STATUS_OK, "a GPU of threads")
#define assert_non_null(pointer) CHECK(pointer, "a GPU of threads: no memory")
#include "tests/runtime/rounded.h"

enum { LIST = 128 }; /* keys or terms of an aggregate, at most */

static const struct kernels *cpu;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Arguments of an op are written (V, type, name), a value, or (L, type, name, count), a list or a struct
 * on the host, of which the launch takes a copy. */
#define FIELD_V(type, name) type name;
#define FIELD_L(type, name, count) type name[LIST];
#define PARAMETER_V(type, name) , type name
#define PARAMETER_L(type, name, count) , type const *name
#define KEEP_V(type, name) a->name = name;
#define KEEP_L(type, name, count)                                                                  \
    CHECK((count) <= LIST, "%zu in a list of an operation", (size_t)(count));                      \
    memcpy((void *)a->name, (const void *)name, (count) * sizeof *name);
#define PASS_V(type, name) , a->name
#define PASS_L(type, name, count) , a->name

#define FIELD(kind, ...) FIELD_##kind(__VA_ARGS__)
#define PARAMETER(kind, ...) PARAMETER_##kind(__VA_ARGS__)
#define KEEP(kind, ...) KEEP_##kind(__VA_ARGS__)
#define PASS(kind, ...) PASS_##kind(__VA_ARGS__)

/* what(argument) for each of at most 12. */
#define EACH(what, ...)                                                                            \
    PICK(__VA_ARGS__, EACH12, EACH11, EACH10, EACH9, EACH8, EACH7, EACH6, EACH5, EACH4, EACH3,     \
         EACH2, EACH1)                                                                             \
    (what, __VA_ARGS__)
#define PICK(a, b, c, d, e, f, g, h, i, j, k, l, picked, ...) picked
#define EACH1(what, a) what a
#define EACH2(what, a, ...) what a EACH1(what, __VA_ARGS__)
#define EACH3(what, a, ...) what a EACH2(what, __VA_ARGS__)
#define EACH4(what, a, ...) what a EACH3(what, __VA_ARGS__)
#define EACH5(what, a, ...) what a EACH4(what, __VA_ARGS__)
#define EACH6(what, a, ...) what a EACH5(what, __VA_ARGS__)
#define EACH7(what, a, ...) what a EACH6(what, __VA_ARGS__)
#define EACH8(what, a, ...) what a EACH7(what, __VA_ARGS__)
#define EACH9(what, a, ...) what a EACH8(what, __VA_ARGS__)
#define EACH10(what, a, ...) what a EACH9(what, __VA_ARGS__)
#define EACH11(what, a, ...) what a EACH10(what, __VA_ARGS__)
#define EACH12(what, a, ...) what a EACH11(what, __VA_ARGS__)

#define OP(op, ...)                                                                                \
    struct op##_arguments {                                                                        \
        struct kernel_ctx ctx;                                                                     \
        EACH(FIELD, __VA_ARGS__)                                                                   \
    };                                                                                             \
    static void op##_run(void *arguments)                                                          \
    {                                                                                              \
        const struct op##_arguments *a = arguments;                                                \
        cpu->op(&a->ctx EACH(PASS, __VA_ARGS__));                                                  \
    }                                                                                              \
    static void op##_launch(const struct kernel_ctx *ctx EACH(PARAMETER, __VA_ARGS__))             \
    {                                                                                              \
        struct op##_arguments *a = malloc(sizeof *a);                                              \
        CHECK(a, "no memory for the arguments of " #op);                                           \
        a->ctx = (struct kernel_ctx){.threads = ctx->threads,                                      \
                                     .workspace = ctx->workspace,                                  \
                                     .workspace_bytes = ctx->workspace_bytes};                     \
        EACH(KEEP, __VA_ARGS__)                                                                    \
        pretend_launch(ctx->stream, op##_run, a);                                                  \
    }

OP(embed_forward, (V, void *, out), (V, const void *, table), (V, const int32_t *, ids),
   (V, size_t, N), (V, size_t, D))
OP(embed_backward, (V, float *, dtable), (V, const void *, dout), (V, const int32_t *, ids),
   (V, size_t, N), (V, size_t, D))
OP(norm_forward, (L, struct norm_shape, shape, 1), (V, void *, y), (V, float *, mean),
   (V, float *, rstd), (V, const void *, x), (V, const void *, scale), (V, const void *, bias))
OP(norm_backward, (L, struct norm_shape, shape, 1), (V, void *, dx), (V, bool, accumulate),
   (V, float *, dscale_part), (V, float *, dbias_part), (V, const void *, dy), (V, const void *, x),
   (V, const float *, mean), (V, const float *, rstd), (V, const void *, scale))
OP(linear_forward, (V, void *, y), (V, const void *, x), (V, const void *, weight),
   (V, const void *, bias), (V, size_t, N), (V, size_t, I), (V, size_t, O))
OP(linear_backward_input, (V, void *, dx), (V, bool, accumulate), (V, const void *, dy),
   (V, const void *, weight), (V, size_t, N), (V, size_t, I), (V, size_t, O))
OP(linear_backward_weight, (V, float *, dweight), (V, float *, dbias), (V, const void *, dy),
   (V, const void *, x), (V, size_t, N), (V, size_t, I), (V, size_t, O))
OP(logits_forward, (V, float *, logits), (V, const void *, x), (V, const void *, weight),
   (V, size_t, N), (V, size_t, I), (V, size_t, O))
OP(rope, (V, void *, x), (V, const float *, cosine), (V, const float *, sine),
   (V, const int32_t *, position), (V, bool, inverse), (V, size_t, N), (V, size_t, T),
   (V, size_t, heads), (V, size_t, E), (V, size_t, R))
OP(attention_forward, (L, struct attention_shape, shape, 1), (V, void *, out), (V, float *, lse),
   (V, const void *, q), (V, const void *, k), (V, const void *, v))
OP(attention_backward, (L, struct attention_shape, shape, 1), (V, void *, dq), (V, void *, dk),
   (V, void *, dv), (V, const void *, dout), (V, const void *, out), (V, const float *, lse),
   (V, const void *, q), (V, const void *, k), (V, const void *, v))
OP(swiglu_forward, (V, void *, y), (V, const void *, gate), (V, const void *, up),
   (V, size_t, count))
OP(swiglu_backward, (V, void *, dgate), (V, void *, dup), (V, const void *, dy),
   (V, const void *, gate), (V, const void *, up), (V, size_t, count))
OP(gelu_forward, (V, void *, y), (V, const void *, x), (V, size_t, count))
OP(gelu_backward, (V, void *, dx), (V, const void *, dy), (V, const void *, x), (V, size_t, count))
OP(mudd_weights_forward, (V, float *, weights), (V, const void *, hidden), (V, const void *, w2),
   (V, const void *, bias), (V, size_t, N), (V, size_t, K), (V, size_t, Cn))
OP(mudd_weights_backward_input, (V, void *, dhidden), (V, const float *, dweights),
   (V, const void *, w2), (V, size_t, N), (V, size_t, K), (V, size_t, Cn))
OP(mudd_weights_backward_weight, (V, float *, dw2), (V, float *, dbias),
   (V, const float *, dweights), (V, const void *, hidden), (V, size_t, N), (V, size_t, K),
   (V, size_t, Cn))
OP(mudd_forward, (L, void *, out, C), (L, const void *, key, n), (V, const float *, weights),
   (V, const void *, static_weights), (V, size_t, N), (V, size_t, D), (V, size_t, C),
   (V, size_t, n))
OP(mudd_backward_weights, (V, float *, dweights), (L, const void *, dout, C),
   (L, const void *, key, n), (V, size_t, N), (V, size_t, D), (V, size_t, C), (V, size_t, n))
OP(mudd_backward_key, (V, void *, dkey), (V, bool, accumulate), (L, struct mudd_term, terms, count),
   (V, size_t, count), (V, size_t, N), (V, size_t, D))
OP(xent, (V, double *, loss), (V, void *, dlogits), (V, const float *, logits),
   (V, const int32_t *, targets), (V, float, scale), (V, size_t, rows), (V, size_t, vocabulary))
OP(from_f32, (V, void *, dst), (V, const float *, src), (V, size_t, count))
OP(copy, (V, void *, dst), (V, const void *, src), (V, size_t, count))
OP(zero, (V, void *, dst), (V, size_t, bytes))
OP(add, (V, void *, out), (V, const void *, left), (V, const void *, right), (V, size_t, count))
OP(scale_add, (V, void *, dst), (V, const void *, src), (V, float, scale), (V, size_t, count))
OP(scale_columns, (V, float *, x), (V, const float *, scale), (V, size_t, rows),
   (V, size_t, columns))
OP(accumulate_f32, (V, float *, dst), (V, const float *, src), (V, size_t, count))
OP(sum_squares, (V, double *, out), (V, const float *, x), (V, size_t, count))
OP(adamw, (L, struct adamw_args, args, 1), (V, float *, p), (V, float *, m), (V, float *, v),
   (V, const float *, gradient), (V, size_t, count))

static struct kernels table;

static void table_fill(void)
{
    table = *cpu;
    table.name = "a GPU of threads";
#define ENTRY(op) table.op = op##_launch
    ENTRY(embed_forward);
    ENTRY(embed_backward);
    ENTRY(norm_forward);
    ENTRY(norm_backward);
    ENTRY(linear_forward);
    ENTRY(linear_backward_input);
    ENTRY(linear_backward_weight);
    ENTRY(logits_forward);
    ENTRY(rope);
    ENTRY(attention_forward);
    ENTRY(attention_backward);
    ENTRY(swiglu_forward);
    ENTRY(swiglu_backward);
    ENTRY(gelu_forward);
    ENTRY(gelu_backward);
    ENTRY(mudd_weights_forward);
    ENTRY(mudd_weights_backward_input);
    ENTRY(mudd_weights_backward_weight);
    ENTRY(mudd_forward);
    ENTRY(mudd_backward_weights);
    ENTRY(mudd_backward_key);
    ENTRY(xent);
    ENTRY(from_f32);
    ENTRY(copy);
    ENTRY(zero);
    ENTRY(add);
    ENTRY(scale_add);
    ENTRY(scale_columns);
    ENTRY(accumulate_f32);
    ENTRY(sum_squares);
    ENTRY(adamw);
}

status_t __wrap_kernels_cuda(enum dtype dtype, const struct kernels **out);
char *__wrap_kernels_cuda_algorithms_missing(void);
status_t __wrap_kernels_cuda_algorithms_measure(const char *missing);
char *__wrap_kernels_cuda_algorithms_save(void);
status_t __wrap_kernels_cuda_algorithms_load(const char *name, const char *text);

/* A process has one precision. */
status_t __wrap_kernels_cuda(enum dtype dtype, const struct kernels **out)
{
    if (dtype == DTYPE_F32) {
        TRY(kernels_cpu(&cpu));
    } else {
        cpu = rounded_kernels();
    }
    pthread_once(&once, table_fill);
    CHECK(table.dtype == dtype, "a GPU of threads was asked for another precision before");
    *out = &table;
    return STATUS_OK;
}

static const char product[] = "card=threads library=1 product=1x1x1";
static char known[256]; /* a line, or "" */

char *__wrap_kernels_cuda_algorithms_missing(void)
{
    char line[sizeof product + 1];
    snprintf(line, sizeof line, "%s\n", product);
    return strdup(known[0] ? "" : line);
}

status_t __wrap_kernels_cuda_algorithms_measure(const char *missing)
{
    size_t length = strcspn(missing, "\n");
    snprintf(known, sizeof known, "%.*s algorithm=01 us=1.00 first=2.00\n", (int)length, missing);
    return STATUS_OK;
}

char *__wrap_kernels_cuda_algorithms_save(void)
{
    return strdup(known);
}

status_t __wrap_kernels_cuda_algorithms_load(const char *name, const char *text)
{
    const char *line = strstr(text, product);
    (void)name;
    if (line) {
        snprintf(known, sizeof known, "%.*s\n", (int)strcspn(line, "\n"), line);
    }
    return STATUS_OK;
}
