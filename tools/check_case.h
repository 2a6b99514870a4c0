/* check_case.h - private to `muddpipe check`: a golden folder in memory. */
#ifndef TOOLS_CHECK_CASE_H
#define TOOLS_CHECK_CASE_H

#include "model/model.h"

struct check_case {
    char folder[1024];
    struct model_config config;
    int64_t batch, T;          /* tokens.safetensors is [batch, T + 1] */
    int32_t *inputs, *targets; /* [batch * T] */
    struct tensor_file *expected;
};

MUST_USE status_t check_case_load(const char *folder, const struct run_config *config,
                                  struct check_case *out);
void check_case_free(struct check_case *test);
/* The `steps` first pairs (loss, gradient norm) of losses.json; out [2 * steps]. */
MUST_USE status_t check_case_losses(const struct check_case *test, int64_t steps, double *out);
/* The reference tensor `name` as floats (malloc'ed), which must have `count` elements. */
MUST_USE status_t check_case_expected(const struct check_case *test, const char *name,
                                      int64_t count, float **out);

#endif
