/* run_hash.c - what decides a run's numbers, as text and as a number. */
#include "runtime/run_hash.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "runtime/agree.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/trainer.h"

static const char *const part_names[RUN_PARTS] = {"config", "weights", "data", "device",
                                                  "algorithms"};

static uint64_t text_hash(const char *text)
{
    return hash_bytes(text, strlen(text), 0);
}

/* ---- device and algorithms ---- */

/* What a rank computes with. */
struct view {
    char device[256];
    uint64_t algorithms;
};

static void view_fill(const struct trainer *trainer, struct view *out)
{
    struct device_info info;
    memset(out, 0, sizeof *out);
    int length = snprintf(out->device, sizeof out->device, "muddpipe %s, %s", MUDDPIPE_VERSION,
                          trainer->place.kernels->name);
    if (trainer->place.device && length > 0 && (size_t)length < sizeof out->device) {
        device_info(trainer->place.device, &info);
        snprintf(out->device + length, sizeof out->device - (size_t)length,
                 ", CUDA %d.%d, %s of %d multiprocessors", info.runtime / 1000,
                 info.runtime % 1000 / 10, info.name, info.multiprocessors);
    }
    out->algorithms = algorithms_hash(trainer);
}

/* Like devices have like tables. */
static status_t view_check(const struct view *view, int rank)
{
    for (int r = 0; r < rank; r++) {
        if (strcmp(view[r].device, view[rank].device) == 0 &&
            view[r].algorithms != view[rank].algorithms) {
            return FAIL(STATUS_MISMATCH,
                        "the table of product algorithms is %016llx on rank %d and %016llx on rank "
                        "%d, but both compute on %s; give all ranks the same kernels.algorithms",
                        (unsigned long long)view[r].algorithms, r,
                        (unsigned long long)view[rank].algorithms, rank, view[rank].device);
        }
    }
    return STATUS_OK;
}

/* *out_alike: all ranks compute with the same. */
static void views_add(const struct view *view, int ranks, FILE *text, uint64_t *algorithms,
                      bool *out_alike)
{
    *out_alike = true;
    for (int r = 1; r < ranks; r++) {
        *out_alike &= strcmp(view[r].device, view[0].device) == 0;
    }
    *algorithms = view[0].algorithms;
    for (int r = 0; r < (*out_alike ? 1 : ranks); r++) {
        fprintf(text, *out_alike ? "device: %s\n" : "device: %s, rank %d\n", view[r].device, r);
        if (r > 0) {
            *algorithms = hash_bytes(&view[r].algorithms, sizeof view[r].algorithms, *algorithms);
        }
    }
}

static status_t views_gather(const struct setup *setup, FILE *text, uint64_t *algorithms,
                             bool *out_alike)
{
    struct group *group = setup->group;
    int ranks = group_size(group);
    struct view own, *view = calloc((size_t)ranks, sizeof *view);
    if (!view) {
        return FAIL(STATUS_NOMEM, "no memory for the devices of %d ranks", ranks);
    }
    view_fill(setup->trainer, &own);
    status_t status = group_allgather(group, &own, sizeof own, view);
    if (status == STATUS_OK) {
        status = group_agree(group, view_check(view, group_rank(group)));
    }
    if (status == STATUS_OK) {
        views_add(view, ranks, text, algorithms, out_alike);
    }
    free(view);
    return status;
}

/* ---- configuration, weights ---- */

static void options_add(const struct option *table, size_t count, const char *prefix,
                        const void *base, FILE *text)
{
    char value[CONFIG_STRING];
    for (size_t i = 0; i < count; i++) {
        if (!table[i].unhashed) {
            fprintf(text, "%s%s: %s\n", prefix, table[i].name,
                    option_print(&table[i], base, value, sizeof value));
        }
    }
}

/* Do the bits depend on which stages a rank has? */
static bool sums_per_rank(const struct plan *plan)
{
    bool several = false;
    for (int s = 0; s < plan->stages; s++) {
        for (int other = 0; other < s; other++) {
            several = several || plan->stage[s].sum_rank == plan->stage[other].sum_rank;
        }
    }
    return plan->sum_order == SUM_PER_RANK && several;
}

