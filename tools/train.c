/* train.c - muddpipe train and muddpipe eval. */
#include <stdio.h>
#include <stdlib.h>

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
        "folder: config.yaml, metrics.jsonl, rank-N.log, and the trained model in model/ as an\n"
        "official Hugging Face folder, from which model=FOLDER trains on.\n\n"
        "  --print-config   print the resolved configuration and stop\n\n"
        "SIGUSR1 (mpirun passes it on) finishes the step, leaves the weights, exits 0.\n"
        "Every key: muddpipe --help-config\n");
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

static int run(int argc, char **argv, job_body_fn body, int (*help)(void))
{
    struct arguments arguments;
    struct job job = {.command = argv[0], .argc = argc + 1, .argv = argv - 1};
    if (arguments_read(argc, argv, &arguments) != STATUS_OK) {
        return EXIT_FAILURE;
    }
    if (arguments.help) {
        return help();
    }
    if (arguments.print_config) {
        config_print(&arguments.config, stdout);
        config_free(&arguments.config);
        return EXIT_SUCCESS;
    }
    job.config = arguments.config;
    int code = job_run(&job, body, NULL);
    config_free(&job.config);
    return code;
}

int train_main(int argc, char **argv)
{
    return run(argc, argv, train_run, train_help);
}

int eval_main(int argc, char **argv)
{
    return run(argc, argv, eval_run, eval_help);
}
