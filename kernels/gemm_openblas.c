/* gemm_openblas.c - products by OpenBLAS. */
#include "kernels/gemm.h"

#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

void gemm_openblas_init(void)
{
    openblas_set_num_threads(1);
}

/* The configuration begins with both words; the core decides on the kernels. */
void gemm_openblas_title(char *buffer, size_t size)
{
    const char *words = openblas_get_config();
    size_t name = strcspn(words, " ");
    name += words[name] == ' ' ? 1 + strcspn(words + name + 1, " ") : 0;
    snprintf(buffer, size, "%.*s for %s", (int)name, words, openblas_get_corename());
}

void gemm_openblas(size_t M, size_t N, size_t K, struct gemm_operand A, struct gemm_operand B,
                   bool accumulate, float *C, size_t ldc)
{
    cblas_sgemm(CblasRowMajor, A.transposed ? CblasTrans : CblasNoTrans,
                B.transposed ? CblasTrans : CblasNoTrans, (blasint)M, (blasint)N, (blasint)K, 1.0f,
                A.base, (blasint)A.ld, B.base, (blasint)B.ld, accumulate ? 1.0f : 0.0f, C,
                (blasint)ldc);
}

/* Kernels with fused multiply-add; everything else on a processor that has it is a mistake. */
static bool core_is_modern(const char *core)
{
    static const char *const modern[] = {"Haswell", "Zen", "SkylakeX", "Cooperlake",
                                         "SapphireRapids"};
    for (size_t i = 0; i < sizeof modern / sizeof *modern; i++) {
        if (strcasecmp(core, modern[i]) == 0) {
            return true;
        }
    }
    return false;
}

void gemm_openblas_guard(char *const *argv)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        core_is_modern(openblas_get_corename()) || getenv("OPENBLAS_CORETYPE")) {
        return;
    }
    const char *core = __builtin_cpu_supports("avx512vl") ? "SkylakeX" : "Haswell";
    log_info("OpenBLAS takes this processor for %s; starting again with OPENBLAS_CORETYPE=%s",
             openblas_get_corename(), core);
    setenv("OPENBLAS_CORETYPE", core, 1);
    execv("/proc/self/exe", argv);
    log_warn("could not start again; set OPENBLAS_CORETYPE=%s for fast matrix products", core);
#else
    (void)argv;
#endif
}
