/* config.h - what a user may say about a run, and how it is read (by libyaml).
 *
 * One const table of options per struct gives names, types, defaults, ranges, --help, the resolved
 * print-out and the documentation. The run's table is base/config.def; the keys of config.json are a
 * table of the same kind in model/. A key comes from a YAML file (file, line, column) or from a
 * `key.path=value` argument (its position on the command line); every refusal names that place, and
 * an unknown key the nearest valid one.
 */
#ifndef BASE_CONFIG_H
#define BASE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

enum { CONFIG_STRING = 8192, CONFIG_KEY = 96 }; /* bytes, NUL included */

/* ---- option tables ---- */

enum option_type {
    OPTION_BOOL,   /* bool; true/false (YAML spellings yes/no/on/off too) */
    OPTION_INT,    /* int64_t in [min, max] */
    OPTION_REAL,   /* double in [min, max], finite */
    OPTION_STRING, /* char[CONFIG_STRING] */
    OPTION_NAME, /* the same: one of option_names(), or with `file` a path (with a '/' or a '.' in it) */
    OPTION_CHOICE /* int: index into choices ("a|b|c") */
};

struct option {
    const char *name; /* dotted path, "parallel.pp" */
    enum option_type type;
    size_t offset;             /* bytes into the struct that the table describes */
    const char *default_value; /* as text, through the same parser; NULL: stays zero (unset) */
    double min, max;           /* inclusive; ints and reals */
    bool above_min, below_max; /* reals: the bound itself is out, as a float32 too */
    const char *why;           /* why it is, or NULL */
    const char *choices;       /* OPTION_CHOICE */
    bool file;                 /* OPTION_NAME */
    const char *help;          /* one line */
    bool unhashed;             /* the value is no part of a run's hash */
};

/* Where a value was written. file "" means the command line and line is the argument's position. */
struct location {
    char file[CONFIG_STRING];
    int line, column; /* from 1 */
};
/* "file:line:column", or "argument N"; returns `buffer`. */
const char *location_print(const struct location *where, char *buffer, size_t size);

/* The names that an OPTION_NAME takes, "a|b|c", are known to another room, which tells them before
 * configurations are read; until then any text goes. `names` is borrowed. */
void option_names_set(const char *option, const char *names);
const char *option_names(const struct option *option); /* NULL: nobody has */

void option_defaults(const struct option *table, size_t count, void *base);
/* Parses `text` into the field of `name`. Unknown name, wrong type or range: STATUS_INVALID with the
 * place and, for a name, the nearest one. `prefix` is put before names in messages ("model."). */
MUST_USE status_t option_set(const struct option *table, size_t count, void *base,
                             const char *prefix, const char *name, const char *text,
                             const struct location *where);
const struct option *option_find(const struct option *table, size_t count, const char *name);
/* Nearest name of the table by edit distance, or NULL if none is near. */
const char *option_nearest(const struct option *table, size_t count, const char *name);
/* The field's value as text (round-trips through option_set: reals with 17 digits); `buffer`. */
const char *option_print(const struct option *option, const void *base, char *buffer, size_t size);
void option_help(const struct option *table, size_t count, const char *prefix, FILE *out);

/* ---- the run's configuration ---- */

enum collectives_choice { COLLECTIVES_AUTO, COLLECTIVES_NCCL, COLLECTIVES_HOST };
enum tp_keys_choice { TP_KEYS_SPLIT, TP_KEYS_REPLICATED };
enum mesh_order { MESH_PP_DP, MESH_DP_PP }; /* which coordinate runs first from rank to rank */
enum link_order { LINK_ORDER_DEADLINE, LINK_ORDER_FIRST, LINK_ORDER_SHARED };
enum link_of_choice { LINK_OF_AUTO, LINK_OF_RANK, LINK_OF_HOST };
enum links_choice { LINKS_HOSTS, LINKS_ALL };
enum sum_order_choice { SUM_ORDER_SERIAL, SUM_ORDER_PER_RANK };
enum precision_choice { PRECISION_F32, PRECISION_BF16 };
enum recompute_choice { RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL };
enum lr_schedule { LR_COSINE, LR_LINEAR, LR_CONSTANT, LR_WSD };
enum data_order { ORDER_WINDOWS, ORDER_DOCUMENTS };
enum copy_choice { COPY_AUTO, COPY_WHOLE, COPY_PIECES };
enum on_nan_choice { ON_NAN_STOP, ON_NAN_SKIP };
enum device_choice { DEVICE_CHOICE_AUTO, DEVICE_CHOICE_CPU, DEVICE_CHOICE_CUDA };

/* A key below `model` or `dense`, not yet understood: model/ has the table for it. */
struct config_entry {
    char key[CONFIG_KEY]; /* without the prefix: "key_dilation" */
    char value[CONFIG_STRING];
    struct location where;
};
struct config_entries {
    struct config_entry *entry; /* owned */
    size_t count;
};

