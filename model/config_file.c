/* config_file.c - reads config.json by the table.
 *
 * The file is shared with other programs, so unknown keys pass (with a warning when they look like
 * a slip of a known one), but for those that would make another model; dense_pattern is this project's
 * own and takes known keys only.
 */
#include "model/config_file.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"

enum { CONFIG_FILE_MAX = 1 << 20 }; /* bytes; real ones have a thousand */

struct config_file {
    const char *path;
    char *text;
    size_t length;
};

/* ---- places ---- */

/* The end of the string that starts at the quote `at`: its closing quote. */
static size_t string_end(const struct config_file *file, size_t at)
{
    for (at++; at < file->length && file->text[at] != '"'; at++) {
        if (file->text[at] == '\\') {
            at++;
        }
    }
    return at;
}

static bool is_key(const struct config_file *file, size_t begin, size_t end, const char *name)
{
    if (end - begin != strlen(name) || memcmp(file->text + begin, name, end - begin) != 0) {
        return false;
    }
    for (end++; end < file->length && isspace((unsigned char)file->text[end]); end++) {
    }
    return end < file->length && file->text[end] == ':';
}

/* Offset of the key `name` of the object that opens at or after `from`, or file->length. */
static size_t key_offset(const struct config_file *file, size_t from, const char *name)
{
    int depth = 0;

    for (size_t at = from; at < file->length; at++) {
        char c = file->text[at];
        if (c == '"') {
            size_t end = string_end(file, at);
            if (depth == 1 && end < file->length && is_key(file, at + 1, end, name)) {
                return at;
            }
            at = end;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return file->length;
}

static struct location key_location(const struct config_file *file, const char *group,
                                    const char *name)
{
    struct location where = {.line = 1, .column = 1};
    size_t from = 0;

    if (group[0] != '\0') {
        from = key_offset(file, 0, group);
        from = from < file->length ? string_end(file, from) + 1 : from;
    }
    size_t end = key_offset(file, from, name);
    for (size_t at = 0; at < end && end < file->length; at++) {
        where.column = file->text[at] == '\n' ? 1 : where.column + 1;
        where.line += file->text[at] == '\n';
    }
    snprintf(where.file, sizeof where.file, "%s", file->path);
    return where;
}

/* ---- values ---- */

static bool type_fits(enum option_type wanted, enum json_type found)
{
    switch (wanted) {
    case OPTION_BOOL:
        return found == JSON_BOOL;
    case OPTION_INT:
        return found == JSON_INT;
    case OPTION_REAL:
        return found == JSON_INT || found == JSON_REAL;
    case OPTION_STRING:
    case OPTION_NAME:
    case OPTION_CHOICE:
        return found == JSON_STRING;
    }
    return false;
}

static const char *type_noun(enum option_type type)
{
    switch (type) {
    case OPTION_BOOL:
        return "true or false";
    case OPTION_INT:
        return "an integer";
    case OPTION_REAL:
        return "a number";
    case OPTION_STRING:
    case OPTION_NAME:
    case OPTION_CHOICE:
        break;
    }
    return "a string";
}

static const char *value_text(const struct json *value, char *buffer, size_t size)
{
    int64_t integer;
    double real;
    bool flag;

    if (json_get_bool(value, &flag)) {
        return flag ? "true" : "false";
    }
    if (json_get_int(value, &integer)) {
        snprintf(buffer, size, "%lld", (long long)integer);
        return buffer;
    }
    if (json_get_real(value, &real)) {
        snprintf(buffer, size, "%.17g", real);
        return buffer;
    }
    return json_get_string(value);
}

struct members { /* of one object: the document or dense_pattern */
    const char *group, *prefix;
    const struct option *table;
    size_t count;
    bool strict;
    struct foreign_keys *foreign; /* where not strict */
};

/* Keys of other programs pass in silence. */
static void unknown_warn(const struct config_file *file, const struct members *members,
                         const char *key)
{
    char place[CONFIG_STRING + 32];
    const char *nearest = option_nearest(members->table, members->count, key);

    if (nearest != NULL && strchr(nearest, '.') == NULL) {
        struct location where = key_location(file, members->group, key);
        log_warn("%s: unknown key %s is ignored; did you mean %s?",
                 location_print(&where, place, sizeof place), key, nearest);
    }
}

static status_t member_set(const struct config_file *file, const struct members *members,
                           const char *key, const struct json *value, struct model_config *config)
{
    char place[CONFIG_STRING + 32], buffer[64];
    const struct option *option = option_find(members->table, members->count, key);

    if (option == NULL && !members->strict) {
        struct location at = key_location(file, "", key);
        if (!foreign_note(members->foreign, key, value, location_print(&at, place, sizeof place))) {
            unknown_warn(file, members, key);
        }
        return STATUS_OK;
    }
    if (json_type(value) == JSON_NULL && option != NULL) {
        return STATUS_OK;
    }
    struct location where = key_location(file, members->group, key);
    if (option != NULL && !type_fits(option->type, json_type(value))) {
        return FAIL(STATUS_INVALID, "%s: %s%s must be %s, not %s",
                    location_print(&where, place, sizeof place), members->prefix, key,
                    type_noun(option->type), json_type_name(json_type(value)));
    }
    const char *text = option != NULL ? value_text(value, buffer, sizeof buffer) : "";
    return option_set(members->table, members->count, config, members->prefix, key, text, &where);
}

static status_t members_set(const struct config_file *file, const struct members *members,
                            const struct json *object, struct model_config *config)
{
    for (size_t i = 0; i < json_size(object); i++) {
        const char *key;
        const struct json *value = json_member(object, i, &key);
        if (members->strict || strcmp(key, "dense_pattern") != 0) {
            TRY(member_set(file, members, key, value, config));
        }
    }
    return STATUS_OK;
}

static status_t document_set(const struct config_file *file, const struct json *document,
                             const char *overriding, struct model_config *config,
                             struct foreign_keys *foreign)
{
    struct option dense[DENSE_KEYS_MAX];
    struct members top = {"", "", model_options, model_options_count, false, foreign};
    struct members pattern = {"dense_pattern", "dense_pattern.", dense, 0, true, NULL};
    const struct json *object = json_get(document, "dense_pattern");

    if (json_type(document) != JSON_OBJECT) {
        return FAIL(STATUS_INVALID, "%s: a model's configuration is an object, not %s", file->path,
                    json_type_name(json_type(document)));
    }
    const struct json *dense_type = json_get(document, "dense_type");
    if (!overriding && dense_type != NULL && json_type(dense_type) == JSON_STRING) {
        config_connector_defaults(json_get_string(dense_type), config);
    }
    TRY(members_set(file, &top, document, config));
    if (object == NULL || json_type(object) == JSON_NULL) {
        return STATUS_OK;
    }
    if (json_type(object) != JSON_OBJECT) {
        return FAIL(STATUS_INVALID, "%s: dense_pattern must be an object of keys, not %s",
                    file->path, json_type_name(json_type(object)));
    }
    pattern.count = config_dense_options(dense);
    return members_set(file, &pattern, object, config);
}

/* ---- file ---- */

static status_t file_slurp(FILE *stream, struct config_file *file)
{
    file->text = malloc(CONFIG_FILE_MAX);
    if (file->text == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to read %s", file->path);
    }
    file->length = fread(file->text, 1, CONFIG_FILE_MAX, stream);
    if (ferror(stream)) {
        return FAIL(STATUS_IO, "cannot read %s: %s", file->path, strerror(errno));
    }
    if (file->length == CONFIG_FILE_MAX) {
        return FAIL(STATUS_INVALID, "%s: larger than 1 MiB, hardly a model's configuration",
                    file->path);
    }
    static const char mark[] = {'\xef', '\xbb', '\xbf'}; /* editors put it before UTF-8 */
    if (file->length >= sizeof mark && memcmp(file->text, mark, sizeof mark) == 0) {
        memset(file->text, ' ', sizeof mark);
    }
    return STATUS_OK;
}

status_t config_file_read(const char *path, const char *dense_type, struct model_config *config,
                          struct foreign_keys *out_foreign)
{
    struct config_file file = {.path = path};
    struct json *document = NULL;
    status_t status;
    FILE *stream = fopen(path, "rb");

    if (stream == NULL) {
        return FAIL(STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    }
    TRY_GOTO(file_slurp(stream, &file), close);
    TRY_GOTO(json_parse(file.text, file.length, path, &document), close);
    status = document_set(&file, document, dense_type, config, out_foreign);
    json_free(document);
close:
    free(file.text);
    fclose(stream);
    return status;
}
