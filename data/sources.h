/* sources.h - what data.train and data.valid say: files, and weights of the sources they make up.
 *
 *     a.bin,b.bin                 one source of two files, in this order
 *     web.idx:0.7,books.bin:0.3   two sources, mixed
 *     w0.bin:7,w1.bin,books:3     a file without a weight continues the source before it
 *     @files.txt                  the same entries, one a line; blank lines and # comments are skipped
 */
#ifndef RUNTIME_SOURCES_H
#define RUNTIME_SOURCES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct source_file {
    char *path;
    int source;
};

struct sources {
    struct source_file *file; /* owned; those of a source stand together */
    int files, room;
    bool weighted;   /* a weight was written */
    int64_t *weight; /* [sources] owned; whole numbers without a common divisor */
    int sources;
};

/* `key` is named in messages. */
MUST_USE status_t sources_parse(const char *key, const char *list, struct sources *out);
void sources_free(struct sources *sources);

#endif
