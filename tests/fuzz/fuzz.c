/* fuzz.c - files that people bring, as a fuzzer makes them: whatever is in one, it is read or refused.
 *
 * FUZZ names the reader: manifest, safetensors, index, config, idx, llmc, yaml, schedule. With libFuzzer (fuzz.sh) the
 * inputs are made up; without, main runs the files and folders that it is given, and the suite runs the corpus so.
 */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/config.h"
#include "base/hash.h"
#include "base/log.h"
#include "data/data.h"
#include "data/tokens.h"
#include "model/model.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/runtime.h"

static char folder[64];

static void put_file(const char *name, const uint8_t *data, size_t size)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0) {
        abort();
    }
}

static const char *path_of(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* Behind a head that says it is whole: what follows is read. */
static void fuzz_manifest(const uint8_t *data, size_t size)
{
    struct checkpoint *checkpoint;
    uint8_t *whole = malloc(40 + size);
    struct hash128 hash = hash_bytes128(data, size);
    uint64_t length = size;
    uint32_t words[2] = {CHECKPOINT_FORMAT, 1};
    memcpy(whole, "MUDDPIPE", 8);
    memcpy(whole + 8, words, 8);
    memcpy(whole + 16, &length, 8);
    memcpy(whole + 24, &hash, 16);
    memcpy(whole + 40, data, size);
    put_file("manifest", whole, 40 + size);
    free(whole);
    if (checkpoint_open(folder, &checkpoint) == STATUS_OK) {
        (void)!checkpoint_verify(checkpoint, 0, 1);
        checkpoint_close(checkpoint);
    }
}

static void read_tensors(const char *path)
{
    struct tensor_file *file;
    if (tensor_file_open(path, &file) != STATUS_OK) {
        return;
    }
    for (int i = 0; i < tensor_file_count(file); i++) {
        struct tensor tensor;
        tensor_file_at(file, i, &tensor);
        float *values = malloc((size_t)tensor.count * sizeof *values + 1);
        if (values != NULL) {
            (void)!tensor_to_float(&tensor, values);
        }
        free(values);
    }
    (void)tensor_file_fingerprint(file);
    tensor_file_close(file);
}

static void fuzz_safetensors(const uint8_t *data, size_t size)
{
    put_file("model.safetensors", data, size);
    read_tensors(path_of("model.safetensors"));
}

static void fuzz_index(const uint8_t *data, size_t size)
{
    put_file("model.safetensors.index.json", data, size);
    read_tensors(folder);
}

/* As plan would. */
static void fuzz_config(const uint8_t *data, size_t size)
{
    struct model_config config;
    struct model *model;
    put_file("config.json", data, size);
    if (model_config_load(path_of("config.json"), NULL, NULL, &config) == STATUS_OK &&
        config.n_layer < 40 && config.dim < 1 << 14 && config.block_size < 1 << 13 &&
        model_create(&config, &(struct model_use){.B = 1, .T = config.block_size}, &model) ==
            STATUS_OK) {
        model_destroy(model);
    }
}

static void read_tokens(const char *path)
{
    struct tokens *tokens;
    int32_t some[64];
    if (tokens_open(path, 50000, &tokens) != STATUS_OK) {
        return;
    }
    int64_t count = tokens_count(tokens);
    (void)!tokens_read(tokens, 0, count < 64 ? count : 64, some);
    tokens_close(tokens);
}

static void fuzz_idx(const uint8_t *data, size_t size)
{
    static const uint8_t tokens[512];
    put_file("pair.idx", data, size);
    put_file("pair.bin", tokens, sizeof tokens);
    read_tokens(path_of("pair.idx"));
}

static void fuzz_llmc(const uint8_t *data, size_t size)
{
    put_file("tokens.bin", data, size);
    read_tokens(path_of("tokens.bin"));
}

static void fuzz_yaml(const uint8_t *data, size_t size)
{
    struct run_config *config = calloc(1, sizeof *config);
    put_file("run.yaml", data, size);
    if (config_load(path_of("run.yaml"), 0, NULL, 0, config) == STATUS_OK) {
        config_free(config);
    }
    free(config);
}

/* Of a model of six layers. */
static void fuzz_schedule(const uint8_t *data, size_t size)
{
    static struct model *model;
    struct model_config config;
    struct plan *plan;
    if (model == NULL) {
        static const char text[] = "{\"n_layer\": 6, \"n_head\": 2, \"dim\": 32}";
        put_file("config.json", (const uint8_t *)text, sizeof text - 1);
        if (model_config_load(path_of("config.json"), NULL, NULL, &config) != STATUS_OK ||
            model_create(&config, &(struct model_use){.B = 1, .T = 16}, &model) != STATUS_OK) {
            abort();
        }
    }
    put_file("schedule.txt", data, size);
    struct plan_options options = {.ranks = 2,
                                   .microbatches = 4,
                                   .partition = "auto",
                                   .schedule = path_of("schedule.txt"),
                                   .prefetch = 1};
    if (plan_create(&model->graph, &options, &plan) == STATUS_OK) {
        plan_destroy(plan);
    }
}

static const struct target {
    const char *name;
    void (*run)(const uint8_t *data, size_t size);
} targets[] = {
    {"manifest", fuzz_manifest}, {"safetensors", fuzz_safetensors},
    {"index", fuzz_index},       {"config", fuzz_config},
    {"idx", fuzz_idx},           {"llmc", fuzz_llmc},
    {"yaml", fuzz_yaml},         {"schedule", fuzz_schedule},
};

static const struct target *target_of(const char *name)
{
    for (size_t i = 0; name != NULL && i < sizeof targets / sizeof targets[0]; i++) {
        if (strcmp(targets[i].name, name) == 0) {
            return &targets[i];
        }
    }
    fprintf(stderr, "fuzz: FUZZ names no reader: %s\n", name != NULL ? name : "(nothing)");
    exit(2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct target *target;
    static char said[1 << 16];
    if (target == NULL) {
        target = target_of(getenv("FUZZ"));
        snprintf(folder, sizeof folder, "/tmp/muddpipe-fuzz-%ld", (long)getpid());
        mkdir(folder, 0777);
        log_set_level(LOG_ERROR);
    }
    log_capture(said, sizeof said);
    target->run(data, size);
    log_capture(NULL, 0);
    return 0;
}

#ifndef FUZZ_LIBFUZZER
static int run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    static uint8_t data[1 << 20];
    if (file == NULL) {
        perror(path);
        return 1;
    }
    size_t size = fread(data, 1, sizeof data, file);
    fclose(file);
    return LLVMFuzzerTestOneInput(data, size);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* Every file of a folder. */
int main(int argc, char **argv)
{
    int failed = 0, files = 0;
    for (int i = 1; i < argc; i++) {
        struct dirent **entry;
        int count = scandir(argv[i], &entry, NULL, by_name);
        for (int e = 0; e < count; e++) {
            char path[PATH_MAX];
            snprintf(path, sizeof path, "%s/%s", argv[i], entry[e]->d_name);
            if (entry[e]->d_name[0] != '.') {
                failed |= run_file(path);
                files++;
            }
            free(entry[e]);
        }
        if (count >= 0) {
            free(entry);
        }
    }
    checkpoint_remove(folder);
    printf("%d files read or refused\n", files);
    return failed || files == 0;
}
#endif
