/* cases.h - the shapes that every mode goes through: odd sizes, one row, widths that end within a
 * vector, several blocks and tiles, grouped heads, documents, one to four ways. */
#ifndef TESTS_KERNELS_CASES_H
#define TESTS_KERNELS_CASES_H

#include "tests/kernels/operations.h"

/* clang-format off */
static const struct problem problems[] = {
    /* op, shape as in operations.h, option */
    {"embed", 1, 8, 5, 0, 0, 0},
    {"embed", 37, 21, 11, 0, 0, 0},
    {"embed", 130, 300, 7, 0, 0, 0},
    {"embed", 37, 21, 11, 3, 0, 0},
    {"embed", 70, 160, 9, 4, 0, 0},
    {"norm", 1, 8, 0, 0, 0, 0},
    {"norm", 7, 33, 0, 0, 0, 0},
    {"norm", 130, 64, 0, 0, 0, 4},
    {"norm", 65, 100, 0, 0, 0, 1},
    {"norm", 200, 24, 0, 0, 0, 2},
    {"norm", 3, 515, 0, 0, 0, 2 + 4},
    {"norm", 300, 128, 0, 0, 0, 0},
    {"linear", 1, 1, 1, 0, 0, 0},
    {"linear", 1, 32, 48, 0, 0, 0},
    {"linear", 17, 33, 9, 0, 0, 0},
    {"linear", 64, 64, 64, 0, 0, 4},
    {"linear", 70, 31, 65, 0, 0, 1},
    {"linear", 33, 20, 130, 0, 0, 2},
    {"linear", 65, 17, 35, 0, 0, 3},
    {"linear", 300, 270, 530, 0, 0, 0},
    {"linear", 257, 600, 40, 0, 0, 1 + 4},
    {"rope", 10, 5, 3, 8, 8, 0},
    {"rope", 34, 17, 2, 48, 12, 0},
    {"rope", 33, 33, 4, 64, 64, 1},
    {"attention", 1, 1, 1, 1, 8, 0},
    {"attention", 2, 17, 4, 2, 8, 0},
    {"attention", 1, 64, 2, 2, 16, 0},
    {"attention", 1, 70, 3, 1, 20, 0},
    {"attention", 2, 130, 2, 1, 32, 0},
    {"attention", 1, 200, 2, 2, 64, 75},
    {"attention", 2, 150, 2, 2, 8, 13},
    {"swiglu", 1, 30, 0, 0, 0, 0},
    {"swiglu", 1000, 80, 0, 0, 0, 0},
    {"swiglu", 20000, 20, 0, 0, 0, 0},
    {"gelu", 17, 10, 0, 0, 0, 0},
    {"gelu", 1000, 60, 0, 0, 0, 0},
    {"gelu", 20000, 20, 0, 0, 0, 0},
    {"mudd", 1, 8, 1, 1, 0, 0},
    {"mudd", 3, 17, 4, 2, 0, 0},
    {"mudd", 9, 40, 2, 5, 0, 4},
    {"mudd", 5, 64, 3, 9, 0, 0},
    {"mudd", 20, 100, 4, 13, 0, 4},
    {"mudd", 12, 33, 4, 6, 0, 1},
    {"mudd", 70, 16, 1, 34, 0, 1},
    {"mudd", 2, 50, 4, 70, 0, 4},
    {"depth", 1, 8, 1, 0, 0, 0},
    {"depth", 3, 17, 2, 0, 0, 4},
    {"depth", 70, 24, 5, 0, 0, 0},
    {"depth", 9, 100, 13, 0, 0, 4},
    {"depth", 4, 33, 66, 0, 0, 0},
    {"streams", 1, 8, 2, 0, 0, 0},
    {"streams", 5, 17, 3, 0, 0, 4},
    {"streams", 70, 40, 4, 0, 0, 0},
    {"streams", 3, 33, 9, 0, 0, 4},
    {"hyper", 5, 8, 2, 0, 0, HYPER_STATIC},
    {"hyper", 5, 8, 3, 0, 0, HYPER_STATIC + 4},
    {"hyper", 1, 8, 2, 0, 0, HYPER_DYNAMIC},
    {"hyper", 70, 17, 3, 0, 0, HYPER_DYNAMIC},
    {"hyper", 20, 24, 4, 0, 0, HYPER_DYNAMIC + 4},
    {"hyper", 1, 8, 2, 0, 0, HYPER_MHC},
    {"hyper", 70, 12, 3, 0, 0, HYPER_MHC},
    {"hyper", 20, 24, 4, 0, 0, HYPER_MHC},
    {"hyper", 17, 16, 6, 0, 0, HYPER_MHC},
    {"hyper", 20, 16, 4, 0, 0, HYPER_MHC + 4 + 8},
    {"xent", 1, 5, 0, 0, 0, 0},
    {"xent", 9, 33, 0, 0, 0, 1},
    {"xent", 40, 1500, 0, 0, 0, 0},
    {"xent", 6, 2500, 0, 0, 0, 1},
    {"xent_parts", 1, 6, 2, 0, 0, 0},
    {"xent_parts", 9, 35, 5, 0, 0, 1},
    {"xent_parts", 40, 1500, 3, 0, 0, 0},
    {"xent_parts", 6, 2600, 2, 0, 0, 1},
};
/* clang-format on */
enum { PROBLEMS = sizeof problems / sizeof *problems };

