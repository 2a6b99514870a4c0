/* setup.c - everything a run needs, checked on every rank before anything starts. */
#include "runtime/setup.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A folder with weights: model.safetensors or its index. */
static bool holds_weights(const char *path)
{
    static const char *const name[] = {"model.safetensors", "model.safetensors.index.json"};
    char file[CONFIG_STRING + 64];
    for (size_t i = 0; i < sizeof name / sizeof name[0]; i++) {
        snprintf(file, sizeof file, "%s/%s", path, name[i]);
        if (access(file, F_OK) == 0) {
            return true;
        }
    }
    return false;
}

static status_t choose_shape(struct setup *setup)
{
    const struct run_config *config = &setup->job->config;
    setup->B = config->data.micro_batch;
    setup->T = config->data.seq_len > 0 ? config->data.seq_len : setup->model.block_size;
    setup->microbatches = config->parallel.microbatches > 0 ? (int)config->parallel.microbatches
                                                            : DEFAULT_MICROBATCHES;
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

static status_t open_tokens(struct setup *setup, const char *key, const char *path, bool wanted,
                            struct tokens **out)
{
    int64_t windows;
    if (path[0] == '\0') {
        return wanted ? FAIL(STATUS_INVALID,
                             "%s names no token file (`muddpipe data encode` makes "
                             "one from text)",
                             key)
                      : STATUS_OK;
    }
    TRY(tokens_open(path, setup->model.vocab_size, out));
    return tokens_windows(*out, setup->T, &windows);
}

static status_t setup_local(struct setup *setup, bool training)
{
    const struct run_config *config = &setup->job->config;
    TRY(model_config_load(config->model, &config->model_keys, &config->dense_keys, &setup->model));
    setup->weights = holds_weights(config->model) ? config->model : NULL;
    if (!training && !setup->weights) {
        return FAIL(STATUS_INVALID,
                    "nothing to evaluate: `model` is `%s`, which is no folder with a "
                    "model.safetensors (for example model=runs/NAME/model)",
                    config->model);
    }
    TRY(choose_shape(setup));
    if (training) {
        TRY(open_tokens(setup, "data.train", config->data.train, true, &setup->train));
    }
    TRY(open_tokens(setup, "data.valid", config->data.valid, !training, &setup->valid));
    size_t count = (size_t)(setup->microbatches * setup->B * setup->T);
    setup->inputs = calloc(count, sizeof *setup->inputs);
    setup->targets = calloc(count, sizeof *setup->targets);
    return setup->inputs && setup->targets
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
        struct trainer_options options = {.config = &job->config,
                                          .model = &out->model,
                                          .group = group,
                                          .B = out->B,
                                          .T = out->T,
                                          .microbatches = out->microbatches,
                                          .training = training,
                                          .weights = out->weights};
        status = trainer_create(&options, &out->trainer);
    }
    if (status != STATUS_OK) {
        setup_destroy(out);
    }
    return status;
}

void setup_destroy(struct setup *setup)
{
    trainer_destroy(setup->trainer);
    tokens_close(setup->train);
    tokens_close(setup->valid);
    free(setup->inputs);
    free(setup->targets);
    memset(setup, 0, sizeof *setup);
}

/* One window into row `row` of the batch. */
static status_t read_row(struct setup *setup, const struct tokens *tokens, int64_t start,
                         int64_t row)
{
    int64_t T = setup->T;
    int32_t *inputs = setup->inputs + row * T, *targets = setup->targets + row * T;
    TRY(tokens_read(tokens, start, T, inputs));
    return tokens_read(tokens, start + 1, T, targets);
}

status_t setup_batch(struct setup *setup, int64_t first, int64_t rows)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t start =
            tokens_window(setup->train, setup->T, (uint64_t)setup->job->config.seed, first + row);
        TRY(read_row(setup, setup->train, start, row));
    }
    return STATUS_OK;
}

/* Rows beyond `windows` repeat the last window and count nothing. */
static status_t fill_heldout(struct setup *setup, int64_t first, int64_t windows)
{
    int64_t rows = setup->microbatches * setup->B;
    for (int64_t row = 0; row < rows; row++) {
        int64_t window = first + row < windows ? first + row : windows - 1;
        TRY(read_row(setup, setup->valid, window * setup->T, row));
        if (first + row >= windows) {
            for (int64_t t = 0; t < setup->T; t++) {
                setup->targets[row * setup->T + t] = -1;
            }
        }
    }
    return STATUS_OK;
}

status_t setup_heldout(struct setup *setup, double *out_loss, int64_t *out_tokens)
{
    int64_t windows, limit = setup->job->config.data.valid_microbatches * setup->B;
    TRY(tokens_windows(setup->valid, setup->T, &windows));
    if (limit > 0 && limit < windows) {
        windows = limit;
    }
    double total = 0;
    struct batch batch = {.inputs = setup->inputs, .targets = setup->targets};
    for (int64_t first = 0; first < windows; first += setup->microbatches * setup->B) {
        double loss;
        TRY(group_agree(setup->group, fill_heldout(setup, first, windows)));
        TRY(trainer_evaluate(setup->trainer, &batch, &loss));
        total += loss;
    }
    *out_tokens = windows * setup->T;
    *out_loss = total / (double)*out_tokens;
    return STATUS_OK;
}

const char *setup_bits_name(const struct setup *setup)
{
    return setup->model.vocab_size <= 256 ? "bits per byte" : "bits per token";
}
