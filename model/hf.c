/* hf.c - official weights into a part, and the list of tensors that goes out. */
#include <stdlib.h>
#include <string.h>

#include "model/part_internal.h"
#include "model/safetensors.h"

static bool shape_fits(const struct param *param, const struct tensor *tensor)
{
    return tensor->dims == param->dims && tensor->shape[0] == param->shape[0] &&
           (param->dims < 2 || tensor->shape[1] == param->shape[1]);
}

static status_t tensor_fits(const struct tensor_file *file, const struct param *param,
                            const struct tensor *tensor)
{
    char expected[64], found[256];

    if (!shape_fits(param, tensor)) {
        return FAIL(STATUS_INVALID, "%s: tensor %s has shape %s; the model's has %s",
                    tensor_file_path(file), param->name,
                    tensor_shape_print(tensor->shape, tensor->dims, found, sizeof found),
                    tensor_shape_print(param->shape, param->dims, expected, sizeof expected));
    }
    if (tensor->dtype == TENSOR_I32 || tensor->dtype == TENSOR_I64) {
        return FAIL(STATUS_INVALID, "%s: tensor %s holds integers (%s), no weights",
                    tensor_file_path(file), param->name, tensor_dtype_name(tensor->dtype));
    }
    return STATUS_OK;
}

/* The whole file, so that every rank finds the same fault and none starts. */
status_t model_check_tensors(const struct model *model, const struct tensor_file *file)
{
    struct tensor tensor;

    for (int i = 0; i < tensor_file_count(file); i++) {
        tensor_file_at(file, i, &tensor);
        if (model_find_param(model, tensor.name) == NULL) {
            return FAIL(STATUS_INVALID,
                        "%s: tensor %s is none of this model's; does config.json belong to these "
                        "weights?",
                        tensor_file_path(file), tensor.name);
        }
    }
    for (int p = 0; p < model->params; p++) {
        const struct param *param = &model->param[p];
        if (tensor_file_find(file, param->name, &tensor)) {
            TRY(tensor_fits(file, param, &tensor));
        } else if (param->trained) {
            return FAIL(STATUS_INVALID, "%s: tensor %s is missing", tensor_file_path(file),
                        param->name);
        }
    }
    return STATUS_OK;
}

static status_t import_tensor(struct part *part, int param, const struct tensor *tensor)
{
    float *values = malloc((size_t)tensor->count * sizeof *values);

    if (values == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the %lld values of %s", (long long)tensor->count,
                    tensor->name);
    }
    status_t status = tensor_to_float(tensor, values);
    if (status == STATUS_OK) {
        status = part_write(part, STORE_WEIGHTS, param, values);
    }
    free(values);
    return status;
}

status_t part_import(struct part *part, const struct tensor_file *file)
{
    const struct model *model = part->model;
    struct tensor tensor;

    TRY(model_check_tensors(model, file));
    for (int p = 0; p < model->params; p++) {
        if (part_owns(part, p) && tensor_file_find(file, model->param[p].name, &tensor)) {
            TRY(import_tensor(part, p, &tensor));
        }
    }
    return STATUS_OK;
}

/* Entry p is parameter p. */
status_t model_entries(const struct model *model, struct tensor_entry **out)
{
    struct tensor_entry *entries = calloc((size_t)model->params, sizeof *entries);

    if (entries == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the list of %d tensors", model->params);
    }
    for (int p = 0; p < model->params; p++) {
        const struct param *param = &model->param[p];
        snprintf(entries[p].name, sizeof entries[p].name, "%s", param->name);
        entries[p].dims = param->dims;
        entries[p].shape[0] = param->shape[0];
        entries[p].shape[1] = param->shape[1];
    }
    *out = entries;
    return STATUS_OK;
}
