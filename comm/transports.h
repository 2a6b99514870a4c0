/* transports.h - the transports: each is a file, or several, and a row here.
 *
 * A row is the name of its wire_class: row(ipc) is ipc_wire_class. On GPUs `auto` tries them in this order.
 */
#ifndef COMM_TRANSPORTS_H
#define COMM_TRANSPORTS_H

#ifndef TRANSPORTS_MORE
#define TRANSPORTS_MORE(row) /* a test adds one of its own */
#endif

#define TRANSPORTS(row) row(ipc) row(ucx) row(nccl) row(mpi) row(loop) TRANSPORTS_MORE(row)

#endif