struct run_config {
    char source[CONFIG_STRING]; /* the file read, "" if none */
    char model[CONFIG_STRING]; /* `model: PATH`: config.json or a folder with it; "" if a mapping */
    struct config_entries model_keys; /* `model: {dim: ..}` and model.X=.. */
    struct config_entries dense_keys; /* dense.X, meaning dense_pattern.X */
    int precision;                    /* enum precision_choice */
    int64_t seed;
    bool deterministic; /* bf16 on a GPU: attention's backward too */
    int device;         /* enum device_choice */

    struct {
        char train[CONFIG_STRING];  /* token files, as data/sources.h reads them */
        char valid[CONFIG_STRING];  /* held-out ones, "" = none */
        int64_t seq_len;            /* T; 0 = the model's block_size */
        int64_t start;              /* sequences of the order to pass over */
        int64_t micro_batch;        /* B, sequences a microbatch */
        int order;                  /* enum data_order */
        int64_t eod;                /* token that ends a document; -1 = none */
        bool mask_documents;        /* attention and positions start again with each document */
        int64_t valid_every;        /* steps between held-out evaluations; 0 = start and end only */
        int64_t valid_microbatches; /* microbatches of a held-out evaluation; 0 = whole file */
    } data;
    struct {
        char algorithms[CONFIG_STRING]; /* "" = the library's choice, "measure", or a file */
    } kernels;
    struct {
        int64_t pp;                    /* ranks of a pipeline; 0 = ranks started / (tp dp) */
        int64_t tp;                    /* ranks that compute a stage together */
        int tp_keys;                   /* enum tp_keys_choice */
        int64_t dp;                    /* replicas */
        int order;                     /* enum mesh_order */
        int collectives;               /* enum collectives_choice */
        int64_t microbatches;          /* per step; 0 = the command's default */
        char schedule[CONFIG_STRING];  /* one of schedule/'s, or the path of a file */
        char replay[CONFIG_STRING];    /* path of such a file; "" = none */
        int64_t virtual_stages;        /* stages a rank; 0 = the schedule's own */
        int sum_order;                 /* enum sum_order_choice */
        char transport[CONFIG_STRING]; /* "auto" or its name */
        char partition[CONFIG_STRING]; /* auto, layers, or units per stage "5,4,4,5" */
        int64_t threads;     /* OpenMP threads a rank; 0 = cores of the node / ranks on it */
        int recompute;       /* enum recompute_choice */
        int link_order;      /* enum link_order */
        int64_t link_window; /* KiB; 0 = measured */
        int link_of;         /* enum link_of_choice */
        int links;           /* enum links_choice */
        int64_t in_flight;   /* microbatches for each rank behind, beside one */
        int64_t prefetch;    /* arrival slots beyond the microbatches in flight */
    } parallel;
    struct {
        int64_t steps;
        double lr, min_lr_ratio; /* peak; final = peak * ratio */
        double warmup;           /* fraction of steps */
        int schedule;            /* enum lr_schedule */
        double decay;            /* fraction of steps in which wsd decays */
        int64_t ramp_from;       /* microbatches of the first step; 0 = no ramp */
        double ramp;             /* fraction of steps over which they grow */
        double beta1, beta2, eps, weight_decay, clip;
        int on_nan;          /* enum on_nan_choice */
        int64_t on_nan_most; /* steps in a row that are skipped */
    } optimizer;
    struct {
        int64_t every;              /* steps; 0 = not by steps */
        double every_s;             /* seconds; 0 = not by time */
        int64_t keep;               /* newest ones that stay */
        char resume[CONFIG_STRING]; /* none, auto, or a folder */
        int copy;                   /* enum copy_choice */
        int64_t level;              /* of zstd; 0 = as it is */
        int64_t threads;            /* that encode and write; 0 = by the rank's threads */
    } checkpoint;
    struct {
        char run[CONFIG_STRING]; /* run folder; "" = runs/<date>-<time> */
        int level;               /* enum log_level by choice error|warn|info|debug|trace */
        bool export;             /* the trained model into the run folder */
        int64_t card_every;      /* steps between what a GPU says of its clock; 0 = never */
        int64_t sample_tokens;   /* generated at the end of train; 0 = none */
        char sample_prompt[CONFIG_STRING];
    } logging;
    struct {
        int64_t first_step, steps; /* recorded; steps 0 = none */
    } profile;
    struct {
        double deadline_s;   /* on every wait */
        double heartbeat_s;  /* a silent rank counts as stopped after this */
        double slow_s;       /* an operation that takes longer is told; 0 = never */
        double straggler;    /* share by which a rank that has become slower is told; 0 = never */
        int64_t audit_every; /* steps between those with a microbatch computed twice; 0 = never */
    } health;
};

extern const struct option config_options[];
extern const size_t config_options_count;

/* Reads defaults, then the YAML file (NULL = none), then `key.path=value` arguments in order.
 * `argument0` is the position of args[0] on the command line, for messages; NULLs among
 * them are passed over. */
MUST_USE status_t config_load(const char *path, int nargs, char *const *args, int argument0,
                              struct run_config *out);
void config_free(struct run_config *config);
/* The resolved configuration as YAML that config_load reads back to the same struct. Keys below
 * model/dense are printed as given (the resolved model is config.json's business). */
void config_print(const struct run_config *config, FILE *out);

#endif
