/* mpi_rounds.h - private to comm/collective: the rounds in which a call is made over MPI.
 *
 *     fetch   what is sent, from the caller's memory to the round's; on a GPU by a stream of copies
 *     start   the nonblocking collective of MPI
 *     land    sums, and what was received, to the caller's memory; on a GPU by the same stream
 *
 * All that MPI touches is the round's own: memory of the caller may go when a peer is lost, of which MPI does not
 * hear.
 */
#ifndef COMM_MPI_ROUNDS_H
#define COMM_MPI_ROUNDS_H

#include "comm/collective/collective.h"
#include "comm/group/mpi_group.h"

enum round_stage { ROUND_IDLE, ROUND_FETCHING, ROUND_MOVING, ROUND_LANDING };

struct round {
    enum round_stage stage;
    MPI_Request request;
    struct pending_call *pending;
    enum collective_kind kind; /* an all-reduce has rounds of two kinds */
    size_t begin;              /* element of every rank's part; of a broadcast, of all */
    bool last;                 /* of the call */
    unsigned char *in, *out;   /* [ranks * chunk]; pinned where there is a device */
    int *sizes;                /* [4 * ranks] bytes and places, as MPI wants them */
    uint32_t due; /* copies of the device have been made when `copied` has come to it */
};

struct rounds { /* what they share */
    struct group *group;
    MPI_Comm comm;
    size_t chunk;          /* bytes a rank */
    struct device *device; /* NULL = the host */
    void *copies;          /* its stream */
    uint32_t *copied;      /* pinned: sets of copies that the stream has made */
    uint32_t enqueued;     /* of them */
};

/* Elements of the rounds of a call, or of the half of one. */
size_t round_length(const struct rounds *rounds, const struct pending_call *pending);
MUST_USE status_t round_fetch(struct rounds *rounds, struct round *round);
MUST_USE status_t round_start(struct rounds *rounds, struct round *round);
MUST_USE status_t round_land(struct rounds *rounds, struct round *round);

#endif
