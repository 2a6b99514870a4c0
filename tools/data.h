/* data.h - private to tools/data*.c: arguments, outputs, and the subcommands of `muddpipe data`. */
#ifndef TOOLS_DATA_H
#define TOOLS_DATA_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* ---- arguments ---- */

/* Which options a subcommand has; --help and -h always. */
enum {
    DATA_FORCE = 1,   /* --force */
    DATA_VOCAB = 2,   /* --vocab V */
    DATA_EOD = 4,     /* --eod ID */
    DATA_SEQ_LEN = 8, /* --seq-len T */
    DATA_VALID = 16   /* --valid FRACTION FILE */
};

struct data_arguments {
    char **file; /* what is no option, in order; inside the argv given */
    int files;
    bool force, help;
    int64_t vocab, seq_len; /* 0: not given */
    int64_t eod;            /* -1: not given */
    double fraction;        /* in (0, 1), with `valid`; else 0 and NULL */
    const char *valid;
};

/* argv: what follows the subcommand's name; it is put into another order. On failure *out_complaint
 * says what is wrong (static text). */
bool data_arguments_read(int argc, char **argv, unsigned options, struct data_arguments *out,
                         const char **out_complaint);

/* ---- token files to be written ---- */

struct token_file;

/* PREFIX.idx makes a Megatron pair, FILE.bin an llm.c file, u16 or, if `wide`, i32 or u32. Files that
 * exist are refused unless `force`. They appear, whole, with token_file_finish. */
MUST_USE status_t token_file_create(const char *path, bool wide, bool force,
                                    struct token_file **out);
MUST_USE status_t token_file_put(struct token_file *file, const int32_t *tokens, int64_t count);
/* The tokens since the last end are a document; llm.c's format keeps no note of it. */
MUST_USE status_t token_file_end_document(struct token_file *file);
/* Ends the last document if it has tokens, names the file, says so, and frees `file` in any case. */
MUST_USE status_t token_file_finish(struct token_file *file);
void token_file_abandon(struct token_file *file); /* NULL is fine */

/* The same for a file and, unless `second` is NULL, what is held back from it: both or none. */
MUST_USE status_t token_files_create(const char *first, const char *second, bool wide, bool force,
                                     struct token_file **out_pair);
/* Finishes or, with a `status` of failure, abandons both. */
MUST_USE status_t token_files_finish(struct token_file **pair, status_t status);

/* ---- subcommands: the exit code ---- */

int data_encode(const struct data_arguments *arguments);
int data_convert(const struct data_arguments *arguments);
int data_split(const struct data_arguments *arguments);
int data_inspect(const struct data_arguments *arguments);
int data_check(const struct data_arguments *arguments);
/* A complaint about the command line, with the subcommand's usage below it. */
int data_usage_failed(const char *what);

#endif
