/* tether.c - sockets that tell when a neighbour on another host ends. */
#include "comm/tether.h"

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
    int64_t left = (until - trace_now()) / 1000000;

    return poll(&entry, 1, left > 0 ? (int)left : 0) > 0 && (entry.revents & events) != 0;
}

static void drop(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

static void list_addresses(struct tether_offer *offer)
{
    struct ifaddrs *all;

    if (getifaddrs(&all) != 0) {
        return;
    }
    for (struct ifaddrs *i = all; i != NULL && offer->count < TETHER_ADDRESSES; i = i->ifa_next) {
        if (i->ifa_addr != NULL && i->ifa_addr->sa_family == AF_INET &&
            (i->ifa_flags & IFF_UP) != 0 && (i->ifa_flags & IFF_LOOPBACK) == 0) {
            struct sockaddr_in address;
            memcpy(&address, i->ifa_addr, sizeof address);
            offer->address[offer->count++] = address.sin_addr.s_addr;
        }
    }
    freeifaddrs(all);
}

void tether_open(struct tether *tether)
{
    struct sockaddr_in any = {.sin_family = AF_INET};
    socklen_t length = sizeof any;

    memset(tether, 0, sizeof *tether);
    for (int i = 0; i < TETHER_ADDRESSES; i++) {
        tether->out[i] = -1;
    }
    tether->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (tether->listener < 0 ||
        getrandom(&tether->offer.token, sizeof tether->offer.token, 0) !=
            (ssize_t)sizeof tether->offer.token ||
        bind(tether->listener, (struct sockaddr *)&any, sizeof any) != 0 ||
        listen(tether->listener, TETHER_ADDRESSES) != 0 ||
        getsockname(tether->listener, (struct sockaddr *)&any, &length) != 0) {
        drop(&tether->listener);
        return;
    }
    tether->offer.port = any.sin_port;
    list_addresses(&tether->offer);
}

void tether_reach(struct tether *tether, const struct tether_offer *after)
{
    int64_t until = patience();

    for (int i = 0; after->port != 0 && i < after->count && i < TETHER_ADDRESSES; i++) {
        struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = after->port};
        there.sin_addr.s_addr = after->address[i];
        tether->out[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (tether->out[i] >= 0 &&
            connect(tether->out[i], (struct sockaddr *)&there, sizeof there) != 0 &&
            errno != EINPROGRESS) {
            drop(&tether->out[i]);
        }
    }
    for (int i = 0; i < TETHER_ADDRESSES; i++) {
        if (tether->out[i] >= 0 && (!ready(tether->out[i], POLLOUT, until) ||
                                    send(tether->out[i], &after->token, sizeof after->token,
                                         MSG_NOSIGNAL) != (ssize_t)sizeof after->token)) {
            drop(&tether->out[i]);
        }
    }
}

int tether_accept(struct tether *tether)
{
    int64_t until = patience();
    int taken = -1;

    while (tether->listener >= 0 && taken < 0 && ready(tether->listener, POLLIN, until)) {
        uint64_t token = 0;
        int fd = accept4(tether->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0 && ready(fd, POLLIN, until) &&
            recv(fd, &token, sizeof token, 0) == (ssize_t)sizeof token &&
            token == tether->offer.token && send(fd, "", 1, MSG_NOSIGNAL) == 1) {
            taken = fd;
        } else {
            drop(&fd);
        }
    }
    return taken;
}

int tether_confirm(struct tether *tether)
{
    int64_t until = patience();
    int taken = -1;

    while (taken < 0 && trace_now() < until) {
        bool any = false;
        for (int i = 0; i < TETHER_ADDRESSES && taken < 0; i++) {
            char word;
            if (tether->out[i] >= 0 && ready(tether->out[i], POLLIN, 0)) {
                if (recv(tether->out[i], &word, 1, 0) == 1) {
                    taken = tether->out[i];
                    tether->out[i] = -1;
                } else {
                    drop(&tether->out[i]);
                }
            }
            any = any || tether->out[i] >= 0;
        }
        if (!any) {
            break;
        }
        poll(NULL, 0, taken < 0 ? 1 : 0);
    }
    return taken;
}

void tether_close(struct tether *tether)
{
    drop(&tether->listener);
    for (int i = 0; i < TETHER_ADDRESSES; i++) {
        drop(&tether->out[i]);
    }
}
