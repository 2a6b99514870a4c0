/* ckpt.c - muddpipe ckpt: checkpoints looked at, compared, and brought in and out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"
#include "tools/tools.h"

static status_t run_inspect(char **path)
{
    return checkpoint_inspect(path[0], stdout);
}

static status_t run_verify(char **path)
{
    return checkpoint_prove(path[0], stdout);
}

static status_t run_diff(char **path)
{
    return checkpoint_compare(path[0], path[1], stdout);
}

static status_t run_export(char **path)
{
    return checkpoint_export(path[0], path[1]);
}

static status_t run_import(char **path)
{
    return checkpoint_import(path[0], path[1]);
}

static const struct verb {
    const char *name;
    status_t (*run)(char **path);
    int paths;
    const char *usage, *meaning;
} verbs[] = {
    {"inspect", run_inspect, 1, "CHECKPOINT", "step, place in the data, tensors, configuration"},
    {"verify", run_verify, 1, "CHECKPOINT", "reads all of it and compares every hash"},
    {"diff", run_diff, 2, "CHECKPOINT CHECKPOINT", "where values differ; exit 1 if any do"},
    {"export", run_export, 2, "CHECKPOINT FOLDER",
     "the model as an official folder: config.json, model.safetensors (float32)"},
    {"import", run_import, 2, "FOLDER CHECKPOINT",
     "an official folder as a checkpoint of step 0 with moments of 0"},
};
enum { VERBS = sizeof verbs / sizeof verbs[0] };

static int help_print(FILE *out, int code)
{
    for (int i = 0; i < VERBS; i++) {
        fprintf(out, "%s muddpipe ckpt %-8s %-22s %s\n", i == 0 ? "usage:" : "      ",
                verbs[i].name, verbs[i].usage, verbs[i].meaning);
    }
    fprintf(out, "\nCHECKPOINT is RUN/checkpoints/step-N, or RUN for its newest one. "
                 "docs/checkpoints.md has "
                 "the format.\n");
    return code;
}

int ckpt_main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "--help";
    bool help = false;
    for (int i = 1; i < argc; i++) {
        help = help || strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0;
    }
    if (help || argc < 2) {
        return help_print(stdout, EXIT_SUCCESS);
    }
    for (int i = 0; i < VERBS; i++) {
        if (strcmp(name, verbs[i].name) != 0) {
            continue;
        }
        if (argc - 2 != verbs[i].paths) {
            fprintf(stderr, "muddpipe ckpt: %s takes %s\n", name, verbs[i].usage);
            return EXIT_USAGE;
        }
        return verbs[i].run(argv + 2) == STATUS_OK ? EXIT_SUCCESS : EXIT_FAILURE;
    }
    fprintf(stderr, "muddpipe ckpt: there is no '%s'\n", name);
    return help_print(stderr, EXIT_USAGE);
}
