/* kernels.c - picks the CPU's table: an instruction set and a GEMM library. */
#include "kernels/kernels.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scratch.h"
#include "kernels/gemm.h"

enum isa { ISA_V4, ISA_V3, ISA_GENERIC, ISAS };

static const char *const isa_names[ISAS] = {"v4", "v3", "generic"};
static const char *const gemm_names[GEMM_LIBRARIES] = {"dnnl", "openblas", "own"};

static size_t cpu_workspace(const struct kernel_limits *limits);

static struct kernels tables[ISAS][GEMM_LIBRARIES];
static char table_names[ISAS][GEMM_LIBRARIES][64];
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

size_t dtype_size(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? 2 : 4;
}

const char *dtype_name(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? "bf16" : "f32";
}

#define FILE_FILL(file, isa) file##_fill_##isa(table);
#define TABLE_FILL(isa)                                                                            \
    static void table_fill_##isa(struct kernels *table, enum gemm_library library)                 \
    {                                                                                              \
        CPU_FILES(FILE_FILL, isa)                                                                  \
        linear_fill_##isa(table, library);                                                         \
    }

TABLE_FILL(generic)
#if defined(__x86_64__)
TABLE_FILL(v3)
TABLE_FILL(v4)
#endif

static const char *gemm_title(enum gemm_library library, char *buffer, size_t size)
{
    snprintf(buffer, size, "%s", gemm_names[library]);
#ifdef KERNELS_HAVE_DNNL
    if (library == GEMM_DNNL) {
        gemm_dnnl_title(buffer, size);
    }
#endif
#ifdef KERNELS_HAVE_OPENBLAS
    if (library == GEMM_OPENBLAS) {
        gemm_openblas_title(buffer, size);
    }
#endif
    return buffer;
}

static void tables_fill(void)
{
    char title[48];
    for (int isa = 0; isa < ISAS; isa++) {
        for (int library = 0; library < GEMM_LIBRARIES; library++) {
            struct kernels *table = &tables[isa][library];
            char *name = table_names[isa][library];
            snprintf(name, sizeof table_names[0][0], "cpu-%s (%s)", isa_names[isa],
                     gemm_title((enum gemm_library)library, title, sizeof title));
            table->name = name;
            table->dtype = DTYPE_F32;
            table->workspace = cpu_workspace;
            switch (isa) {
#if defined(__x86_64__)
            case ISA_V4:
                table_fill_v4(table, (enum gemm_library)library);
                break;
            case ISA_V3:
                table_fill_v3(table, (enum gemm_library)library);
                break;
#endif
            default:
                table_fill_generic(table, (enum gemm_library)library);
                break;
            }
        }
    }
#ifdef KERNELS_HAVE_OPENBLAS
    gemm_openblas_init();
#endif
}

/* Does this processor, under this operating system, run the instruction set? */
static bool isa_runs(enum isa isa)
{
    if (isa == ISA_GENERIC) {
        return true;
    }
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl");
    return isa == ISA_V4 ? v4 : v3;
#else
    return false;
#endif
}

static bool gemm_built(enum gemm_library library)
{
#ifdef KERNELS_HAVE_DNNL
    if (library == GEMM_DNNL) {
        return true;
    }
#endif
#ifdef KERNELS_HAVE_OPENBLAS
    if (library == GEMM_OPENBLAS) {
        return true;
    }
#endif
    return library == GEMM_OWN;
}

/* Index of the variable's value among `names`; -1 if it is not set, `count` if it names nothing. */
static int choice_read(const char *variable, const char *const *names, int count)
{
    const char *value = getenv(variable);
    if (!value || !*value) {
        return -1;
    }
    int i = 0;
    while (i < count && strcmp(value, names[i]) != 0) {
        i++;
    }
    return i;
}

