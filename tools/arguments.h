/* arguments.h - private to tools/: command lines of the form CONFIG [--flag] [key.path=value ...]. */
#ifndef TOOLS_ARGUMENTS_H
#define TOOLS_ARGUMENTS_H

#include <stdio.h>

#include "base/config.h"

struct arguments {
    struct run_config config;
    bool help, print_config;
    int ops_rank; /* --ops N; -1 */
};

/* CONFIG is a YAML file, or a folder with config.json or a config.json itself (then it is `model`).
 * Returns STATUS_INVALID after a message; *out is then empty. */
MUST_USE status_t arguments_read(int argc, char **argv, struct arguments *out);

#endif
