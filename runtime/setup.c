/* setup.c - everything a run needs, checked on every rank before anything starts. */
#include "runtime/resume.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/checkpoint/checkpoint.h"

/* A folder with weights: model.safetensors or its index, or a checkpoint. */
static bool holds_weights(const char *path)
{
    static const char *const name[] = {"model.safetensors", "model.safetensors.index.json",
                                       CHECKPOINT_MANIFEST};
    char file[CONFIG_STRING + 64];
    for (size_t i = 0; i < sizeof name / sizeof name[0]; i++) {
        snprintf(file, sizeof file, "%s/%s", path, name[i]);
        if (access(file, F_OK) == 0) {
            return true;
        }
    }
    return false;
}

/* A file of weights under a name that is not looked for; false if there is none. */
static bool find_stray(const char *path, char *out, size_t size)
{
    static const char *const ending[] = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"};
    DIR *folder = opendir(path);
    bool found = false;
    for (const struct dirent *entry; folder && !found && (entry = readdir(folder)) != NULL;) {
        const char *dot = strrchr(entry->d_name, '.');
        for (size_t i = 0; dot && i < sizeof ending / sizeof ending[0]; i++) {
            found = found || strcmp(dot, ending[i]) == 0;
        }
        if (found) {
            snprintf(out, size, "%s", entry->d_name);
        }
    }
    if (folder) {
        closedir(folder);
    }
    return found;
}

/* A folder whose weights would not be read must not look like one without. */
static status_t check_weights(const struct setup *setup, const char *path)
{
    char stray[256];
    if (setup->weights || !find_stray(path, stray, sizeof stray)) {
        return STATUS_OK;
    }
    return FAIL(
        STATUS_INVALID,
        "model %s: it has %s, but weights are read from model.safetensors, or from shards that "
        "model.safetensors.index.json names: rename or convert it, or name the config.json alone "
        "to "
        "begin with new weights (model=%s/config.json)",
        path, stray, path);
}

static status_t choose_shape(struct setup *setup)
{
    const struct run_config *config = &setup->job->config;
    setup->B = config->data.micro_batch;
    setup->T = config->data.seq_len > 0 ? config->data.seq_len : setup->model.block_size;
    setup->microbatches = config->parallel.microbatches > 0 ? (int)config->parallel.microbatches
                                                            : DEFAULT_MICROBATCHES;
    setup->replicas = (int)config->parallel.dp;
    if (setup->T > setup->model.block_size) {
        return FAIL(
            STATUS_INVALID,
            "data.seq_len is %lld, the model's block_size %lld: a sequence may not be longer "
            "(data.seq_len=%lld, or a larger model.block_size)",
            (long long)setup->T, (long long)setup->model.block_size,
            (long long)setup->model.block_size);
    }
    return STATUS_OK;
}

static status_t check_training(const struct setup *setup)
{
    const struct run_config *config = &setup->job->config;
    int64_t first = config->optimizer.ramp_from;
    if (config->logging.sample_tokens > 0 && setup->model.vocab_size < 256) {
        return FAIL(STATUS_UNSUPPORTED,
                    "samples are bytes: the vocabulary of %lld is too small "
                    "(logging.sample_tokens=0 leaves them out)",
                    (long long)setup->model.vocab_size);
    }
    if (config->optimizer.schedule == LR_WSD &&
        config->optimizer.warmup + config->optimizer.decay > 1 + 1e-9) {
        return FAIL(STATUS_INVALID,
                    "optimizer.warmup %g and optimizer.decay %g are more than all steps, which wsd "
                    "divides into warm-up, stable part and decay; take a decay of %g at most",
                    config->optimizer.warmup, config->optimizer.decay,
                    1 - config->optimizer.warmup);
    }
    if (config->profile.steps > 0 && config->profile.first_step > config->optimizer.steps) {
        return FAIL(STATUS_INVALID,
                    "profile.first_step is %lld, but the run has %lld steps (optimizer.steps)",
                    (long long)config->profile.first_step, (long long)config->optimizer.steps);
    }
    if (first > setup->microbatches) {
        return FAIL(STATUS_INVALID,
                    "optimizer.ramp_from is %lld, but a full step has %d microbatches "
                    "(parallel.microbatches): steps grow from the one to the other",
                    (long long)first, setup->microbatches);
    }
    return STATUS_OK;
}