static status_t isa_choose(enum isa *out)
{
    int wanted = choice_read("MUDDPIPE_ISA", isa_names, ISAS);
    if (wanted == ISAS) {
        return FAIL(STATUS_INVALID, "MUDDPIPE_ISA=%s: must be v4, v3 or generic",
                    getenv("MUDDPIPE_ISA"));
    }
    if (wanted >= 0 && !isa_runs((enum isa)wanted)) {
        return FAIL(STATUS_UNSUPPORTED, "MUDDPIPE_ISA=%s: this processor does not have it",
                    isa_names[wanted]);
    }
    int isa = wanted < 0 ? ISA_V4 : wanted;
    while (!isa_runs((enum isa)isa)) {
        isa++;
    }
    *out = (enum isa)isa;
    return STATUS_OK;
}

static status_t gemm_choose(enum gemm_library *out)
{
    int wanted = choice_read("MUDDPIPE_GEMM", gemm_names, GEMM_LIBRARIES);
    if (wanted == GEMM_LIBRARIES) {
        return FAIL(STATUS_INVALID, "MUDDPIPE_GEMM=%s: must be dnnl, openblas or own",
                    getenv("MUDDPIPE_GEMM"));
    }
    if (wanted >= 0 && !gemm_built((enum gemm_library)wanted)) {
        return FAIL(STATUS_UNSUPPORTED, "MUDDPIPE_GEMM=%s: this program was built without it",
                    gemm_names[wanted]);
    }
    int library = wanted < 0 ? GEMM_DNNL : wanted;
    while (!gemm_built((enum gemm_library)library)) {
        library++;
    }
    *out = (enum gemm_library)library;
    return STATUS_OK;
}

status_t kernels_cpu(const struct kernels **out)
{
    enum isa isa = ISA_GENERIC;
    enum gemm_library library = GEMM_OWN;
    TRY(isa_choose(&isa));
    TRY(gemm_choose(&library));
    pthread_once(&tables_once, tables_fill);
    *out = &tables[isa][library];
    return STATUS_OK;
}

void kernels_guard(char *const *argv)
{
#ifdef KERNELS_HAVE_OPENBLAS
    int wanted = choice_read("MUDDPIPE_GEMM", gemm_names, GEMM_LIBRARIES);
    if (wanted == GEMM_OPENBLAS || (wanted < 0 && !gemm_built(GEMM_DNNL))) {
        gemm_openblas_guard(argv);
    }
#else
    (void)argv;
#endif
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

#ifndef KERNELS_HAVE_CUDA
status_t kernels_cuda(enum dtype dtype, const struct kernels **out)
{
    (void)dtype, (void)out;
    return FAIL(STATUS_UNSUPPORTED, "this program was built without CUDA");
}

void kernels_cuda_options(const struct kernels_cuda_options *options)
{
    (void)options;
}

char *kernels_cuda_algorithms_missing(void)
{
    return calloc(1, 1);
}

status_t kernels_cuda_algorithms_measure(const char *missing)
{
    (void)missing;
    return STATUS_OK;
}

char *kernels_cuda_algorithms_save(void)
{
    return calloc(1, 1);
}

status_t kernels_cuda_algorithms_load(const char *name, const char *text)
{
    (void)name, (void)text;
    return STATUS_OK;
}
#endif

static size_t cpu_workspace(const struct kernel_limits *limits)
{
    size_t N = limits->B * limits->T, threads = (size_t)limits->threads;
    size_t width = larger(limits->D, limits->K);
    size_t forward = threads * scratch_attention_forward(limits->E);
    size_t backward = threads * scratch_attention_backward(limits->T, limits->E);
    size_t norm = scratch_norm_backward(N, width);
    size_t head_norm = scratch_norm_backward(N * limits->H, limits->E);
    size_t floats = larger(larger(forward, backward), larger(norm, head_norm));
    return larger(floats * sizeof(float), N * sizeof(double));
}

size_t kernels_workspace(const struct kernels *kernels, const struct kernel_limits *limits)
{
    return kernels->workspace(limits);
}
