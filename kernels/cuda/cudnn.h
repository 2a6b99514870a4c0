/* cudnn.h - cuDNN's attention behind C calls; private to kernels/cuda/.
 *
 * bfloat16 on whole sequences: plain causal masks, no documents. Each call says whether it took the
 * work; what it refuses is for the own kernels. Which it is follows from shape, alignment, card and
 * version of the library, never from time or from memory that happens to be free. Plans are made once
 * per shape, when first asked about (kernels_workspace does), and kept.
 *
 * A build without cudnn-frontend's headers has the same calls, which refuse everything.
 */
#ifndef KERNELS_CUDA_CUDNN_H
#define KERNELS_CUDA_CUDNN_H

#include "kernels/kernels.h"

#ifdef KERNELS_HAVE_CUDNN

#ifdef __cplusplus
extern "C" {
#endif

/* Loads the library, once for all, and starts it on the bound device. Its name and version, or NULL
 * and the reason in why [size]. Thread-safe. */
const char *cudnn_open(char *why, size_t size);

/* Bytes that either direction needs; 0 where the own kernels do all of it. */
size_t cudnn_attention_workspace(size_t B, size_t T, size_t H, size_t G, size_t E,
                                 bool deterministic);

bool cudnn_attention_forward(const struct kernel_ctx *ctx, const struct attention_shape *shape,
                             void *out, float *lse, const void *q, const void *k, const void *v);
/* deterministic: the same bits every time, at the price of memory and time. */
bool cudnn_attention_backward(const struct kernel_ctx *ctx, const struct attention_shape *shape,
                              bool deterministic, void *dq, void *dk, void *dv, const void *dout,
                              const void *out, const float *lse, const void *q, const void *k,
                              const void *v);

#ifdef __cplusplus
}
#endif

#else

#define CUDNN_ABSENT "this program was built without cudnn-frontend's headers"
#define cudnn_open(why, size) (snprintf((why), (size), CUDNN_ABSENT), (const char *)NULL)
#define cudnn_attention_workspace(B, T, H, G, E, deterministic) ((size_t)0)
#define cudnn_attention_forward(...) false
#define cudnn_attention_backward(...) false

#endif

#endif
