/* config.c - the table of config.json's keys; from file and arguments to a checked model. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/config_file.h"

#define LIMIT 9.223372036854775807e18
#define ROW(key, kind, text, low, high, words, meaning)                                            \
    {.name = #key,                                                                                 \
     .type = kind,                                                                                 \
     .offset = offsetof(struct model_config, key),                                                 \
     .default_value = text,                                                                        \
     .min = low,                                                                                   \
     .max = high,                                                                                  \
     .choices = words,                                                                             \
     .help = meaning},
#define FLAG(key, text, meaning) ROW(key, OPTION_BOOL, text, 0, 0, NULL, meaning)
#define TEXT(key, text, meaning) ROW(key, OPTION_STRING, text, 0, 0, NULL, meaning)
#define INT(key, text, low, high, meaning) ROW(key, OPTION_INT, text, low, high, NULL, meaning)
#define REAL(key, text, low, high, meaning) ROW(key, OPTION_REAL, text, low, high, NULL, meaning)
#define CHOICE(key, text, words, meaning) ROW(key, OPTION_CHOICE, text, 0, 0, words, meaning)

const struct option model_options[] = {
#include "model/config.def"
};
const size_t model_options_count = sizeof model_options / sizeof model_options[0];

static const char dense_prefix[] = "dense_pattern.";

size_t config_dense_options(struct option out[DENSE_KEYS_MAX])
{
    size_t count = 0, length = strlen(dense_prefix);

    for (size_t i = 0; i < model_options_count; i++) {
        if (strncmp(model_options[i].name, dense_prefix, length) == 0) {
            CHECK(count < DENSE_KEYS_MAX, "more keys below dense_pattern than foreseen");
            out[count] = model_options[i];
            out[count++].name += length;
        }
    }
    return count;
}

/* ---- load ---- */

static status_t entries_apply(const struct config_entries *entries, const struct option *table,
                              size_t count, const char *prefix, struct model_config *config)
{
    for (size_t i = 0; entries != NULL && i < entries->count; i++) {
        const struct config_entry *entry = &entries->entry[i];
        if (strcmp(entry->value, "null") != 0) {
            TRY(option_set(table, count, config, prefix, entry->key, entry->value, &entry->where));
        }
    }
    return STATUS_OK;
}

/* What belongs to MUDD's aggregates is then off unless somebody sets it. */
void config_connector_defaults(const char *dense_type, struct model_config *config)
{
    if (strcmp(dense_type, "depth_attention") == 0 || strcmp(dense_type, "hyper") == 0) {
        config->dynamic_dense = config->sepln = false;
        config->expand_last = config->round64 = false;
        config->ffn_scale_with_layer = false;
    }
}

/* The value that the last entry of this name gives; NULL if none does. */
static const char *entries_find(const struct config_entries *entries, const char *key)
{
    const char *value = NULL;
    for (size_t i = 0; entries != NULL && i < entries->count; i++) {
        const struct config_entry *entry = &entries->entry[i];
        if (strcmp(entry->key, key) == 0 && strcmp(entry->value, "null") != 0) {
            value = entry->value;
        }
    }
    return value;
}

static void config_derive(struct model_config *config)
{
    if (config->n_local_heads == 0) {
        config->n_local_heads = config->n_head;
    }
    if (config->head_dim == 0 && config->n_head > 0) {
        config->head_dim = config->dim / config->n_head;
    }
    if (config->intermediate_size == 0) {
        config->intermediate_size = (8 * config->dim / 3 + 255) / 256 * 256;
    }
}

/* A run's folder in place of the model in it: *out_inner gets the model's path, without a slash twice. */
static bool holds_model(const char *path, char *out_inner, size_t size)
{
    char file[CONFIG_STRING + 32];
    size_t length = strlen(path);

    while (length > 1 && path[length - 1] == '/') {
        length--;
    }
    snprintf(out_inner, size, "%.*s/model", (int)length, path);
    snprintf(file, sizeof file, "%s/config.json", out_inner);
    return access(file, F_OK) == 0;
}

static status_t config_read(const char *path, const char *dense_type, struct model_config *config,
                            struct foreign_keys *foreign, char *file, size_t size)
{
    struct stat info;

    if (stat(path, &info) != 0) {
        return FAIL(STATUS_IO, "model %s: %s", path, strerror(errno));
    }
    char inner[CONFIG_STRING + 8];
    const char *tail = S_ISDIR(info.st_mode) ? "/config.json" : "";
    int length = snprintf(file, size, "%s%s", path, tail);
    if (length < 0 || (size_t)length >= size) {
        return FAIL(STATUS_INVALID, "model: a path of %zu bytes is too long", strlen(path));
    }
    if (tail[0] != '\0' && access(file, F_OK) != 0 && holds_model(path, inner, sizeof inner)) {
        return FAIL(STATUS_INVALID,
                    "model %s: a folder without a config.json, but %s has one: name that folder",
                    path, inner);
    }
    return config_file_read(file, dense_type, config, foreign);
}

