/* config_yaml.c - libyaml's events as dotted keys. */
#include "base/config_yaml.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { DEPTH_MAX = 8 };

struct seen_key {
    char key[CONFIG_KEY];
    int line;
};

struct reader {
    const char *path;
    yaml_parser_t parser;
    config_take *take;
    void *user;
    struct seen_key *seen; /* owned */
    size_t seen_count;
    int depth;
};

static struct location reader_place(const struct reader *reader, yaml_mark_t mark)
{
    struct location where = {.line = (int)mark.line + 1, .column = (int)mark.column + 1};

    snprintf(where.file, sizeof where.file, "%s", reader->path);
    return where;
}

#define REFUSE(where, ...) refuse((where), __FILE__, __LINE__, __VA_ARGS__)

__attribute__((format(printf, 4, 5))) static status_t refuse(const struct location *where,
                                                             const char *file, int line,
                                                             const char *fmt, ...)
{
    char place[CONFIG_STRING + 32], message[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    return status_fail(file, line, STATUS_INVALID, "%s: %s",
                       location_print(where, place, sizeof place), message);
}

/* The next event, to be deleted by the caller; what YAML itself and this subset forbid. */
static status_t reader_next(struct reader *reader, yaml_event_t *out_event)
{
    yaml_parser_t *parser = &reader->parser;

    if (!yaml_parser_parse(parser, out_event)) {
        struct location where = reader_place(reader, parser->problem_mark);
        const char *problem = parser->problem != NULL ? parser->problem : "not readable";
        const char *context = parser->context != NULL ? parser->context : "";
        if (parser->error == YAML_MEMORY_ERROR) {
            return FAIL(STATUS_NOMEM, "%s: no memory to read it", reader->path);
        }
        if (parser->error == YAML_READER_ERROR) {
            return FAIL(STATUS_INVALID, "%s: %s at byte %zu; the file must be UTF-8 text",
                        reader->path, problem, parser->problem_offset);
        }
        if (strstr(problem, "cannot start any token") != NULL) {
            return REFUSE(&where, "not YAML: %s (a tab? indent with spaces)", problem);
        }
        return REFUSE(&where, "not YAML: %s%s%s", context, context[0] != '\0' ? ": " : "", problem);
    }

    struct location where = reader_place(reader, out_event->start_mark);
    bool anchored =
        (out_event->type == YAML_SCALAR_EVENT && out_event->data.scalar.anchor != NULL) ||
        (out_event->type == YAML_MAPPING_START_EVENT &&
         out_event->data.mapping_start.anchor != NULL) ||
        (out_event->type == YAML_SEQUENCE_START_EVENT &&
         out_event->data.sequence_start.anchor != NULL);
    if (anchored || out_event->type == YAML_ALIAS_EVENT) {
        yaml_event_delete(out_event);
        return REFUSE(&where, "anchors and aliases are not supported; write the value out");
    }
    return STATUS_OK;
}

static status_t reader_remember(struct reader *reader, const char *key,
                                const struct location *where)
{
    for (size_t i = 0; i < reader->seen_count; i++) {
        if (strcmp(reader->seen[i].key, key) == 0) {
            return REFUSE(where, "%s was given before, in line %d; remove one of them", key,
                          reader->seen[i].line);
        }
    }
    struct seen_key *grown =
        realloc(reader->seen, (reader->seen_count + 1) * sizeof reader->seen[0]);
    if (grown == NULL) {
        return FAIL(STATUS_NOMEM, "%s: no memory to read it", reader->path);
    }
    reader->seen = grown;
    struct seen_key *entry = &grown[reader->seen_count++];
    snprintf(entry->key, sizeof entry->key, "%s", key);
    entry->line = where->line;
    return STATUS_OK;
}

static bool scalar_is_empty(const yaml_event_t *event)
{
    const char *text = (const char *)event->data.scalar.value;

    return event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (text[0] == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0 ||
            strcmp(text, "Null") == 0 || strcmp(text, "NULL") == 0);
}

/* A scalar's text if it fits `size` bytes and holds no NUL. */
static status_t scalar_copy(const struct reader *reader, const yaml_event_t *event, char *out,
                            size_t size)
{
    const char *text = (const char *)event->data.scalar.value;
    size_t length = event->data.scalar.length;
    struct location where = reader_place(reader, event->start_mark);

    if (strlen(text) != length) {
        return REFUSE(&where, "the text holds a NUL character");
    }
    if (length >= size) {
        return REFUSE(&where, "the text is longer than %zu bytes", size - 1);
    }
    memcpy(out, text, length + 1);
    return STATUS_OK;
}

/* The rest of a sequence as "a,b,c". */
static status_t reader_list(struct reader *reader, const char *key, char *out, size_t size)
{
    char element[CONFIG_STRING];
    size_t used = 0;
    yaml_event_t event;

    out[0] = '\0';
    for (;;) {
        TRY(reader_next(reader, &event));
        if (event.type == YAML_SEQUENCE_END_EVENT) {
            yaml_event_delete(&event);
            return STATUS_OK;
        }
        struct location where = reader_place(reader, event.start_mark);
        status_t status = STATUS_OK;
        if (event.type == YAML_SCALAR_EVENT) {
            status = scalar_copy(reader, &event, element, sizeof element);
        } else {
            status = REFUSE(&where, "the list of %s may only hold plain values", key);
        }
        yaml_event_delete(&event);
        TRY(status);
        int added = snprintf(out + used, size - used, "%s%s", used > 0 ? "," : "", element);
        if ((size_t)added >= size - used) {
            return REFUSE(&where, "the list of %s is longer than %zu bytes", key, size - 1);
        }
        used += (size_t)added;
    }
}

static status_t reader_mapping(struct reader *reader, const char *prefix);

/* What stands after a key. The event is deleted here. */
static status_t reader_value(struct reader *reader, const char *key,
                             const struct location *key_where, yaml_event_t *event)
{
    char value[CONFIG_STRING] = "";
    yaml_event_type_t type = event->type;
    status_t status = STATUS_OK;
    struct config_item item = {.key = key,
                               .value = value,
                               .key_where = *key_where,
                               .value_where = reader_place(reader, event->start_mark)};

    if (type == YAML_SCALAR_EVENT) {
        item.kind = scalar_is_empty(event) ? CONFIG_EMPTY : CONFIG_SCALAR;
        if (item.kind == CONFIG_SCALAR) {
            status = scalar_copy(reader, event, value, sizeof value);
        }
    } else {
        item.kind = type == YAML_MAPPING_START_EVENT ? CONFIG_MAPPING : CONFIG_LIST;
    }
    yaml_event_delete(event);
    TRY(status);
    if (item.kind == CONFIG_LIST) {
        TRY(reader_list(reader, item.key, value, sizeof value));
    }
    TRY(reader->take(reader->user, &item));
    if (item.kind == CONFIG_MAPPING) {
        TRY(reader_mapping(reader, item.key));
    }
    return STATUS_OK;
}

/* The rest of a mapping whose keys stand below `prefix` ("" at the top). */
static status_t reader_mapping(struct reader *reader, const char *prefix)
{
    char name[CONFIG_KEY], key[CONFIG_KEY];
    yaml_event_t event;

    reader->depth++;
    for (;;) {
        TRY(reader_next(reader, &event));
        if (event.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&event);
            reader->depth--;
            return STATUS_OK;
        }
        struct location where = reader_place(reader, event.start_mark);
        status_t status = STATUS_OK;
        if (event.type == YAML_SCALAR_EVENT) {
            status = scalar_copy(reader, &event, name, sizeof name);
        } else {
            status = REFUSE(&where, "a key must be a word");
        }
        yaml_event_delete(&event);
        TRY(status);
        int length =
            snprintf(key, sizeof key, "%s%s%s", prefix, prefix[0] != '\0' ? "." : "", name);
        if (length >= (int)sizeof key || reader->depth > DEPTH_MAX) {
            return REFUSE(&where, "the key %.40s... is too long or too deep", key);
        }
        TRY(reader_remember(reader, key, &where));
        TRY(reader_next(reader, &event));
        TRY(reader_value(reader, key, &where, &event));
    }
}