static status_t open_data(struct setup *setup, const char *key, const char *list, bool wanted,
                          struct dataset **out)
{
    const struct run_config *config = &setup->job->config;
    struct dataset_options options = {.key = key,
                                      .vocab = setup->model.vocab_size,
                                      .T = setup->T,
                                      .eod = config->data.eod,
                                      .documents = config->data.order == ORDER_DOCUMENTS &&
                                                   out == &setup->train,
                                      .starts = config->data.mask_documents,
                                      .seed = (uint64_t)config->seed};
    if (list[0] == '\0') {
        return wanted ? FAIL(STATUS_INVALID,
                             "%s names no token file (`muddpipe data encode` makes "
                             "one from text)",
                             key)
                      : STATUS_OK;
    }
    return dataset_open(list, &options, out);
}

static status_t check_data(const struct setup *setup)
{
    const struct run_config *config = &setup->job->config;
    if (config->data.eod >= setup->model.vocab_size) {
        return FAIL(STATUS_INVALID, "data.eod is %lld, which is not below the vocabulary's %lld",
                    (long long)config->data.eod, (long long)setup->model.vocab_size);
    }
    if (config->data.valid_every > 0 && config->data.valid[0] == '\0') {
        return FAIL(STATUS_INVALID,
                    "data.valid_every is %lld, but data.valid names no token file to evaluate",
                    (long long)config->data.valid_every);
    }
    return STATUS_OK;
}

/* Ranks of several hosts may see other files under the same names. Collective. */
static status_t compare_data(struct setup *setup)
{
    uint64_t *own = setup->fingerprint, root[2];
    own[0] = setup->train ? dataset_fingerprint(setup->train) : 0;
    own[1] = setup->valid ? dataset_fingerprint(setup->valid) : 0;
    memcpy(root, own, sizeof root);
    TRY(group_broadcast(setup->group, root, sizeof root, 0));
    const char *key = own[0] != root[0] ? "data.train" : "data.valid";
    return group_agree(setup->group,
                       memcmp(own, root, sizeof root) == 0
                           ? STATUS_OK
                           : FAIL(STATUS_INVALID,
                                  "%s: the token files that this rank sees differ from those of "
                                  "rank 0; copy the same files to every host",
                                  key));
}

static status_t setup_local(struct setup *setup, bool training)
{
    const struct run_config *config = &setup->job->config;
    TRY(model_config_load(config->model, &config->model_keys, &config->dense_keys, &setup->model));
    setup->weights = holds_weights(config->model) ? config->model : NULL;
    TRY(check_weights(setup, config->model));
    if (!training && !setup->weights) {
        return FAIL(STATUS_INVALID,
                    "nothing to evaluate: `model` is `%s`, which is no folder with a "
                    "model.safetensors and no checkpoint (for example model=runs/NAME/model)",
                    config->model);
    }
    TRY(choose_shape(setup));
    TRY(training ? check_training(setup) : STATUS_OK);
    TRY(check_data(setup));
    if (training) {
        TRY(open_data(setup, "data.train", config->data.train, true, &setup->train));
    }
    TRY(open_data(setup, "data.valid", config->data.valid, !training, &setup->valid));
    size_t count = (size_t)(setup->microbatches * setup->B * setup->T);
    setup->inputs = calloc(count, sizeof *setup->inputs);
    setup->targets = calloc(count, sizeof *setup->targets);
    setup->first = config->data.mask_documents ? calloc(count, sizeof *setup->first) : NULL;
    return setup->inputs && setup->targets && (setup->first || !config->data.mask_documents)
               ? STATUS_OK
               : FAIL(STATUS_NOMEM, "no memory for a batch of %zu tokens", count);
}

