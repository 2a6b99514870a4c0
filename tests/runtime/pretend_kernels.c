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

/* What a launch keeps of its arguments: values, and copies of lists and structs on the host. */
#define KEPT(kind, ...) KEPT_##kind(__VA_ARGS__)
#define KEPT_IN(name, count) const void *name;
#define KEPT_OUT(name, count) void *name;
#define KEPT_SUM(name, count, onto) void *name;
#define KEPT_FLOAT_IN(name, count) const float *name;
#define KEPT_FLOAT_OUT(name, count) float *name;
#define KEPT_FLOAT_SUM(name, count) float *name;
#define KEPT_DOUBLE_OUT(name, count) double *name;
#define KEPT_DOUBLE_SUM(name, count) double *name;
#define KEPT_INT_IN(name, count) const int32_t *name;
#define KEPT_LIST_IN(name, list, count) const void *name[LIST];
#define KEPT_LIST_OUT(name, list, count) void *name[LIST];
#define KEPT_STRUCT(type, name, list) struct type name[LIST];
#define KEPT_SIZE(name) size_t name;
#define KEPT_VALUE(type, name) type name;

#define KEEP(kind, ...) KEEP_##kind(__VA_ARGS__)
#define KEEP_IN(name, count) kept->name = name;
#define KEEP_OUT(name, count) kept->name = name;
#define KEEP_SUM(name, count, onto) kept->name = name;
#define KEEP_FLOAT_IN(name, count) kept->name = name;
#define KEEP_FLOAT_OUT(name, count) kept->name = name;
#define KEEP_FLOAT_SUM(name, count) kept->name = name;
#define KEEP_DOUBLE_OUT(name, count) kept->name = name;
#define KEEP_DOUBLE_SUM(name, count) kept->name = name;
#define KEEP_INT_IN(name, count) kept->name = name;
#define KEEP_LIST_IN(name, list, count) KEEP_STRUCT(, name, list)
#define KEEP_LIST_OUT(name, list, count) KEEP_STRUCT(, name, list)
#define KEEP_STRUCT(type, name, list)                                                              \
    CHECK((list) <= LIST, "%zu in a list of an operation", (size_t)(list));                        \
    memcpy((void *)kept->name, (const void *)name, (list) * sizeof *name);
#define KEEP_SIZE(name) kept->name = name;
#define KEEP_VALUE(type, name) kept->name = name;

#define PASS(kind, ...) PASS_##kind(__VA_ARGS__)
#define PASS_IN(name, count) , kept->name
#define PASS_OUT(name, count) , kept->name
#define PASS_SUM(name, count, onto) , kept->name
#define PASS_FLOAT_IN(name, count) , kept->name
#define PASS_FLOAT_OUT(name, count) , kept->name
#define PASS_FLOAT_SUM(name, count) , kept->name
#define PASS_DOUBLE_OUT(name, count) , kept->name
#define PASS_DOUBLE_SUM(name, count) , kept->name
#define PASS_INT_IN(name, count) , kept->name
#define PASS_LIST_IN(name, list, count) , kept->name
#define PASS_LIST_OUT(name, list, count) , kept->name
#define PASS_STRUCT(type, name, list) , kept->name
#define PASS_SIZE(name) , kept->name
#define PASS_VALUE(type, name) , kept->name

#define OPERATION(op, category, ...)                                                               \
    struct op##_arguments {                                                                        \
        struct kernel_ctx ctx;                                                                     \
        EACH(KEPT, __VA_ARGS__)                                                                    \
    };                                                                                             \
    static void op##_run(void *arguments)                                                          \
    {                                                                                              \
        const struct op##_arguments *kept = arguments;                                             \
        cpu->op(&kept->ctx EACH(PASS, __VA_ARGS__));                                               \
    }                                                                                              \
    static void op##_launch(const struct kernel_ctx *ctx EACH(OPERATION_PARAMETER, __VA_ARGS__))   \
    {                                                                                              \
        struct op##_arguments *kept = malloc(sizeof *kept);                                        \
        CHECK(kept, "no memory for the arguments of " #op);                                        \
        kept->ctx = (struct kernel_ctx){.threads = ctx->threads,                                   \
                                        .workspace = ctx->workspace,                               \
                                        .workspace_bytes = ctx->workspace_bytes};                  \
        EACH(KEEP, __VA_ARGS__)                                                                    \
        pretend_launch(ctx->stream, op##_run, kept);                                               \
    }
#include "kernels/operations.def"
#undef OPERATION

static struct kernels table;

static void table_fill(void)
{
    table = *cpu;
    table.name = "a GPU of threads";
#define OPERATION(op, category, ...) table.op = op##_launch;
#include "kernels/operations.def"
#undef OPERATION
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
