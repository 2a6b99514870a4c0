/* tokens_internal.h - private to data/tokens*.c: a token file as the formats leave it. */
#ifndef RUNTIME_TOKENS_INTERNAL_H
#define RUNTIME_TOKENS_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>

#include "data/tokens.h"

struct mapping {
    unsigned char *at; /* NULL: nothing mapped (also an empty file) */
    size_t size;
};

struct tokens {
    char *path;
    struct mapping file, index; /* index: Megatron only */
    const unsigned char *data;  /* [count] of `type` */
    enum token_format format;
    enum token_type type;
    int64_t count;
    int64_t vocab; /* 0: unchecked */
    /* Megatron: inside the mapped index, not aligned */
    const unsigned char *first_byte, *document; /* i64 [sequences], i64 [documents + 1] */
    int64_t sequences, documents;
};

/* An empty file is mapped as nothing if `empty`, else refused. */
MUST_USE status_t mapping_open(const char *path, bool empty, struct mapping *out);
void mapping_close(struct mapping *mapping);
/* The first `size` bytes of a regular file; false if `path` is none or is shorter. */
bool file_begin(const char *path, void *out, size_t size);

/* Whether `path` begins like an index. */
bool megatron_is_index(const char *path);
/* Maps and checks the pair; fills everything but vocab, also when it fails. */
MUST_USE status_t megatron_load(const char *index_path, const char *path, struct tokens *tokens);

int64_t token_width(enum token_type type); /* bytes */

#endif
