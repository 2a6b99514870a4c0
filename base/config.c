/* config.c - the table of run keys, and where each value goes. */
#include "base/config.h"

#include <stdlib.h>
#include <string.h>

#include "base/config_yaml.h"

#define LIMIT 9.223372036854775807e18
#define ROW(key, kind, text, low, high, words, meaning, ...)                                       \
    {.name = #key,                                                                                 \
     .type = kind,                                                                                 \
     .offset = offsetof(struct run_config, key),                                                   \
     .default_value = text,                                                                        \
     .min = low,                                                                                   \
     .max = high,                                                                                  \
     .choices = words,                                                                             \
     .help = meaning,                                                                              \
     __VA_ARGS__},
#define TEXT(key, text, ...) ROW(key, OPTION_STRING, text, 0, 0, NULL, __VA_ARGS__, )
#define INT(key, text, low, high, ...) ROW(key, OPTION_INT, text, low, high, NULL, __VA_ARGS__, )
#define REAL(key, text, low, high, ...) ROW(key, OPTION_REAL, text, low, high, NULL, __VA_ARGS__, )
#define ABOVE(key, text, low, high, reason, meaning)                                               \
    ROW(key, OPTION_REAL, text, low, high, NULL, meaning, .above_min = true, .why = reason)
#define BELOW(key, text, low, high, reason, meaning)                                               \
    ROW(key, OPTION_REAL, text, low, high, NULL, meaning, .below_max = true, .why = reason)
#define BOOL(key, text, ...) ROW(key, OPTION_BOOL, text, 0, 0, NULL, __VA_ARGS__, )
#define NAME(key, text, ...) ROW(key, OPTION_NAME, text, 0, 0, NULL, __VA_ARGS__, )
#define NAME_OR_FILE(key, text, meaning, ...)                                                      \
    ROW(key, OPTION_NAME, text, 0, 0, NULL, meaning, .file = true, __VA_ARGS__)
#define CHOICE(key, text, words, ...) ROW(key, OPTION_CHOICE, text, 0, 0, words, __VA_ARGS__, )
#define UNHASHED .unhashed = true

const struct option config_options[] = {
#include "base/config.def"
};
const size_t config_options_count = sizeof config_options / sizeof config_options[0];

/* ---- keys below model and dense ---- */

static const char key_characters[] =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.";

static void entries_free(struct config_entries *entries)
{
    free(entries->entry);
    *entries = (struct config_entries){0};
}

static status_t entries_set(struct config_entries *entries, const char *key, const char *value,
                            const struct location *where)
{
    struct config_entry *entry = NULL;
    char place[CONFIG_STRING + 32];

    location_print(where, place, sizeof place);
    if (key[0] == '\0' || key[strspn(key, key_characters)] != '\0') {
        return FAIL(STATUS_INVALID, "%s: '%.80s' is not a key: letters, digits, _ and . only",
                    place, key);
    }
    if (strlen(key) >= CONFIG_KEY || strlen(value) >= CONFIG_STRING) {
        return FAIL(STATUS_INVALID, "%s: the key or its value is longer than %d or %d bytes", place,
                    CONFIG_KEY - 1, CONFIG_STRING - 1);
    }
    for (size_t i = 0; i < entries->count && entry == NULL; i++) {
        if (strcmp(entries->entry[i].key, key) == 0) {
            entry = &entries->entry[i];
        }
    }
    if (entry != NULL && where->file[0] != '\0' && strcmp(entry->where.file, where->file) == 0) {
        char other[CONFIG_STRING + 32];
        return FAIL(STATUS_INVALID,
                    "%s: %s is given at %s already (dense.X and model.dense_pattern.X are "
                    "one key)",
                    place, key, location_print(&entry->where, other, sizeof other));
    }
    if (entry == NULL) {
        struct config_entry *grown =
            realloc(entries->entry, (entries->count + 1) * sizeof entries->entry[0]);
        if (grown == NULL) {
            return FAIL(STATUS_NOMEM, "no memory for the configuration");
        }
        entries->entry = grown;
        entry = &grown[entries->count++];
    }
    snprintf(entry->key, sizeof entry->key, "%s", key);
    snprintf(entry->value, sizeof entry->value, "%s", value);
    entry->where = *where;
    return STATUS_OK;
}

/* Where a key belongs: below model, below dense, or NULL: in the table. */
static struct config_entries *config_entries_of(struct run_config *config, const char *key,
                                                const char **out_rest)
{
    static const char long_name[] = "model.dense_pattern."; /* of dense. */
    if (strncmp(key, long_name, sizeof long_name - 1) == 0) {
        *out_rest = key + sizeof long_name - 1;
        return &config->dense_keys;
    }
    if (strncmp(key, "model.", 6) == 0) {
        *out_rest = key + 6;
        return &config->model_keys;
    }
    if (strncmp(key, "dense.", 6) == 0) {
        *out_rest = key + 6;
        return &config->dense_keys;
    }
    return NULL;
}

/* ---- from a file ---- */

static bool key_is_group(const char *key)
{
    size_t length = strlen(key);

    if (strcmp(key, "model") == 0 || strcmp(key, "dense") == 0) {
        return true;
    }
    for (size_t i = 0; i < config_options_count; i++) {
        const char *name = config_options[i].name;
        if (strncmp(name, key, length) == 0 && name[length] == '.') {
            return true;
        }
    }
    return false;
}

