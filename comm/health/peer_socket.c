/* peer_socket.c - sockets that tell when a neighbour on another host ends. */
#include "comm/health/peer_socket.h"

#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/trace.h"

enum { PATIENCE_MS = 1000 };

static int64_t patience(void)
{
    return trace_now() + PATIENCE_MS * INT64_C(1000000);
}

/* Until `fd` is ready for `events` or `until` has passed. */
static bool ready(int fd, short events, int64_t until)
{
    struct pollfd entry = {.fd = fd, .events = events};
    int64_t remaining = (until - trace_now()) / 1000000;

    return poll(&entry, 1, remaining > 0 ? (int)remaining : 0) > 0 && (entry.revents & events) != 0;
}

static void drop(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

static void list_addresses(struct peer_socket_offer *offer)
{
    struct ifaddrs *all;

    if (getifaddrs(&all) != 0) {
        return;
    }
    for (struct ifaddrs *i = all; i != NULL && offer->count < PEER_SOCKET_ADDRESSES;
         i = i->ifa_next) {
        if (i->ifa_addr != NULL && i->ifa_addr->sa_family == AF_INET &&
            (i->ifa_flags & IFF_UP) != 0 && (i->ifa_flags & IFF_LOOPBACK) == 0) {
            struct sockaddr_in address;
            memcpy(&address, i->ifa_addr, sizeof address);
            offer->address[offer->count++] = address.sin_addr.s_addr;
        }
    }
    freeifaddrs(all);
}

void peer_socket_open(struct peer_socket *peer)
{
    struct sockaddr_in any = {.sin_family = AF_INET};
    socklen_t length = sizeof any;

    memset(peer, 0, sizeof *peer);
    for (int i = 0; i < PEER_SOCKET_ADDRESSES; i++) {
        peer->out[i] = -1;
    }
    peer->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (peer->listener < 0 ||
        getrandom(&peer->offer.token, sizeof peer->offer.token, 0) !=
            (ssize_t)sizeof peer->offer.token ||
        bind(peer->listener, (struct sockaddr *)&any, sizeof any) != 0 ||
        listen(peer->listener, PEER_SOCKET_ADDRESSES) != 0 ||
        getsockname(peer->listener, (struct sockaddr *)&any, &length) != 0) {
        drop(&peer->listener);
        return;
    }
    peer->offer.port = any.sin_port;
    list_addresses(&peer->offer);
}

void peer_socket_reach(struct peer_socket *peer, const struct peer_socket_offer *after)
{
    int64_t until = patience();

    for (int i = 0; after->port != 0 && i < after->count && i < PEER_SOCKET_ADDRESSES; i++) {
        struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = after->port};
        there.sin_addr.s_addr = after->address[i];
        peer->out[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (peer->out[i] >= 0 &&
            connect(peer->out[i], (struct sockaddr *)&there, sizeof there) != 0 &&
            errno != EINPROGRESS) {
            drop(&peer->out[i]);
        }
    }
    for (int i = 0; i < PEER_SOCKET_ADDRESSES; i++) {
        if (peer->out[i] >= 0 && (!ready(peer->out[i], POLLOUT, until) ||
                                  send(peer->out[i], &after->token, sizeof after->token,
                                       MSG_NOSIGNAL) != (ssize_t)sizeof after->token)) {
            drop(&peer->out[i]);
        }
    }
}

int peer_socket_accept(struct peer_socket *peer)
{
    int64_t until = patience();
    int taken = -1;

    while (peer->listener >= 0 && taken < 0 && ready(peer->listener, POLLIN, until)) {
        uint64_t token = 0;
        int fd = accept4(peer->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0 && ready(fd, POLLIN, until) &&
            recv(fd, &token, sizeof token, 0) == (ssize_t)sizeof token &&
            token == peer->offer.token && send(fd, "", 1, MSG_NOSIGNAL) == 1) {
            taken = fd;
        } else {
            drop(&fd);
        }
    }
    return taken;
}

int peer_socket_confirm(struct peer_socket *peer)
{
    int64_t until = patience();
    int taken = -1;

    while (taken < 0 && trace_now() < until) {
        bool any = false;
        for (int i = 0; i < PEER_SOCKET_ADDRESSES && taken < 0; i++) {
            char word;
            if (peer->out[i] >= 0 && ready(peer->out[i], POLLIN, 0)) {
                if (recv(peer->out[i], &word, 1, 0) == 1) {
                    taken = peer->out[i];
                    peer->out[i] = -1;
                } else {
                    drop(&peer->out[i]);
                }
            }
            any = any || peer->out[i] >= 0;
        }
        if (!any) {
            break;
        }
        poll(NULL, 0, taken < 0 ? 1 : 0);
    }
    return taken;
}

void peer_socket_close(struct peer_socket *peer)
{
    drop(&peer->listener);
    for (int i = 0; i < PEER_SOCKET_ADDRESSES; i++) {
        drop(&peer->out[i]);
    }
}
