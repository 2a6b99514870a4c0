/* json.c - jansson behind a read-only door.
 *
 * A struct json is jansson's json_t under another name. Both name their types JSON_...: jansson's
 * are renamed while its header is read.
 */
#include "base/json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define json_type jansson_type
#define JSON_OBJECT JANSSON_OBJECT
#define JSON_ARRAY JANSSON_ARRAY
#define JSON_STRING JANSSON_STRING
#define JSON_INTEGER JANSSON_INTEGER
#define JSON_REAL JANSSON_REAL
#define JSON_TRUE JANSSON_TRUE
#define JSON_FALSE JANSSON_FALSE
#define JSON_NULL JANSSON_NULL
#include <jansson.h>
#undef json_type
#undef JSON_OBJECT
#undef JSON_ARRAY
#undef JSON_STRING
#undef JSON_INTEGER
#undef JSON_REAL
#undef JSON_TRUE
#undef JSON_FALSE
#undef JSON_NULL

static const size_t parse_flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY;

/* jansson's macros take json_t pointers without const. */
static json_t *as_jansson(const struct json *value)
{
    return (json_t *)(uintptr_t)value;
}

static const struct json *from_jansson(const json_t *value)
{
    return (const struct json *)value;
}

static status_t parse_failed(const char *what, const json_error_t *error)
{
    return FAIL(STATUS_INVALID, "%s:%d:%d: not valid JSON: %s", what, error->line, error->column,
                error->text);
}

status_t json_load(const char *path, struct json **out_document)
{
    json_error_t error;
    FILE *file = fopen(path, "rb");

    if (file == NULL) {
        return FAIL(STATUS_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    if (fgetc(file) == EOF && ferror(file)) { /* a folder opens, but does not read */
        status_t status = FAIL(STATUS_IO, "%s: cannot read: %s", path, strerror(errno));
        fclose(file);
        return status;
    }
    rewind(file);
    json_t *document = json_loadf(file, parse_flags, &error);
    fclose(file);
    if (document == NULL) {
        return parse_failed(path, &error);
    }
    *out_document = (struct json *)document;
    return STATUS_OK;
}

status_t json_parse(const char *text, size_t length, const char *what, struct json **out_document)
{
    json_error_t error;
    json_t *document = json_loadb(text, length, parse_flags, &error);

    if (document == NULL) {
        return parse_failed(what, &error);
    }
    *out_document = (struct json *)document;
    return STATUS_OK;
}

void json_free(struct json *document)
{
    json_decref((json_t *)document);
}

enum json_type json_type(const struct json *value)
{
    switch (json_typeof(as_jansson(value))) {
    case JANSSON_OBJECT:
        return JSON_OBJECT;
    case JANSSON_ARRAY:
        return JSON_ARRAY;
    case JANSSON_STRING:
        return JSON_STRING;
    case JANSSON_INTEGER:
        return JSON_INT;
    case JANSSON_REAL:
        return JSON_REAL;
    case JANSSON_TRUE:
    case JANSSON_FALSE:
        return JSON_BOOL;
    case JANSSON_NULL:
        break;
    }
    return JSON_NULL;
}

const char *json_type_name(enum json_type type)
{
    switch (type) {
    case JSON_NULL:
        return "null";
    case JSON_BOOL:
        return "true or false";
    case JSON_INT:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_STRING:
        return "a string";
    case JSON_ARRAY:
        return "an array";
    case JSON_OBJECT:
        return "an object";
    }
    return "unknown";
}

static bool is_type(const struct json *value, enum json_type type)
{
    return value != NULL && json_type(value) == type;
}

const struct json *json_get(const struct json *object, const char *key)
{
    return from_jansson(json_object_get(as_jansson(object), key));
}

const struct json *json_at(const struct json *array, size_t index)
{
    return from_jansson(json_array_get(as_jansson(array), index));
}

size_t json_size(const struct json *value)
{
    if (is_type(value, JSON_OBJECT)) {
        return json_object_size(as_jansson(value));
    }
    return json_array_size(as_jansson(value));
}

const struct json *json_member(const struct json *object, size_t i, const char **out_key)
{
    json_t *members = as_jansson(object);
    void *member = json_object_iter(members);

    for (; member != NULL && i > 0; i--) {
        member = json_object_iter_next(members, member);
    }
    if (member == NULL) {
        return NULL;
    }
    *out_key = json_object_iter_key(member);
    return from_jansson(json_object_iter_value(member));
}

bool json_get_int(const struct json *value, int64_t *out)
{
    if (!is_type(value, JSON_INT)) {
        return false;
    }
    *out = json_integer_value(as_jansson(value));
    return true;
}

bool json_get_real(const struct json *value, double *out)
{
    if (!is_type(value, JSON_INT) && !is_type(value, JSON_REAL)) {
        return false;
    }
    *out = json_number_value(as_jansson(value));
    return true;
}

bool json_get_bool(const struct json *value, bool *out)
{
    if (!is_type(value, JSON_BOOL)) {
        return false;
    }
    *out = json_typeof(as_jansson(value)) == JANSSON_TRUE;
    return true;
}

const char *json_get_string(const struct json *value)
{
    return json_string_value(as_jansson(value));
}
