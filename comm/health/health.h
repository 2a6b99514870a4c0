/* health.h - who is alive: a thread that does not depend on what the rank computes.
 *
 *     a rank of this host ends      its pidfd tells at once
 *     a neighbour elsewhere ends    the socket that ties us to it closes (peer_socket.h)
 *     a rank stops or is cut off    its successor in the ring of beats misses it after heartbeat_s
 *     a rank fails by itself        it says so before it ends (health_give_up)
 *     the launcher ends the job     SIGTERM; health owns the signal while it runs (group_on_sigterm)
 *
 * Whoever learns first tells all others, so that each names the rank that was lost first and not one
 * that left because of it. Every rank then says one line (who is lost, what it was doing itself),
 * fails the group and, if the process is still there GRACE_S later, ends it by force.
 *
 * Knows no MPI: who opens it lends a way to send notes between ranks.
 */
#ifndef COMM_HEALTH_H
#define COMM_HEALTH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "comm/transport.h"

enum { HEALTH_GRACE_S = 5 };

enum health_word { HEALTH_BEAT, HEALTH_LOST };
enum health_cause { CAUSE_DIED, CAUSE_STOPPED, CAUSE_GAVE_UP, CAUSE_TERMINATED };

struct health_note {
    int32_t word;    /* enum health_word */
    int32_t subject; /* HEALTH_LOST: the rank that is lost */
    int32_t cause;   /* enum health_cause */
};

struct health_line { /* called by the health thread only; nothing blocks */
    void *arg;
    void (*send)(void *arg, int rank, const struct health_note *note);
    bool (*receive)(void *arg, int *out_rank, struct health_note *out); /* false: none now */
    bool (*idle)(void *arg);                                            /* all sends have left */
};

struct health_peer {
    int64_t pid;
    bool visible;  /* its pid means something here */
    int socket[2]; /* sockets that close when it ends, -1 = none; owned by health from now on */
};

struct health;

/* What SIGTERM asks for first (comm.h); NULL: it ends the process. */
void health_on_sigterm(void (*ask)(void));
/* `peers` [size] is copied. */
MUST_USE status_t health_start(struct group *group, const struct health_peer *peers,
                               const struct health_line *line, struct health **out);
/* From now on the end of a rank is no news (every rank has said goodbye). */
void health_leave(struct health *health);
void health_stop(struct health *health);
/* Tells the others that this rank gives up, unless a rank was lost before, and ends the process. */
void health_give_up(struct health *health, int code) __attribute__((noreturn));

#endif
