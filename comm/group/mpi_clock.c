/* mpi_clock.c - how far the clocks of several hosts are apart.
 *
 * The lowest rank of each other host plays ping-pong with rank 0, one host after the other; the round
 * with the shortest way there and back has the least room for error, half of that way. Ranks of one
 * host share CLOCK_MONOTONIC.
 */
#include <stdint.h>

#include "base/trace.h"
#include "comm/group/mpi_group.h"

enum { CLOCK_ROUNDS = 32, TAG_CLOCK = 2 };

/* One message each way; spins, since this is a clock reading of some microseconds. */
static status_t clock_round(struct group *group, MPI_Comm comm, int peer, bool first, int64_t mine,
                            int64_t *out_theirs)
{
    MPI_Request request[2] = {MPI_REQUEST_NULL, MPI_REQUEST_NULL};
    int done = 0;

    TRY_MPI(MPI_Irecv(out_theirs, 1, MPI_INT64_T, peer, TAG_CLOCK, comm, &request[0]), "a clock");
    if (first) {
        TRY_MPI(MPI_Isend(&mine, 1, MPI_INT64_T, peer, TAG_CLOCK, comm, &request[1]), "a clock");
    }
    while (!done) {
        TRY_MPI(MPI_Testall(2, request, &done, MPI_STATUSES_IGNORE), "a clock");
        if (group->shared->failed) {
            return group_lost(group);
        }
    }
    if (!first) {
        mine = trace_now();
        TRY_MPI(MPI_Isend(&mine, 1, MPI_INT64_T, peer, TAG_CLOCK, comm, &request[1]), "a clock");
        TRY(mpi_settle(group, &request[1], 1));
    }
    return STATUS_OK;
}

/* How far our clock is ahead of rank 0's: from the round with the shortest way there and back. */
static status_t measure_clock(struct group *group, MPI_Comm comm, int64_t *out_ahead)
{
    int64_t shortest = INT64_MAX;

    for (int i = 0; i < CLOCK_ROUNDS; i++) {
        int64_t theirs, begin = trace_now();
        TRY(clock_round(group, comm, 0, true, 0, &theirs));
        int64_t end = trace_now();
        if (end - begin < shortest) {
            shortest = end - begin;
            *out_ahead = begin + (end - begin) / 2 - theirs;
        }
    }
    return STATUS_OK;
}

status_t mpi_measure_clocks(struct group *group, MPI_Comm comm, const int *leader,
                            int64_t *out_ahead)
{
    int64_t mine = 0, ignored;

    for (int i = 0; i < group->size; i++) { /* leaders take turns, so that rank 0 answers at once */
        if (i == 0 || leader[i] != i) {
            continue;
        }
        for (int k = 0; group->rank == 0 && k < CLOCK_ROUNDS; k++) {
            TRY(clock_round(group, comm, i, false, 0, &ignored));
        }
        if (group->rank == i) {
            TRY(measure_clock(group, comm, &mine));
        }
        TRY(group_barrier(group));
    }
    TRY(group_allgather(group, &mine, sizeof mine, out_ahead));
    mine = out_ahead[leader[group->rank]];
    for (int i = group->size - 1; i >= 0; i--) { /* a leader's entry is read before it is changed */
        out_ahead[i] = out_ahead[leader[i]] - mine;
    }
    return STATUS_OK;
}
