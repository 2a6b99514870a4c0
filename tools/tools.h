/* tools.h - the subcommands of muddpipe, a file each. argv[0] is the subcommand's name; what they
 * return is the exit code: 0 done, 1 failed, 2 the command line was wrong. */
#ifndef TOOLS_TOOLS_H
#define TOOLS_TOOLS_H

#include <stdbool.h>

int train_main(int argc, char **argv);
int eval_main(int argc, char **argv);
int plan_main(int argc, char **argv);
int check_main(int argc, char **argv);
int data_main(int argc, char **argv);
int ckpt_main(int argc, char **argv);
int bench_main(int argc, char **argv);
int preflight_main(int argc, char **argv);

enum { EXIT_USAGE = 2 };

/* Every key of a run and of config.json, for people or as the Markdown of docs/config.md. */
void help_config(bool markdown);

#endif