status_t setup_create(struct job *job, struct group *group, bool training, struct setup *out)
{
    memset(out, 0, sizeof *out);
    out->job = job;
    out->group = group;
    status_t status = group_agree(group, setup_local(out, training));
    if (status == STATUS_OK) {
        status = compare_data(out);
    }
    if (status == STATUS_OK) {
        const struct run_config *config = &job->config;
        struct trainer_options options = {.config = config,
                                          .model = &out->model,
                                          .group = group,
                                          .B = out->B,
                                          .T = out->T,
                                          .microbatches = out->microbatches,
                                          .training = training,
                                          .evaluates = training && out->valid,
                                          .samples = training && config->logging.sample_tokens > 0,
                                          .weights = out->weights,
                                          .weights_later = training && resume_wanted(config)};
        status = trainer_create(&options, &out->trainer);
    }
    if (status != STATUS_OK) {
        setup_destroy(out);
        return status;
    }
    struct group *replicas = trainer_replicas(out->trainer);
    out->replica = replicas ? group_rank(replicas) : 0;
    return STATUS_OK;
}

void setup_destroy(struct setup *setup)
{
    trainer_destroy(setup->trainer);
    dataset_close(setup->train);
    dataset_close(setup->valid);
    free(setup->inputs);
    free(setup->targets);
    free(setup->first);
    memset(setup, 0, sizeof *setup);
}

static int32_t *first_of(const struct setup *setup, int64_t row)
{
    return setup->first ? setup->first + row * setup->T : NULL;
}

status_t setup_batch(struct setup *setup, int64_t position, int64_t rows)
{
    position += setup->replica * rows;
    for (int64_t row = 0; row < rows; row++) {
        TRY(dataset_sequence(setup->train, position + row, setup->inputs + row * setup->T,
                             setup->targets + row * setup->T, first_of(setup, row)));
    }
    return STATUS_OK;
}

/* Sequences that all replicas evaluate at once. */
static int64_t heldout_rows(const struct setup *setup)
{
    return setup->replicas * setup->microbatches * setup->B;
}

/* This replica's rows of those from `first` on. Rows beyond `windows` repeat the last window and count nothing. */
static status_t fill_heldout(struct setup *setup, int64_t first, int64_t windows)
{
    int64_t rows = setup->microbatches * setup->B;
    first += setup->replica * rows;
    for (int64_t row = 0; row < rows; row++) {
        int64_t window = first + row < windows ? first + row : windows - 1;
        TRY(dataset_window(setup->valid, window, setup->inputs + row * setup->T,
                           setup->targets + row * setup->T, first_of(setup, row)));
        if (first + row >= windows) {
            for (int64_t t = 0; t < setup->T; t++) {
                setup->targets[row * setup->T + t] = -1;
            }
        }
    }
    return STATUS_OK;
}

/* The loss is known to all ranks; rank 0 says what is wrong with it. */
static status_t check_heldout(const struct setup *setup, int64_t first, int64_t windows,
                              double loss)
{
    int64_t end = first + heldout_rows(setup);
    if (isfinite(loss)) {
        return STATUS_OK;
    }
    return group_rank(setup->group) != 0
               ? STATUS_NUMERIC
               : FAIL(STATUS_NUMERIC,
                      "the loss of the held-out sequences %lld to %lld is %s: the weights, or what "
                      "they make of "
                      "these tokens, are not finite",
                      (long long)first, (long long)(end < windows ? end : windows) - 1,
                      isnan(loss) ? "nan" : "infinite");
}

status_t setup_heldout(struct setup *setup, double *out_loss, int64_t *out_tokens, bool *out_whole)
{
    int64_t windows = dataset_windows(setup->valid);
    int64_t limit = setup->job->config.data.valid_microbatches * setup->B;
    if (limit > 0 && limit < windows) {
        windows = limit;
    }
    double total = 0;
    struct batch batch = {
        .inputs = setup->inputs, .targets = setup->targets, .first = setup->first};
    for (int64_t first = 0; first < windows; first += heldout_rows(setup)) {
        double loss;
        bool stop;
        TRY(job_stop_agreed(setup->group, &stop));
        if (stop) {
            *out_tokens = first * setup->T;
            *out_whole = false;
            return STATUS_OK;
        }
        TRY(group_agree(setup->group, fill_heldout(setup, first, windows)));
        TRY(trainer_evaluate(setup->trainer, &batch, &loss));
        TRY(check_heldout(setup, first, windows, loss));
        total += loss;
    }
    *out_tokens = windows * setup->T;
    *out_loss = total / (double)*out_tokens;
    *out_whole = true;
    return STATUS_OK;
}

const char *setup_bits_name(const struct setup *setup)
{
    return setup->model.vocab_size <= 256 ? "bits per byte" : "bits per token";
}