static void config_add(const struct setup *setup, bool cuts, FILE *text)
{
    struct run_config config = setup->job->config;
    config.data.seq_len = setup->T;
    config.parallel.microbatches = setup->microbatches;
    options_add(config_options, config_options_count, "", &config, text);
    options_add(model_options, model_options_count, "model.", &setup->model, text);
    const struct plan *plan = trainer_plan(setup->trainer);
    if (plan->replicas > 1) {
        fprintf(text, "replicas: %d, sums of gradients over %s\n", plan->replicas,
                trainer_carrier(setup->trainer));
    }
    if (config.parallel.tp > 1) {
        bool whole = config.parallel.tp_keys == TP_KEYS_REPLICATED;
        fprintf(text, "parts of a stage: %lld, sums over %s%s\n", (long long)config.parallel.tp,
                trainer_tp_carrier(setup->trainer), whole ? ", keys whole" : "");
    }
    if (cuts || (sums_per_rank(plan))) {
        fprintf(text, "units of the stages:");
        for (int s = 0; s < plan->stages; s++) {
            fprintf(text, " %d", plan->stage[s].units);
        }
        fprintf(text, "\n");
    }
    if (sums_per_rank(plan)) {
        fprintf(text, "ranks of the stages:");
        for (int s = 0; s < plan->stages; s++) {
            fprintf(text, " %d", plan->stage[s].sum_rank);
        }
        fprintf(text, "\n");
    }
}

static status_t weights_hash(const struct setup *setup, uint64_t *out)
{
    struct tensor_file *file;
    *out = 0;
    if (!setup->weights) {
        return STATUS_OK;
    }
    if (checkpoint_here(setup->weights)) {
        return checkpoint_fingerprint(setup->weights, out);
    }
    TRY(tensor_file_open(setup->weights, &file));
    *out = tensor_file_fingerprint(file);
    tensor_file_close(file);
    return STATUS_OK;
}

/* ---- all ---- */

static status_t parts_fill(const struct setup *setup, FILE *text, struct run_hash *out)
{
    struct group *group = setup->group;
    bool alike;
    TRY(views_gather(setup, text, &out->part[RUN_ALGORITHMS], &alike));
    fflush(text);
    size_t device = strlen(out->text);
    out->part[RUN_DEVICE] = text_hash(out->text);
    config_add(setup, !alike || setup->job->config.precision == PRECISION_BF16, text);
    TRY(group_agree(group, fflush(text) == 0 ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory")));
    out->part[RUN_CONFIG] = text_hash(out->text + device);
    TRY(agree_on_text(group, out->text, "has another model",
                      "`model` must name the same config.json on every host"));
    TRY(group_agree(group, weights_hash(setup, &out->part[RUN_WEIGHTS])));
    TRY(group_same(group, out->part[RUN_WEIGHTS], "the weights that `model` names"));
    out->part[RUN_DATA] = hash_bytes(setup->fingerprint, sizeof setup->fingerprint, 0);
    out->run = hash_bytes(out->part, sizeof out->part, 0);
    return group_same(group, out->run, "the run's hash");
}

status_t run_hash_create(const struct setup *setup, struct run_hash *out)
{
    size_t size;
    memset(out, 0, sizeof *out);
    FILE *text = open_memstream(&out->text, &size);
    status_t status =
        group_agree(setup->group, text ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for a text"));
    if (status == STATUS_OK) {
        status = parts_fill(setup, text, out);
    }
    if (text) {
        fclose(text);
    }
    if (status != STATUS_OK) {
        run_hash_free(out);
    }
    return status;
}

void run_hash_free(struct run_hash *hash)
{
    free(hash->text);
    memset(hash, 0, sizeof *hash);
}

/* ---- for people ---- */

static const char *part_print(uint64_t part, int digits, char buffer[17])
{
    snprintf(buffer, 17, "%016llx", (unsigned long long)part);
    buffer[digits] = '\0';
    return part ? buffer : "none";
}

const char *run_hash_print(const struct run_hash *hash, char *buffer, size_t size)
{
    char digits[17];
    int used = snprintf(buffer, size, "run %016llx", (unsigned long long)hash->run);
    for (int p = 0; p < RUN_PARTS && used >= 0 && (size_t)used < size; p++) {
        used += snprintf(buffer + used, size - (size_t)used, "%s %s %s", p ? "," : ":",
                         part_names[p], part_print(hash->part[p], 8, digits));
    }
    return buffer;
}

status_t run_hash_keep(const struct run_hash *hash, const char *folder)
{
    char path[PATH_MAX + 32], digits[17];
    snprintf(path, sizeof path, "%s/hash.txt", folder);
    FILE *file = fopen(path, "w");
    if (!file) {
        return FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    }
    fprintf(file, "run %016llx\n", (unsigned long long)hash->run);
    for (int p = 0; p < RUN_PARTS; p++) {
        fprintf(file, "%s %s\n", part_names[p], part_print(hash->part[p], 16, digits));
    }
    fprintf(file, "\n%s", hash->text);
    bool failed = ferror(file) != 0;
    return fclose(file) == 0 && !failed
               ? STATUS_OK
               : FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
}