/* "FILE: " or "FILE and the command line: ": where the keys of a model come from. */
static void source_print(const char *file, const struct config_entries *const entries[2],
                         char *buffer, size_t size)
{
    bool arguments = false;

    for (int e = 0; e < 2; e++) {
        for (size_t i = 0; entries[e] != NULL && i < entries[e]->count; i++) {
            const char *from = entries[e]->entry[i].where.file;
            arguments |= from[0] == '\0';
            file = file[0] == '\0' ? from : file;
        }
    }
    buffer[0] = '\0';
    if (file[0] != '\0') {
        snprintf(buffer, size, "%s%s: ", file, arguments ? " and the command line" : "");
    }
}

static status_t load_all(const char *path, const struct config_entries *model_keys,
                         const struct config_entries *dense_keys, struct foreign_keys *foreign,
                         struct model_config *out)
{
    struct model_config config;
    struct option dense[DENSE_KEYS_MAX];
    const struct config_entries *const entries[2] = {model_keys, dense_keys};
    size_t dense_count = config_dense_options(dense);
    char file[CONFIG_STRING] = "", source[CONFIG_STRING + 32];

    memset(&config, 0, sizeof config);
    option_defaults(model_options, model_options_count, &config);
    const char *dense_type = entries_find(model_keys, "dense_type");
    if (dense_type) {
        config_connector_defaults(dense_type, &config);
    }
    if (path[0] != '\0') {
        TRY(config_read(path, dense_type, &config, foreign, file, sizeof file));
    }
    TRY(entries_apply(model_keys, model_options, model_options_count, "model.", &config));
    TRY(entries_apply(dense_keys, dense, dense_count, "dense.", &config));
    config_derive(&config);
    source_print(file, entries, source, sizeof source);
    TRY(foreign_check(foreign, &config));
    TRY(config_check(&config, source));
    *out = config;
    return STATUS_OK;
}

status_t model_config_load(const char *path, const struct config_entries *model_keys,
                           const struct config_entries *dense_keys, struct model_config *out)
{
    struct foreign_keys *foreign = calloc(1, sizeof *foreign);
    if (!foreign) {
        return FAIL(STATUS_NOMEM, "no memory to read a model's configuration");
    }
    status_t status = load_all(path, model_keys, dense_keys, foreign, out);
    free(foreign);
    return status;
}

/* ---- save ---- */

/* "name": value, with the quotes that its type asks for. Values hold nothing to escape: choices,
 * numbers, and subsets of qkvr. */
static void config_write_key(const struct option *option, const char *name, const char *indent,
                             const struct model_config *config, FILE *file)
{
    char text[CONFIG_STRING + 64];
    const char *quote = option->type == OPTION_STRING || option->type == OPTION_CHOICE ? "\"" : "";

    option_print(option, config, text, sizeof text);
    fprintf(file, "%s\"%s\": %s%s%s", indent, name, quote, text, quote);
}

void model_config_print(const struct model_config *config, FILE *file)
{
    struct option dense[DENSE_KEYS_MAX];
    size_t dense_count = config_dense_options(dense);

    fprintf(file, "{\n  \"torch_dtype\": \"float32\",\n");
    for (size_t i = 0; i < model_options_count; i++) {
        if (strncmp(model_options[i].name, dense_prefix, strlen(dense_prefix)) != 0) {
            config_write_key(&model_options[i], model_options[i].name, "  ", config, file);
            fprintf(file, ",\n");
        }
    }
    fprintf(file, "  \"dense_pattern\": {\n");
    for (size_t i = 0; i < dense_count; i++) {
        config_write_key(&dense[i], dense[i].name, "    ", config, file);
        fprintf(file, i + 1 < dense_count ? ",\n" : "\n");
    }
    fprintf(file, "  }\n}\n");
}

status_t model_config_save(const struct model_config *config, const char *path)
{
    FILE *file = fopen(path, "w");

    if (file == NULL) {
        return FAIL(STATUS_IO, "cannot create %s: %s", path, strerror(errno));
    }
    model_config_print(config, file);
    bool failed = ferror(file) != 0;
    if (fclose(file) != 0 || failed) {
        return FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    }
    return STATUS_OK;
}

int64_t model_ffn_width(const struct model_config *config, int layer)
{
    double width = (double)config->intermediate_size;

    if (config->ffn_scale_with_layer) {
        double below = (double)(config->n_layer > 1 ? config->n_layer - 1 : 1);
        width *= (double)(layer - 1) / below + 0.5;
    }
    return 128 * (int64_t)nearbyint(width / 128);
}
