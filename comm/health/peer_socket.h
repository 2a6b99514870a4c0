/* peer_socket.h - a socket between neighbours of the ring that live on different hosts.
 *
 * Nothing is ever said on it once it is tied. When a process ends, however it ends, its kernel closes
 * the socket and the neighbour's becomes readable: what a pidfd tells on one host. It is a courtesy:
 * where no connection can be made (a firewall, no IPv4) the ring of beats still finds out, later.
 *
 *     all      peer_socket_open, exchange offers      before    peer_socket_reach(offer of after)
 *     barrier                                    after     peer_socket_accept -> fd
 *     barrier                                    before    peer_socket_confirm -> fd
 */
#ifndef COMM_HEALTH_PEER_SOCKET_H
#define COMM_HEALTH_PEER_SOCKET_H

#include <stdint.h>

enum { PEER_SOCKET_ADDRESSES = 6 };

struct peer_socket_offer { /* where a rank can be reached; plain bytes for an allgather */
    uint64_t token; /* tells the right process from whoever else answers at such an address */
    uint32_t address[PEER_SOCKET_ADDRESSES]; /* IPv4, network order */
    uint16_t port;                           /* network order; 0 = nowhere */
    uint16_t count;
};

struct peer_socket {
    int listener;                   /* -1 = none */
    int out[PEER_SOCKET_ADDRESSES]; /* connections to the rank after, one per address; -1 = none */
    struct peer_socket_offer offer; /* ours */
};

void peer_socket_open(struct peer_socket *peer);
/* At most a second. */
void peer_socket_reach(struct peer_socket *peer, const struct peer_socket_offer *after);
/* The connection of the rank before, or -1. Connections were made before; at most a second. */
int peer_socket_accept(struct peer_socket *peer);
/* The connection that the rank after took, or -1; at most a second. */
int peer_socket_confirm(struct peer_socket *peer);
void peer_socket_close(struct peer_socket *peer); /* not what accept and confirm gave out */

#endif
