/* gemm_dnnl.c - products by oneDNN. */
#include "kernels/gemm.h"

#include <dlfcn.h>
#include <dnnl.h>
#include <pthread.h>
#include <stdio.h>

#include "base/status.h"

/* oneDNN runs on its own OpenMP runtime even where this program is built without OpenMP, and uses
 * all of its threads unless the calling thread's setting says one. The functions are looked up in
 * the runtime that is loaded, whichever that is; an oneDNN with another runtime has none. */
static int (*runtime_max_threads)(void);
static void (*runtime_set_threads)(int);
static pthread_once_t runtime_once = PTHREAD_ONCE_INIT;

static void runtime_find(void)
{
    *(void **)&runtime_max_threads = dlsym(RTLD_DEFAULT, "omp_get_max_threads");
    *(void **)&runtime_set_threads = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
}

void gemm_dnnl_title(char *buffer, size_t size)
{
    const dnnl_version_t *version = dnnl_version();
    snprintf(buffer, size, "oneDNN %d.%d.%d", version->major, version->minor, version->patch);
}

void gemm_dnnl(size_t M, size_t N, size_t K, struct gemm_operand A, struct gemm_operand B,
               bool accumulate, float *C, size_t ldc)
{
    pthread_once(&runtime_once, runtime_find);
    bool known = runtime_max_threads && runtime_set_threads;
    int threads = known ? runtime_max_threads() : 1;
    if (threads != 1) {
        runtime_set_threads(1);
    }
    dnnl_status_t status =
        dnnl_sgemm(A.transposed ? 'T' : 'N', B.transposed ? 'T' : 'N', (dnnl_dim_t)M, (dnnl_dim_t)N,
                   (dnnl_dim_t)K, 1.0f, A.base, (dnnl_dim_t)A.ld, B.base, (dnnl_dim_t)B.ld,
                   accumulate ? 1.0f : 0.0f, C, (dnnl_dim_t)ldc);
    if (threads != 1) {
        runtime_set_threads(threads);
    }
    CHECK(status == dnnl_success, "dnnl_sgemm of %zu x %zu x %zu returned %d", M, N, K,
          (int)status);
}
