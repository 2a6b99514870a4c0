/* tether.h - a socket between neighbours of the ring that live on different hosts.
 *
 * Nothing is ever said on it once it is tied. When a process ends, however it ends, its kernel closes
 * the socket and the neighbour's becomes readable: what a pidfd tells on one host. It is a courtesy:
 * where no connection can be made (a firewall, no IPv4) the ring of beats still finds out, later.
 *
 *     all      tether_open, exchange offers      before    tether_reach(offer of after)
 *     barrier                                    after     tether_accept -> fd
 *     barrier                                    before    tether_confirm -> fd
 */
#ifndef COMM_TETHER_H
#define COMM_TETHER_H

#include <stdint.h>

enum { TETHER_ADDRESSES = 6 };

struct tether_offer { /* where a rank can be reached; plain bytes for an allgather */
    uint64_t token;   /* tells the right process from whoever else answers at such an address */
    uint32_t address[TETHER_ADDRESSES]; /* IPv4, network order */
    uint16_t port;                      /* network order; 0 = nowhere */
    uint16_t count;
};

struct tether {
    int listener;              /* -1 = none */
    int out[TETHER_ADDRESSES]; /* connections to the rank after, one per address; -1 = none */
    struct tether_offer offer; /* ours */
};

void tether_open(struct tether *tether);
/* At most a second. */
void tether_reach(struct tether *tether, const struct tether_offer *after);
/* The connection of the rank before, or -1. Connections were made before; at most a second. */
int tether_accept(struct tether *tether);
/* The connection that the rank after took, or -1; at most a second. */
int tether_confirm(struct tether *tether);
void tether_close(struct tether *tether); /* not what accept and confirm gave out */

#endif
