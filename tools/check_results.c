/* check_results.c - the tensors that a case left: all of them in turn, saved, compared bit by bit. */
#include "tools/check_results.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/check_report.h"

static int trained_params(const struct model *model)
{
    int count = 0;
    for (int p = 0; p < model->params; p++) {
        count += model->param[p].trained;
    }
    return count;
}

status_t check_results_create(struct group *group, struct trainer *trainer, int64_t batch,
                              int64_t T, struct check_results *out)
{
    const struct model *model = trainer_model(trainer);
    *out = (struct check_results){.group = group,
                                  .model = model,
                                  .trainer = trainer,
                                  .part = trainer_part(trainer),
                                  .count = 2 + trained_params(model)};
    out->entries = calloc((size_t)out->count, sizeof *out->entries);
    if (!out->entries) {
        return FAIL(STATUS_NOMEM, "no memory for %d names", out->count);
    }
    out->entries[0] = (struct tensor_entry){
        .name = "logits", .dims = 3, .shape = {batch, T, model->config.vocab_size}};
    out->entries[1] = (struct tensor_entry){.name = "loss", .dims = 1, .shape = {1}};
    for (int p = 0, item = 2; p < model->params; p++) {
        const struct param *param = &model->param[p];
        if (param->trained) {
            struct tensor_entry *entry = &out->entries[item++];
            snprintf(entry->name, sizeof entry->name, "grad.%s", param->name);
            entry->dims = param->dims;
            entry->shape[0] = param->shape[0];
            entry->shape[1] = param->shape[1];
        }
    }
    return STATUS_OK;
}

void check_results_free(struct check_results *results)
{
    free(results->entries);
    results->entries = NULL;
}

static int64_t values_of(const struct tensor_entry *entry)
{
    int64_t count = 1;
    for (int d = 0; d < entry->dims; d++) {
        count *= entry->shape[d];
    }
    return count;
}

/* All ranks that have a part of it put it together; the first of them is asked, unless something went wrong before. */
static status_t with_gradient(const struct check_results *results, int param, int item,
                              status_t before, check_result_fn fn, void *arg)
{
    int64_t count = values_of(&results->entries[item]);
    struct group *tensor = trainer_tensor(results->trainer);
    float *gradient = malloc((size_t)count * sizeof *gradient);
    status_t status =
        gradient ? STATUS_OK
                 : FAIL(STATUS_NOMEM, "no memory for a gradient of %lld values", (long long)count);
    status = tensor ? group_agree(tensor, status) : status;
    if (status == STATUS_OK) {
        status = trainer_gradient(results->trainer, param, gradient);
    }
    if (status == STATUS_OK && before == STATUS_OK && (!tensor || group_rank(tensor) == 0)) {
        status = fn(arg, item, gradient, count);
    }
    free(gradient);
    return before == STATUS_OK ? status : before;
}

status_t check_results_each(const struct check_results *results, check_result_fn fn, void *arg)
{
    if (results->silent) {
        return STATUS_OK;
    }
    struct group *tensor = trainer_tensor(results->trainer);
    status_t status = STATUS_OK;
    if (results->logits && (!tensor || group_rank(tensor) == 0)) {
        status = fn(arg, 0, results->logits, values_of(&results->entries[0]));
        status = status == STATUS_OK ? fn(arg, 1, &results->loss, 1) : status;
    }
    for (int p = 0, item = 2; p < results->model->params; p++) {
        if (results->model->param[p].trained) {
            if (part_owns(results->part, p)) {
                status = with_gradient(results, p, item, status, fn, arg);
            }
            item++;
        }
    }
    return status;
}

/* ---- saving ---- */

struct saving {
    const struct check_results *results;
    const char *path;
};

static status_t save_one(void *argument, int item, const float *values, int64_t count)
{
    const struct saving *saving = argument;
    (void)count;
    return tensor_writer_write(saving->path, saving->results->entries, saving->results->count, item,
                               values);
}

status_t check_results_save(const struct check_results *results, const char *path)
{
    struct saving saving = {results, path};
    status_t status = STATUS_OK;
    if (group_rank(results->group) == 0) {
        status = tensor_writer_create(path, results->entries, results->count);
    }
    TRY(group_agree(results->group, status));
    return group_agree(results->group, check_results_each(results, save_one, &saving));
}

/* ---- the same bits ---- */

struct sameness {
    const struct check_results *results;
    const struct tensor_file *file;
    struct check_report report; /* error 0: the same bits; more: others */
};

static status_t same_one(void *argument, int item, const float *values, int64_t count)
{
    struct sameness *same = argument;
    const char *name = same->results->entries[item].name;
    struct tensor tensor;
    if (!tensor_file_find(same->file, name, &tensor) || tensor.dtype != TENSOR_F32 ||
        tensor.count != count) {
        return FAIL(STATUS_INVALID,
                    "%s: no tensor `%s` of %lld values in float32: was it left by --save of this "
                    "case?",
                    tensor_file_path(same->file), name, (long long)count);
    }
    if (memcmp(values, tensor.data, (size_t)count * sizeof *values) == 0) {
        same->report.error[item] = 0;
        return STATUS_OK;
    }
    float *saved = malloc((size_t)count * sizeof *saved); /* the file's are not aligned */
    if (!saved) {
        return FAIL(STATUS_NOMEM, "no memory for `%s`", name);
    }
    memcpy(saved, tensor.data, (size_t)count * sizeof *saved);
    same->report.error[item] = fmax(check_error(values, saved, count), DBL_MIN); /* -0 is not 0 */
    free(saved);
    return STATUS_OK;
}

static status_t tell_same(const struct sameness *same, const char *folder)
{
    const struct check_report *report = &same->report;
    int differ = 0, first = 0;
    for (int i = report->items - 1; i >= 0; i--) {
        bool differs = !(report->error[i] >= 0 && report->error[i] <= 0);
        differ += differs;
        first = differs ? i : first;
    }
    bool root = group_rank(same->results->group) == 0;
    if (root && differ == 0) {
        printf("same bits as %s\n", tensor_file_path(same->file));
    } else if (root) {
        fflush(stdout);
        (void)FAIL(STATUS_MISMATCH,
                   "%s: other bits than in %s: %d of %d tensors, the first `%s`, off by %.2g",
                   folder, tensor_file_path(same->file), differ, report->items,
                   same->results->entries[first].name, report->error[first]);
    }
    return differ == 0 ? STATUS_OK : STATUS_MISMATCH;
}

status_t check_results_same(const struct check_results *results, const char *path,
                            const char *folder)
{
    struct tensor_file *file = NULL;
    struct sameness same = {.results = results};
    status_t status = tensor_file_open(path, &file);
    if (status == STATUS_OK && tensor_file_count(file) != results->count) {
        status = FAIL(STATUS_INVALID, "%s holds %d tensors where this case has %d", path,
                      tensor_file_count(file), results->count);
    }
    if (status == STATUS_OK) {
        same.file = file;
        status = check_report_create(results->count, &same.report);
    }
    if (status == STATUS_OK) {
        status = check_results_each(results, same_one, &same);
    }
    status = group_agree(results->group, status);
    if (status == STATUS_OK) {
        status = check_report_merge(&same.report, results->group);
    }
    if (status == STATUS_OK) {
        status = tell_same(&same, folder);
    }
    check_report_free(&same.report);
    tensor_file_close(file);
    return status;
}