/* One problem's numbers and results. */
struct trial {
    const struct problem *problem;
    const struct operation *op;
    size_t inputs, sizes[INPUTS_MAX], outputs, kept_size, shift;
    float *in[INPUTS_MAX], *din[INPUTS_MAX], *out, *kept, *dout;
};

/* Fills the inputs with the problem's numbers; buffers start `shift` floats past alignment. */
static inline void trial_create(struct trial *t, const struct problem *p, size_t shift)
{
    memset(t, 0, sizeof *t);
    t->problem = p;
    t->op = operation_find(p->op);
    t->shift = shift;
    t->inputs = t->op->sizes(p, t->sizes, &t->outputs, &t->kept_size);
    bool activation = t->op->backward == swiglu_backward || t->op->backward == gelu_backward;
    double spread = activation ? (double)p->b / 10 : t->op->backward == hyper_backward ? 0.4 : 1.5;
    uint64_t state = 17;
    for (size_t i = 0; i < t->inputs; i++) {
        t->in[i] = kit_floats(t->sizes[i], shift);
        t->din[i] = kit_floats(t->sizes[i], shift);
        memset(t->din[i], 0, t->sizes[i] * sizeof(float));
        for (size_t k = 0; k < t->sizes[i]; k++) {
            t->in[i][k] = (float)(spread * kit_random(&state));
        }
    }
    t->out = kit_floats(t->outputs, shift);
    t->kept = kit_floats(t->kept_size, shift);
    t->dout = kit_floats(t->outputs, shift);
    for (size_t k = 0; k < t->outputs; k++) {
        t->dout[k] = (float)kit_random(&state);
    }
}

static inline void trial_free(struct trial *t)
{
    for (size_t i = 0; i < t->inputs; i++) {
        kit_free(t->in[i], t->shift);
        kit_free(t->din[i], t->shift);
    }
    kit_free(t->out, t->shift);
    kit_free(t->kept, t->shift);
    kit_free(t->dout, t->shift);
}

static inline void trial_run(struct trial *t, const struct kernels *table, int threads)
{
    struct kernel_ctx ctx = kit_context(threads);
    t->op->forward(table, &ctx, t->problem, t->in, t->out, t->kept);
    t->op->backward(table, &ctx, t->problem, t->in, t->out, t->kept, t->dout, t->din);
    kit_context_free(&ctx);
}

static inline bool trial_same(const struct trial *a, const struct trial *b)
{
    bool same = memcmp(a->out, b->out, a->outputs * sizeof(float)) == 0;
    for (size_t i = 0; i < a->inputs; i++) {
        same = same && memcmp(a->din[i], b->din[i], a->sizes[i] * sizeof(float)) == 0;
    }
    return same;
}

static inline const char *problem_print(const struct problem *p, char *buffer, size_t size)
{
    snprintf(buffer, size, "%s %zu %zu %zu %zu %zu option %d", p->op, p->a, p->b, p->c, p->d, p->e,
             p->option);
    return buffer;
}

#endif
