/* mpi_group.h - what the files that call MPI share. */
#ifndef COMM_MPI_HOUSE_H
#define COMM_MPI_HOUSE_H

#include <mpi.h>

#include "comm/health/health.h"
#include "comm/health/peer_socket.h"
#include "comm/transport.h"

struct identity { /* of a rank, told to all others at the start */
    char host[128];
    char boot[64]; /* kernel's boot id: hosts may share a name */
    char pid_namespace[64];
    int64_t pid;
    struct peer_socket_offer offer;
};

struct scratch { /* what MPI reads and writes in a collective */
    void *memory;
    size_t room; /* bytes */
};

struct note_send;

struct mpi_state {
    bool split; /* of a group split from another: what it has no use for is zero */
    MPI_Comm collectives, notes, clocks;
    struct identity *identity; /* [size] */
    int *leader;               /* [size] lowest rank on each rank's host */
    struct health *health;     /* NULL with one rank, or in a split group */
    MPI_Request note_request;  /* the receive posted for the next note */
    struct health_note note_in;
    struct note_send *sends, *spare;
    struct scratch counts, offsets, mine, all;
};

static inline struct mpi_state *mpi_state_of(const struct group *group)
{
    return group->state;
}

void mpi_scratch_free(struct mpi_state *state);
/* Where a rank stands on its host, once its state knows the leaders of all hosts. */
void mpi_stand_on_host(struct group *group);

/* mpi_split.c: of the class; the end of a group that it made. */
status_t mpi_split(struct group *group, const int *members, int size, struct group **out);
void mpi_close_split(struct group *group);

/* The body of TRY_MPI: `code` as a status, said with MPI's own words and ours. */
status_t mpi_check(int code, const char *what);
#define TRY_MPI(call, what) TRY(mpi_check((call), (what)))

/* Sleeps until all `requests` [count] are complete, the group fails or the deadline passes. What did
 * not complete stays under way: its buffers must outlive the process's failure. */
status_t mpi_settle(struct group *group, MPI_Request *requests, int count);

/* ns by which each rank's clock is ahead of ours, [size]; leader [size] = lowest rank on the host of
 * each. Collective; `comm` is for this alone. */
status_t mpi_measure_clocks(struct group *group, MPI_Comm comm, const int *leader,
                            int64_t *out_ahead);

#endif
