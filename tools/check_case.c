/* check_case.c - reads a golden folder; tests/golden/README.md says what it holds. */
#include "tools/check_case.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"

static status_t path_in(const struct check_case *test, const char *name, char *out, size_t size)
{
    int length = snprintf(out, size, "%s/%s", test->folder, name);
    if (length < 0 || (size_t)length >= size) {
        return FAIL(STATUS_INVALID, "the path %s/%s is too long", test->folder, name);
    }
    return STATUS_OK;
}

/* Splits [batch, T + 1] tokens into inputs and targets. */
static status_t split_tokens(struct check_case *test, const struct tensor *tokens)
{
    size_t count = (size_t)(test->batch * test->T);
    test->inputs = calloc(count, sizeof *test->inputs);
    test->targets = calloc(count, sizeof *test->targets);
    if (!test->inputs || !test->targets) {
        return FAIL(STATUS_NOMEM, "no memory for %zu tokens", count);
    }
    for (int64_t b = 0; b < test->batch; b++) {
        for (int64_t t = 0; t <= test->T; t++) {
            int32_t token;
            size_t at = (size_t)(b * (test->T + 1) + t);
            memcpy(&token, (const char *)tokens->data + at * sizeof token, sizeof token);
            if (token < 0 || token >= test->config.vocab_size) {
                return FAIL(STATUS_INVALID,
                            "%s/tokens.safetensors: token %d at [%lld, %lld] is not below the "
                            "vocabulary of %lld",
                            test->folder, token, (long long)b, (long long)t,
                            (long long)test->config.vocab_size);
            }
            if (t < test->T) {
                test->inputs[b * test->T + t] = token;
            }
            if (t > 0) {
                test->targets[b * test->T + t - 1] = token;
            }
        }
    }
    return STATUS_OK;
}

static status_t load_tokens(struct check_case *test)
{
    char path[1100];
    struct tensor_file *file;
    struct tensor tokens;
    TRY(path_in(test, "tokens.safetensors", path, sizeof path));
    TRY(tensor_file_open(path, &file));
    status_t status = STATUS_OK;
    if (!tensor_file_find(file, "tokens", &tokens) || tokens.dims != 2 ||
        tokens.dtype != TENSOR_I32 || tokens.shape[0] < 1 || tokens.shape[1] < 2) {
        status = FAIL(STATUS_INVALID, "%s: expected a tensor `tokens`, I32 [batch, T + 1]", path);
    } else {
        test->batch = tokens.shape[0];
        test->T = tokens.shape[1] - 1;
        status = split_tokens(test, &tokens);
    }
    tensor_file_close(file);
    return status;
}

status_t check_case_load(const char *folder, const struct run_config *config,
                         struct check_case *out)
{
    char path[1100];
    memset(out, 0, sizeof *out);
    snprintf(out->folder, sizeof out->folder, "%s", folder);
    TRY(model_config_load(folder, &config->model_keys, &config->dense_keys, &out->config));
    TRY(load_tokens(out));
    TRY(path_in(out, "expected.safetensors", path, sizeof path));
    return tensor_file_open(path, &out->expected);
}

void check_case_free(struct check_case *test)
{
    free(test->inputs);
    free(test->targets);
    tensor_file_close(test->expected);
    memset(test, 0, sizeof *test);
}

status_t check_case_losses(const struct check_case *test, int64_t steps, double *out)
{
    char path[1100];
    struct json *document;
    TRY(path_in(test, "losses.json", path, sizeof path));
    TRY(json_load(path, &document));
    const struct json *list = json_get(document, "loss_and_grad_norm");
    status_t status = STATUS_OK;
    if ((int64_t)json_size(list) < steps) {
        status = FAIL(STATUS_INVALID, "%s: `loss_and_grad_norm` has %zu steps, --steps wants %lld",
                      path, json_size(list), (long long)steps);
    }
    for (int64_t s = 0; s < steps && status == STATUS_OK; s++) {
        const struct json *pair = json_at(list, (size_t)s);
        if (!json_get_real(json_at(pair, 0), &out[2 * s]) ||
            !json_get_real(json_at(pair, 1), &out[2 * s + 1])) {
            status = FAIL(STATUS_INVALID, "%s: step %lld is not a pair of numbers", path,
                          (long long)s + 1);
        }
    }
    json_free(document);
    return status;
}

status_t check_case_expected(const struct check_case *test, const char *name, int64_t count,
                             float **out)
{
    struct tensor tensor;
    if (!tensor_file_find(test->expected, name, &tensor)) {
        return FAIL(STATUS_INVALID, "%s: no tensor `%s`", tensor_file_path(test->expected), name);
    }
    if (tensor.count != count) {
        return FAIL(STATUS_INVALID, "%s: `%s` has %lld elements, the model's has %lld",
                    tensor_file_path(test->expected), name, (long long)tensor.count,
                    (long long)count);
    }
    *out = malloc((size_t)(count > 0 ? count : 1) * sizeof **out);
    if (!*out) {
        return FAIL(STATUS_NOMEM, "no memory for `%s`", name);
    }
    status_t status = tensor_to_float(&tensor, *out);
    if (status != STATUS_OK) {
        free(*out);
        *out = NULL;
    }
    return status;
}
