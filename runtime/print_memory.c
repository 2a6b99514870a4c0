/* print_memory.c - what a run says of its memory at its end. */
#include "runtime/print_memory.h"

#include <stdio.h>

void print_size(int64_t bytes, char *buffer, size_t size)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    int u = 0;
    for (; value >= 1024 && u < 4; u++) {
        value /= 1024;
    }
    snprintf(buffer, size, u > 0 ? "%.1f %s" : "%.0f %s", value, unit[u]);
}

/* Nothing where no wire is of a GPU. */
static void print_pinned(const struct trainer_memory *memory)
{
    char used[32], predicted[32], beside[32];
    if (memory->staging_used + memory->pinned_beside > 0) {
        print_size(memory->staging_used, used, sizeof used);
        print_size(memory->staging_predicted, predicted, sizeof predicted);
        print_size(memory->pinned_beside, beside, sizeof beside);
        printf("%-15sits host: %s pinned for tensors on their way, %s predicted (and %s for "
               "words)\n",
               "", used, predicted, beside);
    }
    if (memory->replicas_pinned > 0) {
        print_size(memory->replicas_pinned, used, sizeof used);
        printf("%-15sits host: %s pinned for what replicas, or ranks of a stage, exchange\n", "",
               used);
    }
}

enum { WORTH_SAYING = 16 << 20 }; /* bytes of a GPU */

status_t print_memory(struct group *group, const struct trainer *trainer)
{
    struct trainer_memory own, all[group_size(group)];
    bool root = group_rank(group) == 0;
    trainer_memory(trainer, &own);
    TRY(group_allgather(group, &own, sizeof own, all));
    for (int rank = 0; root && rank < group_size(group); rank++) {
        char used[32], predicted[32], workspace[32], transport[64] = "";
        print_size(trainer_memory_used(&all[rank]), used, sizeof used);
        print_size(trainer_memory_predicted(&all[rank]), predicted, sizeof predicted);
        print_size(all[rank].used.workspace, workspace, sizeof workspace);
        printf("%-15s%s of %s predicted (and %s of workspace) on rank %d\n",
               rank == 0 ? "memory" : "", used, predicted, workspace, rank);
        if (all[rank].device_used > 0) {
            int64_t expected = trainer_memory_predicted(&all[rank]) + all[rank].used.workspace;
            int64_t taken = all[rank].device_used - all[rank].transport_used;
            if (all[rank].transport_used >= WORTH_SAYING) {
                print_size(all[rank].transport_used, used, sizeof used);
                snprintf(transport, sizeof transport, "; the transport %s beside", used);
            }
            print_size(taken, used, sizeof used);
            print_size(expected, predicted, sizeof predicted);
            printf("%-15sits GPU: %s taken, %s predicted with the workspace (%+.1f%%)%s\n", "",
                   used, predicted, 100 * ((double)taken / (double)expected - 1), transport);
        }
        print_pinned(&all[rank]);
    }
    return STATUS_OK;
}
