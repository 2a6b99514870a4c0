/* bench.c - muddpipe bench: speeds of this machine. */
#include "tools/bench.h"

#include <stdlib.h>
#include <string.h>

#include "tools/tools.h"

static int bench_help(FILE *out)
{
    fprintf(out,
            "usage: muddpipe bench WHAT [arguments]\n\n"
            "  comm         messages between ranks, over every transport that this job can use\n"
            "  checkpoint   a rank's share of a checkpoint, written to a disk\n\n"
            "  muddpipe bench WHAT --help   its arguments\n");
    return out == stdout ? EXIT_SUCCESS : EXIT_USAGE;
}

int bench_main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "comm") == 0) {
        return bench_comm_main(argc - 1, argv + 1);
    }
    if (strcmp(what, "checkpoint") == 0) {
        return bench_checkpoint_main(argc - 1, argv + 1);
    }
    if (strcmp(what, "--help") == 0 || strcmp(what, "-h") == 0) {
        return bench_help(stdout);
    }
    if (what[0] != '\0') {
        fprintf(stderr, "muddpipe bench: there is no benchmark '%s'\n", what);
    }
    return bench_help(stderr);
}
