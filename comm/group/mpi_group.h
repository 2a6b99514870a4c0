/* mpi_group.h - what the files that call MPI share. */
#ifndef COMM_MPI_HOUSE_H
#define COMM_MPI_HOUSE_H

#include <mpi.h>

#include "comm/transport.h"

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