/* Keys whose value may be written as a YAML list; it arrives as "a,b,c". */
static bool key_takes_list(const char *key)
{
    static const char *const keys[] = {"parallel.partition", "data.train", "data.valid"};

    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (strcmp(key, keys[i]) == 0) {
            return true;
        }
    }
    return false;
}

static status_t group_unknown(const struct config_item *item)
{
    char place[CONFIG_STRING + 32];

    location_print(&item->key_where, place, sizeof place);
    if (option_find(config_options, config_options_count, item->key) != NULL) {
        return FAIL(STATUS_INVALID, "%s: %s takes a value, not keys of its own", place, item->key);
    }
    return FAIL(
        STATUS_INVALID,
        "%s: unknown group %s; the groups are model, dense, data, kernels, parallel, optimizer, "
        "checkpoint, logging, profile and health",
        place, item->key);
}

static status_t config_take_option(struct run_config *config, const struct config_item *item)
{
    char place[CONFIG_STRING + 32];
    const struct option *option = option_find(config_options, config_options_count, item->key);

    if (item->kind == CONFIG_EMPTY && (option != NULL || key_is_group(item->key))) {
        return STATUS_OK; /* null: as if it were not there */
    }
    if (option == NULL && key_is_group(item->key)) {
        return FAIL(STATUS_INVALID, "%s: %s is a group: write its keys below it, indented",
                    location_print(&item->key_where, place, sizeof place), item->key);
    }
    if (option != NULL && item->kind == CONFIG_LIST && !key_takes_list(item->key)) {
        return FAIL(STATUS_INVALID, "%s: %s takes one value, not a list",
                    location_print(&item->value_where, place, sizeof place), item->key);
    }
    return option_set(config_options, config_options_count, config, "", item->key, item->value,
                      option != NULL ? &item->value_where : &item->key_where);
}

static status_t config_take_item(void *user, const struct config_item *item)
{
    struct run_config *config = user;
    const char *rest;
    struct config_entries *entries = config_entries_of(config, item->key, &rest);

    if (entries != NULL) {
        if (item->kind == CONFIG_MAPPING) {
            return STATUS_OK;
        }
        const char *value = item->kind == CONFIG_EMPTY ? "null" : item->value;
        return entries_set(entries, rest, value, &item->key_where);
    }
    if (item->kind == CONFIG_MAPPING) {
        return key_is_group(item->key) ? STATUS_OK : group_unknown(item);
    }
    return config_take_option(config, item);
}

/* ---- from the command line ---- */

/* A model given as an argument replaces the file's, and with it the keys written there. */
static void config_drop_file_model(struct run_config *config)
{
    struct config_entries *entries = &config->model_keys;
    size_t kept = 0;

    for (size_t i = 0; i < entries->count; i++) {
        if (entries->entry[i].where.file[0] == '\0') {
            entries->entry[kept++] = entries->entry[i];
        }
    }
    entries->count = kept;
}

static status_t config_take_argument(struct run_config *config, const char *text, int position)
{
    struct location where = {.line = position, .column = 1};
    const char *equals = strchr(text, '=');
    const char *rest;
    char key[CONFIG_KEY];

    if (equals == NULL || equals == text || (size_t)(equals - text) >= sizeof key) {
        return FAIL(STATUS_INVALID, "argument %d: '%.80s' is not of the form key.path=value",
                    position, text);
    }
    snprintf(key, sizeof key, "%.*s", (int)(equals - text), text);

    struct config_entries *entries = config_entries_of(config, key, &rest);
    if (entries != NULL) {
        return entries_set(entries, rest, equals + 1, &where);
    }
    if (option_find(config_options, config_options_count, key) == NULL && key_is_group(key)) {
        return FAIL(STATUS_INVALID, "argument %d: %s is a group: name one of its keys, %s.KEY=%s",
                    position, key, key, equals + 1);
    }
    TRY(option_set(config_options, config_options_count, config, "", key, equals + 1, &where));
    if (strcmp(key, "model") == 0) {
        config_drop_file_model(config);
    }
    return STATUS_OK;
}

status_t config_load(const char *path, int nargs, char *const *args, int argument0,
                     struct run_config *out)
{
    struct run_config *config = calloc(1, sizeof *config);
    status_t status = STATUS_OK;

    if (config == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the configuration");
    }
    option_defaults(config_options, config_options_count, config);
    if (path != NULL) {
        if (strlen(path) >= CONFIG_STRING) {
            status = FAIL(STATUS_INVALID, "the path %.80s... is too long", path);
            goto free_config;
        }
        snprintf(config->source, sizeof config->source, "%s", path);
        TRY_GOTO(config_yaml_read(path, config_take_item, config), free_config);
    }
    for (int i = 0; i < nargs; i++) {
        if (args[i] != NULL) {
            TRY_GOTO(config_take_argument(config, args[i], argument0 + i), free_config);
        }
    }
    *out = *config;
    free(config);
    return STATUS_OK;

free_config:
    config_free(config);
    free(config);
    return status;
}

void config_free(struct run_config *config)
{
    entries_free(&config->model_keys);
    entries_free(&config->dense_keys);
}