/* Stream and document around the one mapping; an empty file is an empty mapping. */
static status_t reader_document(struct reader *reader)
{
    yaml_event_t event;
    yaml_event_type_t type = YAML_NO_EVENT;
    bool begun = false;

    while (type != YAML_STREAM_END_EVENT) {
        TRY(reader_next(reader, &event));
        struct location where = reader_place(reader, event.start_mark);
        bool empty = event.type == YAML_SCALAR_EVENT && scalar_is_empty(&event);
        type = event.type;
        yaml_event_delete(&event);
        if (type == YAML_DOCUMENT_START_EVENT) {
            if (begun) {
                return REFUSE(&where, "a second document begins here; a file holds one");
            }
            begun = true;
        } else if (type == YAML_MAPPING_START_EVENT) {
            TRY(reader_mapping(reader, ""));
        } else if (type == YAML_SEQUENCE_START_EVENT || (type == YAML_SCALAR_EVENT && !empty)) {
            return REFUSE(&where, "the file must be a mapping of keys (key: value)");
        }
    }
    return STATUS_OK;
}

status_t config_yaml_read(const char *path, config_take *take, void *user)
{
    struct reader reader = {.path = path, .take = take, .user = user};
    FILE *file = fopen(path, "rb");

    if (file == NULL) {
        return FAIL(STATUS_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    if (!yaml_parser_initialize(&reader.parser)) {
        fclose(file);
        return FAIL(STATUS_NOMEM, "%s: no memory to read it", path);
    }
    yaml_parser_set_input_file(&reader.parser, file);
    status_t status = reader_document(&reader);
    yaml_parser_delete(&reader.parser);
    free(reader.seen);
    fclose(file);
    return status;
}
