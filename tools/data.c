/* data.c - muddpipe data: its subcommands and their command lines. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "tools/data.h"
#include "tools/tools.h"

static const struct subcommand {
    const char *name;
    int (*run)(const struct data_arguments *arguments);
    unsigned options;
    const char *usage, *meaning;
} subcommands[] = {
    {"encode", data_encode, DATA_FORCE | DATA_VALID,
     "TEXT... OUT [--valid FRACTION FILE] [--force]",
     "Bytes of the texts as a token file of vocabulary 256, '-' being standard input; a Megatron\n"
     "pair has a document for each text. --valid holds back the last FRACTION of the bytes.\n"},
    {"convert", data_convert, DATA_FORCE | DATA_EOD, "FILE[,FILE...] OUT [--eod ID] [--force]",
     "The tokens of the files, one after another, in the format of OUT.\n\n"
     "  --eod ID   documents end with token ID: it is put behind the documents of an index that\n"
     "             lack it; without an index, documents end behind every ID\n"},
    {"split", data_split, DATA_FORCE | DATA_EOD | DATA_SEQ_LEN | DATA_VALID,
     "FILE[,FILE...] OUT --valid FRACTION FILE [--eod ID | --seq-len T] [--force]",
     "The last FRACTION of the tokens into FILE, the rest into OUT; cut between the documents of\n"
     "an index, or\n\n"
     "  --eod ID      behind a token ID\n"
     "  --seq-len T   behind a whole number of windows of T tokens and the token after them\n"},
    {"inspect", data_inspect, DATA_EOD, "FILE [--eod ID]",
     "Format, number and range of tokens, documents, the most frequent tokens, the beginning.\n\n"
     "  --eod ID   count documents by this token instead of an index\n"},
    {"check", data_check, DATA_VOCAB | DATA_EOD, "FILE --vocab V [--eod ID]",
     "Whether the file is whole and every token is below V.\n\n"
     "  --eod ID   whether, too, this token stands at the end of each document of the index, and\n"
     "             nowhere else\n"},
};
enum { SUBCOMMANDS = sizeof subcommands / sizeof subcommands[0] };

static const struct subcommand *current; /* whose usage a complaint shows; NULL: all of them */

static const char formats_help[] =
    "\nFILE is an llm.c .bin, a Megatron pair (PREFIX.idx, PREFIX.bin or PREFIX), or any other\n"
    "file, whose bytes are tokens. OUT.bin is written as llm.c's, OUT.idx as a Megatron pair;\n"
    "what exists is left alone unless --force is given. docs/data.md has more.\n";

static int help_print(FILE *out, int code)
{
    if (current != NULL) {
        fprintf(out, "usage: muddpipe data %s %s\n\n%s%s", current->name, current->usage,
                current->meaning, formats_help);
        return code;
    }
    for (int i = 0; i < SUBCOMMANDS; i++) {
        fprintf(out, "%s muddpipe data %s %s\n", i == 0 ? "usage:" : "      ", subcommands[i].name,
                subcommands[i].usage);
    }
    fprintf(out, "%s\nmuddpipe data SUBCOMMAND --help says more of each.\n", formats_help);
    return code;
}

int data_usage_failed(const char *what)
{
    fprintf(stderr, "muddpipe data%s%s: %s\n\n", current != NULL ? " " : "",
            current != NULL ? current->name : "", what);
    return help_print(stderr, EXIT_USAGE);
}

/* ---- arguments ---- */

static bool whole_parse(const char *text, int64_t least, int64_t *out)
{
    char *end;
    long long value = strtoll(text, &end, 10);

    *out = value;
    return end != text && *end == '\0' && value >= least && value <= INT32_MAX;
}

static bool fraction_parse(const char *text, double *out)
{
    char *end;

    *out = strtod(text, &end);
    return end != text && *end == '\0' && *out > 0 && *out < 1;
}

/* The option at argv[0], with its values behind it (argv ends with NULL): how many arguments it takes, 0
 * if it is wrong. */
static int option_read(char **argv, unsigned options, struct data_arguments *out,
                       const char **out_complaint)
{
    const char *value = argv[1];

    if (strcmp(argv[0], "--force") == 0 && (options & DATA_FORCE)) {
        out->force = true;
        return 1;
    }
    if (strcmp(argv[0], "--vocab") == 0 && (options & DATA_VOCAB)) {
        *out_complaint = "--vocab takes a number, at least 1";
        return value != NULL && whole_parse(value, 1, &out->vocab) ? 2 : 0;
    }
    if (strcmp(argv[0], "--eod") == 0 && (options & DATA_EOD)) {
        *out_complaint = "--eod takes the id of a token";
        return value != NULL && whole_parse(value, 0, &out->eod) ? 2 : 0;
    }
    if (strcmp(argv[0], "--seq-len") == 0 && (options & DATA_SEQ_LEN)) {
        *out_complaint = "--seq-len takes a number of tokens, at least 1";
        return value != NULL && whole_parse(value, 1, &out->seq_len) ? 2 : 0;
    }
    if (strcmp(argv[0], "--valid") == 0 && (options & DATA_VALID)) {
        *out_complaint = "--valid takes a fraction between 0 and 1, and a file";
        if (value == NULL || argv[2] == NULL || !fraction_parse(value, &out->fraction)) {
            return 0;
        }
        out->valid = argv[2];
        return 3;
    }
    *out_complaint = "there is no such option";
    return 0;
}

bool data_arguments_read(int argc, char **argv, unsigned options, struct data_arguments *out,
                         const char **out_complaint)
{
    *out = (struct data_arguments){.file = argv, .eod = -1};
    for (int i = 0, taken; i < argc; i += taken) {
        taken = 1;
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            out->help = true;
        } else if (argv[i][0] != '-' || argv[i][1] == '\0') {
            argv[out->files++] = argv[i];
        } else if ((taken = option_read(argv + i, options, out, out_complaint)) == 0) {
            return false;
        }
    }
    return true;
}

int data_main(int argc, char **argv)
{
    struct data_arguments arguments;
    const char *complaint = "", *what = argc > 1 ? argv[1] : "";

    if (strcmp(what, "--help") == 0 || strcmp(what, "-h") == 0) {
        return help_print(stdout, EXIT_SUCCESS);
    }
    for (int i = 0; i < SUBCOMMANDS; i++) {
        if (strcmp(what, subcommands[i].name) == 0) {
            current = &subcommands[i];
        }
    }
    if (current == NULL) {
        return data_usage_failed(what[0] != '\0' ? "there is no such subcommand" : "what to do?");
    }
    if (!data_arguments_read(argc - 2, argv + 2, current->options, &arguments, &complaint)) {
        return data_usage_failed(complaint);
    }
    if (arguments.help) {
        return help_print(stdout, EXIT_SUCCESS);
    }
    log_set_level(LOG_WARN); /* formats are printed where they matter */
    return current->run(&arguments);
}
