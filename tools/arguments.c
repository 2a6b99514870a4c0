#include "tools/arguments.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

static bool is_model(const char *path)
{
    struct stat info;
    return ends_with(path, ".json") || (stat(path, &info) == 0 && S_ISDIR(info.st_mode));
}

static status_t read_flag(int argc, char **argv, int *at, struct arguments *out)
{
    const char *flag = argv[*at];
    if (strcmp(flag, "--help") == 0 || strcmp(flag, "-h") == 0) {
        out->help = true;
    } else if (strcmp(flag, "--print-config") == 0) {
        out->print_config = true;
    } else if (strcmp(flag, "--ops") == 0 && strcmp(argv[0], "plan") == 0 && *at + 1 < argc) {
        out->ops_rank = atoi(argv[++*at]);
    } else {
        return FAIL(STATUS_INVALID, "muddpipe %s: there is no option %s (muddpipe %s --help)",
                    argv[0], flag, argv[0]);
    }
    return STATUS_OK;
}

/* `model=PATH` in front of the user's own arguments, so that these win. */
static status_t load_model_only(const char *path, int count, char **rest, int position,
                                struct run_config *out)
{
    char **all = calloc((size_t)count + 1, sizeof *all);
    size_t size = strlen(path) + sizeof "model=";
    char *model = malloc(size);
    status_t status = STATUS_OK;
    if (!all || !model) {
        status = FAIL(STATUS_NOMEM, "no memory for %d arguments", count);
    } else {
        snprintf(model, size, "model=%s", path);
        all[0] = model;
        memcpy(all + 1, rest, (size_t)count * sizeof *all);
        status = config_load(NULL, count + 1, all, position - 1, out);
    }
    free(model);
    free(all);
    return status;
}

status_t arguments_read(int argc, char **argv, struct arguments *out)
{
    const char *path = NULL;
    memset(out, 0, sizeof *out);
    out->ops_rank = -1;
    char **keys = calloc((size_t)argc, sizeof *keys);
    if (!keys) {
        return FAIL(STATUS_NOMEM, "no memory for %d arguments", argc);
    }
    status_t status = STATUS_OK;
    int count = 0, first = 0;
    for (int at = 1; at < argc && status == STATUS_OK; at++) {
        if (argv[at][0] == '-') {
            status = read_flag(argc, argv, &at, out);
        } else if (strchr(argv[at], '=')) {
            first = first > 0 ? first : at;
            keys[count++] = argv[at];
        } else if (!path) {
            path = argv[at];
        } else {
            status = FAIL(STATUS_INVALID, "muddpipe %s: `%s` is neither an option nor key=value",
                          argv[0], argv[at]);
        }
    }
    if (status == STATUS_OK && !out->help) {
        status = path && is_model(path) ? load_model_only(path, count, keys, first, &out->config)
                                        : config_load(path, count, keys, first, &out->config);
    }
    free(keys);
    return status;
}
