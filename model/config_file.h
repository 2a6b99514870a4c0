/* config_file.h - config.json into struct model_config, with places (private to model/). */
#ifndef MODEL_CONFIG_FILE_H
#define MODEL_CONFIG_FILE_H

#include "model/foreign.h"

/* The keys below dense_pattern, without that prefix: a window into model_options. */
enum { DENSE_KEYS_MAX = 8 };
size_t config_dense_options(struct option out[DENSE_KEYS_MAX]);

/* Sets the fields that the file gives and leaves the others alone. dense_type: what replaces the file's, so
 * that the file's connector changes no default; NULL = nothing does. *out_foreign: keys of other programs, to be
 * checked when the configuration is complete. */
MUST_USE status_t config_file_read(const char *path, const char *dense_type,
                                   struct model_config *config, struct foreign_keys *out_foreign);

/* Other defaults of a model with this dense_type; nothing where it has none. */
void config_connector_defaults(const char *dense_type, struct model_config *config);

/* model_config_validate, with `source` ("" if nobody knows) before the message. */
MUST_USE status_t config_check(const struct model_config *config, const char *source);

#endif
