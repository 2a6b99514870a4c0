/* bench_checkpoint.c - muddpipe bench checkpoint: how fast a rank's share of a checkpoint is written. */
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"
#include "tools/arguments.h"
#include "tools/bench.h"
#include "tools/tools.h"

static int help(void)
{
    printf("usage: muddpipe bench checkpoint FOLDER [--mib N] [--threads N] [--level N] [--repeats "
           "N]\n\n"
           "Writes a shard of a checkpoint into FOLDER (and removes it), as training does: encoded "
           "by several\n"
           "threads, hashed, brought to the disk, read again. Beside it, in turn, what the disk "
           "makes of as many\n"
           "bytes, and what one thread makes in memory (/dev/shm): the shard cannot be faster than "
           "the slower of\n"
           "the disk and all threads. Medians (least - most); GB are 1e9 bytes of values before "
           "encoding.\n\n"
           "  --mib N       of values, 512 unless said\n"
           "  --threads N   checkpoint.threads, 1 unless said\n"
           "  --level N     checkpoint.level, 1 unless said\n"
           "  --repeats N   5 unless said\n");
    return EXIT_SUCCESS;
}

static double disk_of(const struct checkpoint_rates *rates)
{
    return rates->disk * (double)rates->raw / (double)rates->stored;
}

static double limit_of(const struct checkpoint_rates *rates, int threads)
{
    double cores = rates->core * threads;
    return disk_of(rates) < cores ? disk_of(rates) : cores;
}

static void print_row(const char *name, double *values, int count, double unit, const char *units)
{
    struct bench_value value = bench_value_of(values, count);
    printf("  %-44s %8.3f %-5s (%.3f - %.3f)\n", name, value.median * unit, units,
           value.least * unit, value.most * unit);
}

static void print_rates(const struct checkpoint_rates *rates, int rounds, int threads)
{
    double values[5][BENCH_REPEATS];
    char name[64];
    for (int i = 0; i < rounds; i++) {
        values[0][i] = disk_of(&rates[i]);
        values[1][i] = rates[i].core;
        values[2][i] = rates[i].written;
        values[3][i] = rates[i].verified;
        values[4][i] = rates[i].written / limit_of(&rates[i], threads);
    }
    printf("%.0f MiB of values stored as %.0f MiB (%.3f of them)\n", (double)rates->raw / 0x1p20,
           (double)rates->stored / 0x1p20, (double)rates->stored / (double)rates->raw);
    print_row("the disk alone, written and fsynced", values[0], rounds, 1e-9, "GB/s");
    print_row("one thread, encoded and hashed in memory", values[1], rounds, 1e-9, "GB/s");
    snprintf(name, sizeof name, "a shard by %d thread%s, with fsync", threads,
             threads == 1 ? "" : "s");
    print_row(name, values[2], rounds, 1e-9, "GB/s");
    print_row("read again", values[3], rounds, 1e-9, "GB/s");
    print_row("of the slower of disk and threads", values[4], rounds, 1, "");
}

int bench_checkpoint_main(int argc, char **argv)
{
    static const char *const names[] = {"--mib", "--threads", "--level", "--repeats"};
    static const long long least[] = {1, 1, 0, 1}, most[] = {1 << 20, 64, 19, BENCH_REPEATS};
    const char *text[4] = {NULL};
    long long number[4] = {512, 1, 1, 5};
    struct arguments arguments;
    struct flag flags[4];
    struct checkpoint_rates rates[BENCH_REPEATS];
    for (int i = 0; i < 4; i++) {
        flags[i] = (struct flag){names[i], &text[i], NULL};
    }
    char *words[argc]; /* messages name the command by the first */
    memcpy(words, argv, sizeof words);
    words[0] = (char[]){"bench checkpoint"};
    if (arguments_read(argc, words, flags, 4, false, &arguments) != STATUS_OK) {
        return arguments_exit(&arguments);
    }
    if (arguments.help) {
        return help();
    }
    bool wrong = arguments.path_count != 1;
    for (int i = 0; i < 4 && !wrong; i++) {
        if (text[i] && (arguments_number(names[i], text[i], least[i], &number[i]) != STATUS_OK ||
                        number[i] > most[i])) {
            fprintf(stderr, "muddpipe bench checkpoint: %s is %lld to %lld\n", names[i], least[i],
                    most[i]);
            wrong = true;
        }
    }
    if (arguments.path_count != 1) {
        fprintf(stderr, "muddpipe bench checkpoint: it wants one folder, on the disk to measure\n");
    }
    status_t status = STATUS_INVALID;
    if (!wrong) {
        struct checkpoint_bench options = {.folder = arguments.paths[0],
                                           .memory = "/dev/shm",
                                           .bytes = (int64_t)number[0] << 20,
                                           .threads = (int)number[1],
                                           .level = (int)number[2],
                                           .rounds = (int)number[3]};
        status = checkpoint_bench(&options, rates);
    }
    if (status == STATUS_OK) {
        print_rates(rates, (int)number[3], (int)number[1]);
    }
    free(arguments.paths);
    config_free(&arguments.config);
    return wrong ? EXIT_USAGE : status == STATUS_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
