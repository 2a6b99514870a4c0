#include "tools/arguments.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/tools.h"

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

struct reading {
    int argc;
    char **argv;
    const struct flag *flags;
    size_t count;
    struct arguments *out;
    char **keys; /* [argc] the key=value words at their places, others NULL */
    int path_at;
};

static status_t refuse(struct reading *reading, const char *word, const char *why)
{
    reading->out->usage = true;
    return FAIL(STATUS_INVALID, "muddpipe %s: %s %s (muddpipe %s --help)", reading->argv[0], word,
                why, reading->argv[0]);
}

static status_t read_flag(struct reading *reading, int *at)
{
    const char *word = reading->argv[*at];
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        reading->out->help = true;
        return STATUS_OK;
    }
    for (size_t f = 0; f < reading->count; f++) {
        const struct flag *flag = &reading->flags[f];
        if (strcmp(word, flag->name) != 0) {
            continue;
        }
        if (flag->given) {
            *flag->given = true;
        }
        if (flag->value && *at + 1 == reading->argc) {
            return refuse(reading, word, "wants a value behind it");
        }
        if (flag->value) {
            *flag->value = reading->argv[++*at];
        }
        return STATUS_OK;
    }
    return refuse(reading, word, "is not an option");
}

static status_t read_words(struct reading *reading)
{
    for (int at = 1; at < reading->argc && !reading->out->help; at++) {
        char *word = reading->argv[at];
        if (word[0] == '-') {
            TRY(read_flag(reading, &at));
        } else if (strchr(word, '=')) {
            reading->keys[at] = word;
        } else if (reading->out->paths) {
            reading->out->paths[reading->out->path_count++] = word;
            reading->out->path = reading->out->paths[0];
        } else if (!reading->out->path) {
            reading->out->path = word;
            reading->path_at = at;
        } else {
            return refuse(reading, word, "is neither an option nor key=value");
        }
    }
    return STATUS_OK;
}

/* A path to a model stands for `model=PATH` in its place. */
static status_t load_model(struct reading *reading)
{
    size_t size = strlen(reading->out->path) + sizeof "model=";
    char *model = malloc(size);
    if (!model) {
        return FAIL(STATUS_NOMEM, "no memory for %zu bytes", size);
    }
    snprintf(model, size, "model=%s", reading->out->path);
    reading->keys[reading->path_at] = model;
    status_t status = config_load(NULL, reading->argc, reading->keys, 0, &reading->out->config);
    reading->keys[reading->path_at] = NULL;
    free(model);
    return status;
}

status_t arguments_read(int argc, char **argv, const struct flag *flags, size_t count,
                        bool path_is_config, struct arguments *out)
{
    memset(out, 0, sizeof *out);
    struct reading reading = {
        .argc = argc, .argv = argv, .flags = flags, .count = count, .out = out};
    reading.keys = calloc((size_t)argc, sizeof *reading.keys);
    out->paths = path_is_config ? NULL : calloc((size_t)argc, sizeof *out->paths);
    status_t status = reading.keys && (path_is_config || out->paths)
                          ? read_words(&reading)
                          : FAIL(STATUS_NOMEM, "no memory for %d arguments", argc);
    if (status == STATUS_OK && !out->help) {
        const char *file = path_is_config ? out->path : NULL;
        status = file && is_model(file) ? load_model(&reading)
                                        : config_load(file, argc, reading.keys, 0, &out->config);
    }
    free(reading.keys);
    if (status != STATUS_OK || out->help) {
        free(out->paths);
        out->paths = NULL;
    }
    return status;
}

int arguments_exit(const struct arguments *arguments)
{
    return arguments->usage ? EXIT_USAGE : EXIT_FAILURE;
}

status_t arguments_number(const char *flag, const char *text, long long least, long long *out)
{
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || *out < least) {
        return FAIL(STATUS_INVALID, "%s wants a whole number from %lld on, not `%s`", flag, least,
                    text);
    }
    return STATUS_OK;
}
