/* ckpt_private.h - what the files of `muddpipe ckpt` share. */
#ifndef RUNTIME_CKPT_PRIVATE_H
#define RUNTIME_CKPT_PRIVATE_H

#include "runtime/checkpoint/checkpoint.h"

/* `path`: a checkpoint's folder, or a run's for its newest one. folder [PATH_MAX]: which it is. The caller closes
 * *out. */
MUST_USE status_t checkpoint_open_found(const char *path, char *folder, struct checkpoint **out);

#endif
