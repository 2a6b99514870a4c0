/* resume.c - from a checkpoint to a run that goes on. */
#include "runtime/resume.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "runtime/save_internal.h"

bool resume_wanted(const struct run_config *config)
{
    return strcmp(config->checkpoint.resume, "none") != 0;
}

bool resume_auto(const struct run_config *config)
{
    return strcmp(config->checkpoint.resume, "auto") == 0;
}

/* ---- which one ---- */

/* Steps of the checkpoints to try, newest first, and the run's folder; one that is named itself has *out_count
 * -1. Rank 0. */
static status_t candidates(const struct run_config *config, const char *run, char *out_run,
                           int64_t **out, int *out_count)
{
    const char *named = resume_auto(config) ? run : config->checkpoint.resume;
    int length = snprintf(out_run, PATH_MAX, "%s", named);
    *out = NULL;
    *out_count = -1;
    if (length < 0 || length >= PATH_MAX) {
        return FAIL(STATUS_INVALID, "checkpoint.resume: the path is too long: %.200s", named);
    }
    if (!resume_auto(config) && checkpoint_here(named)) {
        return STATUS_OK;
    }
    if (!resume_auto(config) && access(named, F_OK) != 0) {
        return FAIL(STATUS_INVALID, "checkpoint.resume: there is no folder %s", named);
    }
    TRY(checkpoint_list(named, out, out_count));
    char model[CONFIG_STRING + 32];
    snprintf(model, sizeof model, "%s/model/config.json", named);
    if (*out_count == 0 && resume_auto(config) && access(model, F_OK) == 0) {
        return FAIL(STATUS_INVALID,
                    "checkpoint.resume: %s has a run that ended without checkpoints, and would be "
                    "written over: "
                    "name another folder with logging.run=",
                    named);
    }
    if (*out_count == 0 && !resume_auto(config)) {
        return FAIL(STATUS_INVALID,
                    "checkpoint.resume: %s is no checkpoint (it has no " CHECKPOINT_MANIFEST
                    ") and no run with checkpoints (" CHECKPOINT_FOLDER "/step-N)",
                    named);
    }
    return STATUS_OK;
}

/* Opens it on every rank, and reads all of it from the disk, a share on each. Collective. */
static status_t try_folder(struct group *group, const char *folder, struct checkpoint **out)
{
    struct checkpoint *checkpoint = NULL;
    status_t status = group_agree(group, checkpoint_open(folder, &checkpoint));
    if (status == STATUS_OK) {
        status =
            group_agree(group, checkpoint_verify(checkpoint, group_rank(group), group_size(group)));
    }
    if (status != STATUS_OK) {
        checkpoint_close(checkpoint);
        return status;
    }
    *out = checkpoint;
    return STATUS_OK;
}

static status_t try_step(struct setup *setup, const char *run, int64_t step, struct resume *out)
{
    TRY(checkpoint_path(run, step, false, out->folder));
    return try_folder(setup->group, out->folder, &out->checkpoint);
}

/* Newest first; what is broken is passed over, what is lost of the job (a peer) is not. */
static status_t try_all(struct setup *setup, const char *run, const int64_t *steps, int count,
                        struct resume *out)
{
    bool root = group_rank(setup->group) == 0;
    for (int i = 0; i < count; i++) {
        status_t status = try_step(setup, run, steps[i], out);
        if (status == STATUS_OK || status == STATUS_TIMEOUT || status == STATUS_INTERNAL) {
            return status;
        }
        TRY(group_check(setup->group));
        if (root) {
            log_warn("%s is not whole and is passed over%s", out->folder,
                     i + 1 < count ? ": the one before it is tried" : "");
        }
    }
    return root ? FAIL(STATUS_INVALID,
                       "none of the %d checkpoints of %s is whole: nothing is begun, so that "
                       "nothing is "
                       "lost (remove " CHECKPOINT_FOLDER "/ there to begin anew)",
                       count, run)
                : STATUS_INVALID;
}

