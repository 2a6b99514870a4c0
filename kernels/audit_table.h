/* audit_table.h - private to kernels/: between the table of audit_table.c and audit.c. */
#ifndef KERNELS_AUDIT_TABLE_H
#define KERNELS_AUDIT_TABLE_H

#include "kernels/kernels.h"

enum {
    AUDIT_USES = KEYS_MOST + 32, /* tensors of an operation, lists included */
    AUDIT_WHAT = 192
};

/* A tensor of an operation. */
struct tensor_use {
    const char *name; /* of the argument */
    void *at;
    size_t bytes;
    bool read, written; /* read: before anything is written there */
};

/* Before the first run. False: the audit has failed, and the operation runs once. */
bool audit_begin(struct audit *audit, const char *operation, const struct tensor_use *use,
                 int uses);
/* Between the two runs. False: there is none. */
bool audit_again(struct audit *audit, const struct tensor_use *use, int uses);
void audit_end(struct audit *audit, const struct tensor_use *use, int uses);
/* One more than the largest of ids [count], wherever they live. */
size_t audit_largest(struct audit *audit, const int32_t *ids, size_t count);

#endif
