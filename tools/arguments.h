/* arguments.h - private to tools/: command lines of the form PATH... [--flag [VALUE]]
 * [key.path=value ...], in any order. */
#ifndef TOOLS_ARGUMENTS_H
#define TOOLS_ARGUMENTS_H

#include "base/config.h"

struct flag {
    const char *name;   /* "--ops" */
    const char **value; /* where its value goes (borrowed from argv); NULL: it has none */
    bool *given;        /* set if the flag is there; may be NULL */
};

struct arguments {
    struct run_config config;
    const char *path;   /* the first word that is neither flag nor key; NULL */
    const char **paths; /* all of them, malloc'ed; NULL where the path is the configuration's */
    int path_count;
    bool help;  /* --help: nothing else was read */
    bool usage; /* on failure: the command line is wrong, not what it names */
};

/* With `path_is_config` there is one PATH at most, and it is read: a YAML file, or a folder with
 * config.json or a config.json itself (then it is `model`). Otherwise there may be several, which are the
 * caller's. STATUS_INVALID after a message. */
MUST_USE status_t arguments_read(int argc, char **argv, const struct flag *flags, size_t count,
                                 bool path_is_config, struct arguments *out);
/* The exit code of a failed arguments_read. */
int arguments_exit(const struct arguments *arguments);
/* Whole numbers from `least` on; a message that names the flag otherwise. */
MUST_USE status_t arguments_number(const char *flag, const char *text, long long least,
                                   long long *out);

#endif
