/* safetensors.h - one safetensors file (private to model/).
 *
 *     [ u64 header bytes | header: JSON, space-padded | data: the tensors, without gaps ]
 *
 * The header gives each tensor's dtype, shape and [begin, end) within the data. Files come from
 * anywhere, so nothing in them is believed before it is checked.
 */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include "model/model.h"

enum {
    HEADER_MAX = 100000000, /* bytes; the format's own limit */
    TENSORS_MAX = 16384,    /* of a file or a set; large models have some thousand */
    TENSOR_NAME_MAX = 256   /* bytes */
};

struct shard {
    char *path;
    void *map; /* the whole file, read-only */
    size_t size;
    struct tensor *tensor; /* [count] file order; names are owned */
    int count;
};

/* On failure the shard holds nothing. */
MUST_USE status_t shard_open(const char *path, struct shard *out);
void shard_close(struct shard *shard);

const char *tensor_dtype_name(enum tensor_dtype dtype);
size_t tensor_dtype_size(enum tensor_dtype dtype);
/* "[4, 32]"; returns `buffer`. */
const char *tensor_shape_print(const int64_t *shape, int dims, char *buffer, size_t size);

#endif
