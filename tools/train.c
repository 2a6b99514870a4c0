/* train.c - muddpipe train and muddpipe eval. */
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "runtime/runtime.h"
#include "tools/arguments.h"
#include "tools/tools.h"

static int train_help(void)
{
    printf(
        "usage: muddpipe train CONFIG [key.path=value ...]            one stage\n"
        "       mpirun -n N muddpipe train CONFIG [key.path=value ...]   N pipeline stages\n"
        "       muddpipe train CONFIG parallel.transport=threads parallel.pp=N   N stages as\n"
        "                                                              threads of one process\n\n"
        "CONFIG is a YAML file (tools/quickstart.yaml is a commented example). Leaves a run\n"
        "folder: config.yaml, metrics.jsonl, hash.txt, rank-N.log, and the trained model in model/ "
        "as\n"
        "an official Hugging Face folder, from which model=FOLDER trains on.\n\n"
        "  --print-config   print the resolved configuration and stop\n\n"
        "Keys to begin with (every key: muddpipe --help-config):\n\n"
        "  model=PATH               config.json, or a folder with one, with or without weights\n"
        "  data.train=FILE          tokens (muddpipe data encode makes them of text)\n"
        "  data.seq_len=T  data.micro_batch=B  parallel.microbatches=M   M x B x T tokens a step\n"
        "  optimizer.steps=N        of the whole run; optimizer.lr its learning rate\n"
        "  device=auto|cpu|cuda     where ranks compute; auto: on GPUs, if every rank sees one\n"
        "  precision=float32|bf16   bf16 is for GPUs, and the quick one there\n"
        "  logging.run=FOLDER       the run folder; else runs/<date>-<time>\n\n"
        "SIGUSR1 (mpirun passes it on), SIGHUP, and SIGTERM under srun finish the step, save it, "
        "leave the\n"
        "weights, and exit 0; or 75 if there are checkpoints (checkpoint.every): the same command, "
        "with\n"
        "checkpoint.resume=auto, then goes on. docs/checkpoints.md has more.\n");
    return EXIT_SUCCESS;
}

static int eval_help(void)
{
    printf("usage: [mpirun -n N] muddpipe eval CONFIG|FOLDER [key.path=value ...]\n\n"
           "Mean loss of the model FOLDER (or of CONFIG's model, which must be a folder with\n"
           "weights) over the held-out tokens data.valid.\n\n"
           "  muddpipe eval runs/NAME/model data.valid=valid.bin\n"
           "  muddpipe eval runs/NAME/config.yaml model=runs/NAME/model\n");
    return EXIT_SUCCESS;
}

/* Whoever asks for the resolved configuration wants to know whether it is right. */
static status_t print_resolved(const struct run_config *config)
{
    struct model_config model;
    if (config->model[0] || config->model_keys.count > 0 || config->dense_keys.count > 0) {
        TRY(model_config_load(config->model, &config->model_keys, &config->dense_keys, &model));
    }
    config_print(config, stdout);
    return STATUS_OK;
}

static int run(int argc, char **argv, job_body_fn body, int (*help)(void))
{
    struct arguments arguments;
    bool print = false;
    const struct flag flags[] = {{"--print-config", NULL, &print}};
    struct job job = {.command = argv[0], .argc = argc + 1, .argv = argv - 1};
    if (arguments_read(argc, argv, flags, 1, true, &arguments) != STATUS_OK) {
        return arguments_exit(&arguments);
    }
    if (arguments.help) {
        return help();
    }
    job.config = arguments.config;
    int code = print ? (print_resolved(&job.config) == STATUS_OK ? EXIT_SUCCESS : EXIT_FAILURE)
                     : job_run(&job, body, NULL);
    config_free(&job.config);
    return code;
}

int train_main(int argc, char **argv)
{
    log_keep(); /* for the run folder */
    return run(argc, argv, train_run, train_help);
}

int eval_main(int argc, char **argv)
{
    return run(argc, argv, eval_run, eval_help);
}
