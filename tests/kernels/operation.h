/* operation.h - an operation under test, as one differentiable function.
 *
 * `out = op(in[0], in[1], ..)`: the reference in double, written the naive way, beside calls of the
 * table's forward and backward. The modes (value, gradient, determinism, ..) know nothing else.
 */
#ifndef TESTS_KERNELS_OPERATION_H
#define TESTS_KERNELS_OPERATION_H

#include "tests/kernels/kit.h"

enum { INPUTS_MAX = 72 };

struct problem {
    const char *op;
    size_t a, b, c, d, e; /* shape, as the operation's comment says */
    int option;
};

struct operation {
    const char *name;
    /* Sizes of the inputs and of `out`, `kept` (forward to backward); returns the number of inputs.
     * */
    size_t (*sizes)(const struct problem *p, size_t *in, size_t *out, size_t *kept);
    void (*reference)(const struct problem *p, double *const *in, double *out);
    void (*forward)(const struct kernels *k, const struct kernel_ctx *ctx, const struct problem *p,
                    float *const *in, float *out, float *kept);
    /* din start at zero; accumulating outputs may rely on it. */
    void (*backward)(const struct kernels *k, const struct kernel_ctx *ctx, const struct problem *p,
                     float *const *in, const float *out, const float *kept, const float *dout,
                     float *const *din);
    bool library; /* uses a GEMM library: bits may differ between libraries */
};

#endif
