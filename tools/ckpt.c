/* ckpt.c - muddpipe ckpt: checkpoints looked at, compared, and brought in and out. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"
#include "tools/tools.h"

/* What the command line says. */
struct request {
    char *path[2];
    int paths;
    struct export_options export;
    bool export_options; /* some were given */
};

static status_t run_inspect(const struct request *request)
{
    return checkpoint_inspect(request->path[0], stdout);
}

static status_t run_verify(const struct request *request)
{
    return checkpoint_prove(request->path[0], stdout);
}

static status_t run_diff(const struct request *request)
{
    return checkpoint_compare(request->path[0], request->path[1], stdout);
}

static status_t run_export(const struct request *request)
{
    return checkpoint_export(request->path[0], request->path[1], &request->export);
}

static status_t run_import(const struct request *request)
{
    return checkpoint_import(request->path[0], request->path[1]);
}

static const struct verb {
    const char *name;
    status_t (*run)(const struct request *request);
    int paths;
    const char *usage, *meaning;
} verbs[] = {
    {"inspect", run_inspect, 1, "CHECKPOINT", "step, place in the data, tensors, configuration"},
    {"verify", run_verify, 1, "CHECKPOINT", "reads all of it and compares every hash"},
    {"diff", run_diff, 2, "CHECKPOINT CHECKPOINT", "where values differ; exit 1 if any do"},
    {"export", run_export, 2, "CHECKPOINT FOLDER",
     "the model as an official folder: config.json, model.safetensors"},
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
    fprintf(
        out,
        "\nCHECKPOINT is RUN/checkpoints/step-N, or RUN for its newest one. "
        "docs/checkpoints.md has "
        "the format.\n\n"
        "export takes\n"
        "  --dtype float32|bfloat16   float32 (default) has the weights bit for bit; bfloat16 "
        "rounds to nearest\n"
        "  --shard-size SIZE          several files of at most SIZE of weights (500M, 5G), with "
        "model.safetensors.index.json\n");
    return code;
}

/* A number with K, M or G behind it: KiB, MiB, GiB. */
static bool parse_shard_size(const char *text, int64_t *out)
{
    static const char units[] = "KMG";
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    const char *unit = *end != '\0' ? strchr(units, *end) : NULL;
    int shift = unit ? 10 * (int)(unit - units + 1) : 0;
    *out = (int64_t)number << shift;
    return errno == 0 && end != text && unit && end[1] == '\0' && number > 0 &&
           number <= INT64_MAX >> shift;
}

/* One word, and its value where it is an option; NULL or what is wrong. Moves *at past both. */
static const char *parse_word(char **argv, int argc, int *at, struct request *out)
{
    static char wrong[256];
    const char *word = argv[(*at)++], *value = *at < argc ? argv[*at] : NULL;
    bool dtype = strcmp(word, "--dtype") == 0, size = strcmp(word, "--shard-size") == 0;
    if (!dtype && !size && word[0] != '-') {
        if (out->paths < 2) {
            out->path[out->paths] = argv[*at - 1];
        }
        out->paths++;
        return NULL;
    }
    if (!dtype && !size) {
        snprintf(wrong, sizeof wrong, "there is no option %.100s", word);
        return wrong;
    }
    (*at)++;
    out->export_options = true;
    bool bf16 = value && strcmp(value, "bfloat16") == 0;
    bool known = dtype ? bf16 || (value && strcmp(value, "float32") == 0)
                       : value && parse_shard_size(value, &out->export.shard_bytes);
    out->export.bf16 = dtype ? bf16 : out->export.bf16;
    snprintf(wrong, sizeof wrong, "%s takes %s, not '%.100s'", word,
             dtype ? "float32 or bfloat16" : "a size such as 500M or 5G", value ? value : "");
    return known ? NULL : wrong;
}

static int run_verb(const struct verb *verb, int argc, char **argv)
{
    struct request request = {.paths = 0};
    const char *wrong = NULL;
    for (int at = 2; at < argc && !wrong;) {
        wrong = parse_word(argv, argc, &at, &request);
    }
    if (!wrong && request.export_options && verb->run != run_export) {
        wrong = "--dtype and --shard-size are options of export";
    }
    if (wrong) {
        fprintf(stderr, "muddpipe ckpt: %s\n", wrong);
        return EXIT_USAGE;
    }
    if (request.paths != verb->paths) {
        fprintf(stderr, "muddpipe ckpt: %s takes %s\n", verb->name, verb->usage);
        return EXIT_USAGE;
    }
    return verb->run(&request) == STATUS_OK ? EXIT_SUCCESS : EXIT_FAILURE;
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
        if (strcmp(name, verbs[i].name) == 0) {
            return run_verb(&verbs[i], argc, argv);
        }
    }
    fprintf(stderr, "muddpipe ckpt: there is no '%s'\n", name);
    return help_print(stderr, EXIT_USAGE);
}
