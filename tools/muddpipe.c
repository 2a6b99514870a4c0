/* muddpipe.c - main: finds the subcommand. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/config.h"
#include "base/device.h"
#include "comm/comm.h"
#include "kernels/kernels.h"
#include "runtime/runtime.h"
#include "schedule/schedule.h"
#include "tools/tools.h"

static const struct command {
    const char *name;
    int (*main)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"train", train_main, "train a model on the ranks that were started"},
    {"eval", eval_main, "loss of a model on held-out tokens"},
    {"plan", plan_main, "what each stage does, sends and holds, without running it"},
    {"check", check_main, "compare with a golden folder: loss, logits, gradients, steps"},
    {"data", data_main, "make token files and look into them"},
    {"ckpt", ckpt_main, "look at checkpoints, compare them, bring them in and out"},
    {"bench", bench_main, "speeds of this machine: messages between ranks"},
    {"preflight", preflight_main, "is every host of a job fit for it?"},
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

static int help_print(void)
{
    printf(
        "muddpipe - pipeline-parallel training of MUDDFormer\n\n"
        "usage: muddpipe COMMAND [arguments]       (several ranks: mpirun -n N muddpipe ...)\n\n");
    for (int i = 0; i < COMMANDS; i++) {
        printf("  %-9s %s\n", commands[i].name, commands[i].help);
    }
    printf("\n  muddpipe COMMAND --help          its arguments\n"
           "  muddpipe --help-config           every configuration key ('markdown' as a table)\n"
           "  muddpipe --version\n");
    return EXIT_SUCCESS;
}

static int command_unknown(const char *name)
{
    struct option names[COMMANDS] = {0};

    for (int i = 0; i < COMMANDS; i++) {
        names[i].name = commands[i].name;
    }
    const char *nearest = option_nearest(names, COMMANDS, name);
    fprintf(stderr, "muddpipe: there is no command '%s'", name);
    fprintf(stderr, nearest != NULL ? "; did you mean %s?\n" : "; see muddpipe --help\n", nearest);
    return EXIT_USAGE;
}

/* The loader runs these before the constructors of libraries. */
__attribute__((section(".preinit_array"),
               used)) static void (*const before_libraries)(void) = job_before_libraries;

/* What was printed must have arrived; a run goes on without its terminal. */
static int leave(const char *name, int code)
{
    bool failed = fflush(stdout) != 0 || ferror(stdout) != 0;
    if (!failed || code != EXIT_SUCCESS || strcmp(name, "train") == 0) {
        return code;
    }
    fprintf(stderr, "muddpipe %s: what was printed could not be written: %s\n", name,
            strerror(errno));
    return EXIT_FAILURE;
}

/* Libraries generate code that takes a megabyte of it; where it ends the process would be gone without a word. */
static bool stack_is_small(void)
{
    struct rlimit stack;
    const rlim_t least = (rlim_t)2 << 20;
    if (getrlimit(RLIMIT_STACK, &stack) != 0 || stack.rlim_cur >= least) {
        return false;
    }
    fprintf(stderr,
            "muddpipe: the stack may have %llu KiB only, and %llu are needed: ulimit -s 8192\n",
            (unsigned long long)stack.rlim_cur >> 10, (unsigned long long)least >> 10);
    return true;
}

int main(int argc, char **argv)
{
    if (stack_is_small()) {
        return EXIT_FAILURE;
    }
    signal(SIGXFSZ, SIG_IGN); /* a file at its limit is an error of the write, as a full disk is */
    kernels_guard(argv);
    device_prepare();
    option_names_set("parallel.transport", transport_names());
    option_names_set("parallel.schedule", schedule_names());
    const char *name = argc > 1 ? argv[1] : "--help";

    for (int i = 0; i < COMMANDS; i++) {
        if (strcmp(name, commands[i].name) == 0) {
            if (strcmp(name, "train") == 0) {
                signal(SIGPIPE, SIG_IGN);
            }
            return leave(name, commands[i].main(argc - 1, argv + 1));
        }
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        return help_print();
    }
    if (strcmp(name, "--version") == 0) {
        printf("muddpipe %s\n", MUDDPIPE_VERSION);
        return leave(name, EXIT_SUCCESS);
    }
    if (strcmp(name, "--help-config") == 0) {
        help_config(argc > 2 && strcmp(argv[2], "markdown") == 0);
        return leave(name, EXIT_SUCCESS);
    }
    return command_unknown(name);
}
