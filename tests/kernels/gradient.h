/* gradient.h - an operation's gradient against central differences of its double reference. */
#ifndef TESTS_KERNELS_GRADIENT_H
#define TESTS_KERNELS_GRADIENT_H

#include "tests/kernels/cases.h"

/* A problem's inputs in double, and room for the reference's output. */
struct mirror {
    const struct trial *trial;
    double *in[INPUTS_MAX], *out;
};

static inline void mirror_create(struct mirror *m, const struct trial *trial)
{
    m->trial = trial;
    m->out = calloc(trial->outputs, sizeof *m->out);
    assert_non_null(m->out);
    for (size_t i = 0; i < trial->inputs; i++) {
        m->in[i] = calloc(trial->sizes[i], sizeof *m->in[i]);
        assert_non_null(m->in[i]);
        for (size_t k = 0; k < trial->sizes[i]; k++) {
            m->in[i][k] = (double)trial->in[i][k];
        }
    }
}

static inline void mirror_free(struct mirror *m)
{
    for (size_t i = 0; i < m->trial->inputs; i++) {
        free(m->in[i]);
    }
    free(m->out);
}

/* sum of dout * reference(in) */
static inline double mirror_value(struct mirror *m)
{
    double sum = 0;
    m->trial->op->reference(m->trial->problem, m->in, m->out);
    for (size_t k = 0; k < m->trial->outputs; k++) {
        sum += (double)m->trial->dout[k] * m->out[k];
    }
    return sum;
}

#define GRADIENT_STEP 2e-5

/* Along one element. */
static inline double mirror_slope(struct mirror *m, size_t input, size_t element)
{
    double *x = &m->in[input][element], before = *x;
    *x = before + GRADIENT_STEP;
    double above = mirror_value(m);
    *x = before - GRADIENT_STEP;
    double below = mirror_value(m);
    *x = before;
    return (above - below) / (2 * GRADIENT_STEP);
}

static inline void mirror_move(struct mirror *m, size_t input, const double *along, double step)
{
    for (size_t k = 0; k < m->trial->sizes[input]; k++) {
        m->in[input][k] = (double)m->trial->in[input][k] + step * along[k];
    }
}

/* Slope along `along`, all elements of an input at once. */
static inline double mirror_slope_along(struct mirror *m, size_t input, const double *along)
{
    mirror_move(m, input, along, GRADIENT_STEP);
    double above = mirror_value(m);
    mirror_move(m, input, along, -GRADIENT_STEP);
    double below = mirror_value(m);
    mirror_move(m, input, along, 0);
    return (above - below) / (2 * GRADIENT_STEP);
}

/* Gradients may be zero up to rounding: errors are relative to the larger of them and this. */
#define GRADIENT_FLOOR 0.05

/* All elements at once: along a random direction, relative to what such a direction sees of the
 * gradient on average (notices single elements); along the gradient itself, relative to its norm
 * (notices a wrong factor). */
static inline double gradient_error_along(struct mirror *m, size_t input)
{
    const float *din = m->trial->din[input];
    size_t count = m->trial->sizes[input];
    double *along = calloc(count, sizeof *along), dot = 0, norm = 0, length = 0;
    uint64_t state = 99;
    assert_non_null(along);
    for (size_t k = 0; k < count; k++) {
        along[k] = kit_random(&state);
        dot += (double)din[k] * along[k];
        norm += (double)din[k] * (double)din[k];
        length += along[k] * along[k];
    }
    double error = fabs(dot - mirror_slope_along(m, input, along));
    error /= fmax(sqrt(norm * length / (double)count), GRADIENT_FLOOR);

    double size = fmax(sqrt(norm), GRADIENT_FLOOR);
    for (size_t k = 0; k < count; k++) {
        along[k] = (double)din[k] / size;
    }
    double error_factor = fabs(norm / size - mirror_slope_along(m, input, along)) / size;
    free(along);
    return fmax(error, error_factor);
}

/* Largest error of up to `samples` elements, relative to the gradient's largest element. */
static inline double gradient_error(struct mirror *m, size_t input, size_t samples)
{
    const struct trial *t = m->trial;
    size_t count = t->sizes[input], step = count > samples ? count / samples : 1;
    double largest = 0, worst = 0;
    for (size_t k = 0; k < count; k++) {
        largest = fmax(largest, fabs((double)t->din[input][k]));
    }
    for (size_t k = 0; k < count; k += step) {
        double error = fabs((double)t->din[input][k] - mirror_slope(m, input, k));
        worst = error <= worst ? worst : isnan(error) ? INFINITY : error;
    }
    return worst / fmax(largest, GRADIENT_FLOOR);
}

#endif
