/* doze.h - how a progress thread sleeps that must look again by itself: until it is woken, or for a nap. */
#ifndef COMM_DOZE_H
#define COMM_DOZE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct doze {
    pthread_mutex_t mutex;
    pthread_cond_t condition;
    bool woken;
};

void doze_init(struct doze *doze);
void doze_fini(struct doze *doze);
/* Any thread: a sleep that is under way ends, else the next one does at once. */
void doze_wake(struct doze *doze);
/* Until woken or, if `nap` ns > 0, for so long. */
void doze_sleep(struct doze *doze, int64_t nap);

#endif
