/* config_yaml.h - a YAML file as a sequence of dotted keys (private to base/).
 *
 * The subset that a configuration needs: one document, mappings in mappings, scalars, and lists of
 * scalars (joined by commas). Anchors, aliases and repeated keys are refused, all with their place.
 */
#ifndef BASE_CONFIG_YAML_H
#define BASE_CONFIG_YAML_H

#include "base/config.h"

enum config_kind {
    CONFIG_MAPPING, /* a mapping begins; value "" */
    CONFIG_SCALAR,
    CONFIG_LIST, /* value holds the elements joined by commas */
    CONFIG_EMPTY /* nothing after the colon, ~ or null; value "" */
};

/* All pointers are valid during the call only. */
struct config_item {
    const char *key; /* "parallel.pp" */
    enum config_kind kind;
    const char *value;
    struct location key_where, value_where;
};
typedef status_t config_take(void *user, const struct config_item *item);

/* Calls `take` for every mapping and value in file order and stops at its first error. */
MUST_USE status_t config_yaml_read(const char *path, config_take *take, void *user);

#endif
