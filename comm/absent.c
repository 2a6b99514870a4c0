/* absent.c - transports whose library this build was made without: their names, and why. */
#include "comm/collective/collective.h"
#include "comm/transport.h"

#ifndef COMM_HAVE_UCX
const struct wire_class ucx_wire_class = {
    .name = "ucx",
    .absent = "UCX was not found when it was configured; use mpi",
};
#endif
#ifndef COMM_HAVE_NCCL
const struct wire_class nccl_wire_class = {
    .name = "nccl",
    .absent = "CUDA or nccl.h was not found when it was configured; use ipc, ucx or mpi",
};
const struct collective_class nccl_collective_class = {
    .name = "nccl",
    .absent = "CUDA or nccl.h was not found when it was configured; use parallel.collectives=host",
};
#endif
