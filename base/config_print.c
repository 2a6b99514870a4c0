/* config_print.c - a configuration as the YAML that reads back to it. */
#include "base/config.h"

#include <ctype.h>
#include <string.h>

static bool text_is_plain(const char *text)
{
    if (!isalnum((unsigned char)text[0]) && text[0] != '/') {
        return false;
    }
    for (const char *c = text; *c != '\0'; c++) {
        if (!isalnum((unsigned char)*c) && strchr("_./+-", *c) == NULL) {
            return false;
        }
    }
    return true;
}

static bool text_is_null(const char *text)
{
    return strcmp(text, "null") == 0 || strcmp(text, "Null") == 0 || strcmp(text, "NULL") == 0;
}

static void text_print_quoted(const char *text, FILE *out)
{
    fputc('"', out);
    for (const char *c = text; *c != '\0'; c++) {
        unsigned char byte = (unsigned char)*c;
        if (byte == '"' || byte == '\\') {
            fprintf(out, "\\%c", byte);
        } else if (byte < 0x20 || byte == 0x7f) {
            fprintf(out, "\\x%02x", byte);
        } else {
            fputc(byte, out);
        }
    }
    fputc('"', out);
}

static void pair_print(int indent, const char *key, const char *value, bool quote, FILE *out)
{
    fprintf(out, "%*s%s: ", indent, "", key);
    if (quote) {
        text_print_quoted(value, out);
    } else {
        fputs(value, out);
    }
    fputc('\n', out);
}

/* A model's path and keys cannot share the word `model`: beside a path the keys are dotted. */
static void entries_print(const struct config_entries *entries, const char *group, bool dotted,
                          FILE *out)
{
    char key[CONFIG_KEY + 16];

    if (entries->count > 0 && !dotted) {
        fprintf(out, "%s:\n", group);
    }
    for (size_t i = 0; i < entries->count; i++) {
        const struct config_entry *entry = &entries->entry[i];
        snprintf(key, sizeof key, "%s%s%s", dotted ? group : "", dotted ? "." : "", entry->key);
        pair_print(dotted ? 0 : 2, key, entry->value, !text_is_plain(entry->value), out);
    }
}

static void model_print(const struct run_config *config, FILE *out)
{
    bool has_path = config->model[0] != '\0';

    if (has_path) {
        bool quote = !text_is_plain(config->model) || text_is_null(config->model);
        pair_print(0, "model", config->model, quote, out);
    }
    entries_print(&config->model_keys, "model", has_path, out);
    entries_print(&config->dense_keys, "dense", false, out);
}

void config_print(const struct run_config *config, FILE *out)
{
    char value[CONFIG_STRING];
    const char *group = "";
    size_t group_length = 0;

    model_print(config, out);
    for (size_t i = 0; i < config_options_count; i++) {
        const struct option *option = &config_options[i];
        const char *dot = strchr(option->name, '.');
        if (strcmp(option->name, "model") == 0) {
            continue;
        }
        size_t length = dot != NULL ? (size_t)(dot - option->name) : 0;
        if (length != group_length || strncmp(option->name, group, length) != 0) {
            fprintf(out, "%.*s:\n", (int)length, option->name);
            group = option->name;
            group_length = length;
        }
        option_print(option, config, value, sizeof value);
        bool quote = (option->type == OPTION_STRING || option->type == OPTION_NAME) &&
                     (!text_is_plain(value) || text_is_null(value));
        pair_print(dot != NULL ? 2 : 0, dot != NULL ? dot + 1 : option->name, value, quote, out);
    }
}