static status_t share_candidates(struct setup *setup, const char *run, char *out_run, int64_t **out,
                                 int *out_count)
{
    struct group *group = setup->group;
    status_t status = STATUS_OK;
    if (group_rank(group) == 0) {
        status = candidates(&setup->job->config, run, out_run, out, out_count);
    }
    TRY(group_agree(group, status));
    TRY(group_broadcast(group, out_run, PATH_MAX, 0));
    TRY(group_broadcast(group, out_count, sizeof *out_count, 0));
    size_t count = *out_count > 0 ? (size_t)*out_count : 0;
    if (group_rank(group) != 0) {
        *out = malloc((count + 1) * sizeof **out);
        status = *out ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for %zu steps", count);
    }
    TRY(group_agree(group, status));
    return count > 0 ? group_broadcast(group, *out, count * sizeof **out, 0) : STATUS_OK;
}

/* ---- may this run go on there? ---- */

/* Keys of which another value makes another run of the same checkpoint, and those that may not differ. */
static const char *const fixed_keys[] = {"seed", "data.seq_len", "data.order", "data.eod"};

static bool is_fixed(const char *key)
{
    for (size_t i = 0; i < sizeof fixed_keys / sizeof fixed_keys[0]; i++) {
        if (strcmp(key, fixed_keys[i]) == 0) {
            return true;
        }
    }
    return false;
}

static status_t compare_option(const struct option *option, const struct resume *resume,
                               const struct run_config *before, const struct run_config *now)
{
    char was[CONFIG_STRING], is[CONFIG_STRING];
    option_print(option, before, was, sizeof was);
    option_print(option, now, is, sizeof is);
    if (option->unhashed || strcmp(was, is) == 0 || strcmp(option->name, "data.start") == 0) {
        return STATUS_OK;
    }
    if (is_fixed(option->name)) {
        return FAIL(
            STATUS_INVALID,
            "%s is %s, and %s was written with %s: the run would not go on with the data that "
            "follow (set %s=%s, or begin a run of its own with model=%s)",
            option->name, is, resume->folder, was, option->name, was, resume->folder);
    }
    log_info("from step %lld on %s is %s, it was %s", (long long)(resume->step + 1), option->name,
             is, was);
    return STATUS_OK;
}

/* What 0 stands for. */
static void resolve(const struct setup *setup, struct run_config *config)
{
    config->data.seq_len =
        config->data.seq_len > 0 ? config->data.seq_len : setup->model.block_size;
    config->parallel.microbatches =
        config->parallel.microbatches > 0 ? config->parallel.microbatches : DEFAULT_MICROBATCHES;
}

/* Rank 0. */
static status_t compare_options(const struct setup *setup, const struct resume *resume,
                                struct run_config *before)
{
    struct run_config *now = malloc(sizeof *now);
    status_t status = now ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for a configuration");
    if (now) {
        *now = setup->job->config;
        resolve(setup, now);
        resolve(setup, before);
    }
    for (size_t i = 0; i < config_options_count && status == STATUS_OK; i++) {
        status = compare_option(&config_options[i], resume, before, now);
    }
    free(now);
    return status;
}

static status_t compare_model(const struct setup *setup, const struct resume *resume)
{
    const struct model *model = trainer_model(setup->trainer);
    const struct checkpoint_info *info = checkpoint_info(resume->checkpoint);
    struct model_config before;
    TRY(model_config_load(resume->folder, NULL, NULL, &before));
    for (size_t i = 0; i < model_options_count; i++) {
        char was[CONFIG_STRING], is[CONFIG_STRING];
        option_print(&model_options[i], &before, was, sizeof was);
        option_print(&model_options[i], &setup->model, is, sizeof is);
        if (strcmp(was, is) != 0) {
            return FAIL(STATUS_INVALID,
                        "model.%s is %s, and %s has a model with %s: a run goes on with its model",
                        model_options[i].name, is, resume->folder, was);
        }
    }
    if (info->tensors != model->params) {
        return FAIL(STATUS_INVALID, "%s has %d tensors, the model %d", resume->folder,
                    info->tensors, model->params);
    }
    return STATUS_OK;
}

