/* apart.h - a thread for calls of NCCL that block without a limit: connecting, and ending.
 *
 * The rank's main thread sleeps until the thread is done, a peer is lost, or time is up. What such a thread still
 * holds then is left to it: the process ends soon.
 */
#ifndef COMM_APART_H
#define COMM_APART_H

#include <stdatomic.h>

#include "comm/transport.h"

struct apart {
    struct group *group;
    status_t (*body)(void *arg);
    void *arg;
    atomic_int state;
    status_t result; /* of the body, once it has ended */
    char said[1024]; /* what it said, for a thread's own lines reach no log file */
};

/* Runs the body. STATUS_OK: it has ended, and `result` is what it returned. STATUS_PEER, STATUS_TIMEOUT (silent): it has
 * not, and keeps `apart` and all that it was given for ever. */
MUST_USE status_t apart_run(struct apart *apart, int64_t until);
/* Its result, said in its words. */
MUST_USE status_t apart_result(const struct apart *apart);

#endif
