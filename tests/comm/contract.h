/* contract.h - what every transport must do, as a body that any group of ranks can run.
 *
 * The same code runs over threads (test_threads.c) and under mpirun (ranks.c). Each part returns a
 * status and says itself what was wrong.
 */
#ifndef TESTS_COMM_CONTRACT_H
#define TESTS_COMM_CONTRACT_H

#include "comm/comm.h"

status_t contract_collectives(struct group *group);
/* Collectives among the ranks of a group, carried by "nccl" or "host". */
status_t contract_sums(struct group *group, const char *carrier);
/* Groups that the group is split into, and what each of them does. */
status_t contract_split(struct group *group, const char *transport);
/* All parts of the wire's contract, one after the other, each over a wire of its own. */
status_t contract_wire(struct group *group, const char *transport);
/* The same for a wire that keeps its messages in order, and that it does. */
status_t contract_links(struct group *group, const char *transport);
/* Messages along a ring of ranks, of which the first `count` channels exist (0 -> 1 is channel 0), for
 * tests that lose one or kill a rank. */
status_t contract_exchange(struct group *group, const char *transport, int count, int messages);

/* Prints latency and bandwidth between ranks 0 and 1. */
status_t contract_bench(struct group *group, const char *transport);
/* Speeds, the choice, and recorded transfers, over one transport. */
status_t contract_meter(struct group *group, const char *transport);
/* What parallel.transport=auto takes is one of `chosen` ("ucx" or "ucx,mpi"), and its reason has all of
 * `words`, with bars between them. */
status_t contract_choose(struct group *group, const char *chosen, const char *words);
/* Every rank but 0 waits a second for rank 0, in a wire and in a barrier, and must sleep meanwhile. */
status_t contract_sleep(struct group *group, const char *transport);

#endif