static status_t compare(struct setup *setup, const struct resume *resume)
{
    char path[PATH_MAX + 64];
    const struct checkpoint_info *info = checkpoint_info(resume->checkpoint);
    struct run_config *before = calloc(1, sizeof *before);
    snprintf(path, sizeof path, "%s/config.yaml", resume->folder);
    if (!before) {
        return FAIL(STATUS_NOMEM, "no memory for the configuration of %s", path);
    }
    status_t status = config_load(path, 0, NULL, 0, before);
    if (status == STATUS_OK) {
        status = compare_options(setup, resume, before);
        config_free(before);
    }
    free(before);
    TRY(status);
    if (info->train_data != setup->fingerprint[0]) {
        log_info("from step %lld on the training data are other files than those that %s was "
                 "written with",
                 (long long)(resume->step + 1), resume->folder);
    }
    return STATUS_OK;
}

status_t resume_find(struct setup *setup, const char *run, struct resume *out)
{
    const struct run_config *config = &setup->job->config;
    struct resume found = {.step = 0, .sequences = config->data.start};
    char folder[PATH_MAX] = "";
    int64_t *steps = NULL;
    int count = 0;
    *out = found;
    if (!resume_wanted(config)) {
        return STATUS_OK;
    }
    status_t status = share_candidates(setup, run, folder, &steps, &count);
    if (status == STATUS_OK && count > 0) {
        status = try_all(setup, folder, steps, count, &found);
    } else if (status == STATUS_OK && count < 0) {
        strcpy(found.folder, folder);
        status = try_folder(setup->group, folder, &found.checkpoint);
    }
    free(steps);
    TRY(status);
    if (found.checkpoint) {
        found.step = checkpoint_info(found.checkpoint)->step;
        found.sequences = checkpoint_info(found.checkpoint)->sequences;
        status = compare_model(setup, &found);
        if (status == STATUS_OK && group_rank(setup->group) == 0) {
            status = compare(setup, &found);
        }
        status = group_agree(setup->group, status);
        if (status != STATUS_OK) {
            checkpoint_close(found.checkpoint);
            return status;
        }
    }
    *out = found;
    return STATUS_OK;
}

/* ---- its values ---- */

static status_t load_param(const struct model *model, struct part *part,
                           const struct checkpoint *checkpoint, int param, int kind_count)
{
    const struct param *of = &model->param[param];
    int tensor = checkpoint_find(checkpoint, of->name);
    const struct checkpoint_tensor *from =
        tensor >= 0 ? &checkpoint_info(checkpoint)->tensor[tensor] : NULL;
    if (!from || from->dims != of->dims ||
        memcmp(from->shape, of->shape, (size_t)of->dims * sizeof *of->shape) != 0) {
        return FAIL(STATUS_INVALID, "the checkpoint has no tensor %s of the model's shape",
                    of->name);
    }
    float *values = malloc((size_t)of->count * sizeof *values);
    status_t status =
        values ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for the values of %s", of->name);
    for (int k = 0; k < kind_count && status == STATUS_OK; k++) {
        status = checkpoint_read(checkpoint, tensor, k, values);
        if (status == STATUS_OK) {
            status = part_write(part, saver_kinds[k], param, values);
        }
    }
    free(values);
    return status;
}

static status_t load_part(const struct model *model, struct part *part,
                          const struct checkpoint *checkpoint, int kind_count)
{
    for (int p = 0; p < model->params; p++) {
        TRY(part_owns(part, p) ? load_param(model, part, checkpoint, p, kind_count) : STATUS_OK);
    }
    return STATUS_OK;
}

status_t resume_load(struct setup *setup, const struct resume *resume)
{
    struct trainer *trainer = setup->trainer;
    if (!resume->checkpoint) {
        return STATUS_OK;
    }
    TRY(group_agree(setup->group, load_part(trainer_model(trainer), trainer_part(trainer),
                                            resume->checkpoint, CHECKPOINT_KINDS)));
    trainer_resume(trainer, resume->step);
    return STATUS_OK;
}

void resume_close(struct resume *resume)
{
    checkpoint_close(resume->checkpoint);
    resume->checkpoint = NULL;
}

status_t resume_weights(const struct model *model, struct part *part, const char *folder)
{
    struct checkpoint *checkpoint;
    TRY(checkpoint_open(folder, &checkpoint));
    status_t status = load_part(model, part, checkpoint, 1);
    checkpoint_close(checkpoint);
    return status;
}
