/* json.h - read-only JSON documents (by jansson).
 *
 * Strict: duplicate keys, trailing text and invalid UTF-8 are refused, integers are exact 64 bits.
 * A struct json is a borrowed view that lives as long as its document. Nothing here logs but
 * json_load and json_parse, which name file (or `what`), line and column.
 */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct json;

enum json_type { JSON_NULL, JSON_BOOL, JSON_INT, JSON_REAL, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

MUST_USE status_t json_load(const char *path, struct json **out_document);
MUST_USE status_t json_parse(const char *text, size_t length, const char *what,
                             struct json **out_document);
void json_free(struct json *document); /* the document's root only; NULL is fine */

enum json_type json_type(const struct json *value);
const char *json_type_name(enum json_type type);

/* Member of an object / element of an array; NULL if absent or of another type. */
const struct json *json_get(const struct json *object, const char *key);
const struct json *json_at(const struct json *array, size_t index);
size_t json_size(const struct json *value); /* members or elements; 0 otherwise */
/* The i-th member of an object in file order. */
const struct json *json_member(const struct json *object, size_t i, const char **out_key);

/* Values; true on success, false if the type does not fit (a real for an int and so on). */
bool json_get_int(const struct json *value, int64_t *out);
bool json_get_real(const struct json *value, double *out); /* takes integers too */
bool json_get_bool(const struct json *value, bool *out);
const char *json_get_string(const struct json *value); /* NULL if not a string */

#endif
