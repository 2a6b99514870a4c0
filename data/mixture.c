/* mixture.c - a fair schedule of sources. */
#include "data/mixture.h"

#include <stdlib.h>

struct turn {
    int32_t source, index; /* within the period */
};

struct mixture {
    int64_t period;
    int64_t *weight;   /* [sources] */
    struct turn *turn; /* [period] */
};

/* Tijdeman, The chairman assignment problem (1980). With k sources, source i is due at turn n (from 1)
 * once its share n q/P is ahead of what it got by 1/(2k - 2) or more; of those due the one goes first
 * that can wait least. All times P (2k - 2), so that everything is whole. */
static int due_source(const struct mixture *mixture, int sources, const int32_t *got, int64_t n)
{
    int64_t P = mixture->period, steps = 2 * (int64_t)sources - 2;
    int best = -1;
    __int128 best_wait = 0;

    for (int i = 0; i < sources; i++) {
        __int128 ahead = (__int128)steps * (n * mixture->weight[i] - P * got[i]);
        if (ahead < P) {
            continue;
        }
        __int128 wait = (steps - 1) * P - ahead; /* over weight[i]: the turns it can wait */
        if (best < 0 || wait * mixture->weight[best] < best_wait * mixture->weight[i]) {
            best = i;
            best_wait = wait;
        }
    }
    CHECK(best >= 0, "no source is due at turn %lld", (long long)n);
    return best;
}

static void fill_turns(struct mixture *mixture, int sources)
{
    int32_t got[MIXTURE_SOURCES] = {0};

    for (int64_t n = 1; n <= mixture->period; n++) {
        int source = sources > 1 ? due_source(mixture, sources, got, n) : 0;
        mixture->turn[n - 1] = (struct turn){source, got[source]++};
    }
}

status_t mixture_create(const int64_t *weights, int sources, struct mixture **out)
{
    struct mixture *mixture = calloc(1, sizeof *mixture);

    CHECK(sources >= 1 && sources <= MIXTURE_SOURCES, "%d sources", sources);
    if (mixture != NULL) {
        mixture->weight = calloc((size_t)sources, sizeof *mixture->weight);
        for (int i = 0; i < sources && mixture->weight != NULL; i++) {
            CHECK(weights[i] >= 1 && weights[i] <= MIXTURE_PERIOD, "weight %lld",
                  (long long)weights[i]);
            mixture->weight[i] = weights[i];
            mixture->period += weights[i];
        }
        CHECK(mixture->period <= MIXTURE_PERIOD, "weights of %lld", (long long)mixture->period);
        mixture->turn = calloc((size_t)mixture->period + 1, sizeof *mixture->turn);
    }
    if (mixture == NULL || mixture->weight == NULL || mixture->turn == NULL) {
        mixture_destroy(mixture);
        return FAIL(STATUS_NOMEM, "no memory for a mixture of %d sources", sources);
    }
    fill_turns(mixture, sources);
    *out = mixture;
    return STATUS_OK;
}

void mixture_destroy(struct mixture *mixture)
{
    if (mixture != NULL) {
        free(mixture->weight);
        free(mixture->turn);
        free(mixture);
    }
}

void mixture_at(const struct mixture *mixture, int64_t s, int *out_source, int64_t *out_index)
{
    CHECK(s >= 0, "sequence %lld", (long long)s);
    const struct turn *turn = &mixture->turn[s % mixture->period];

    *out_source = turn->source;
    *out_index = s / mixture->period * mixture->weight[turn->source] + turn->index;
}
