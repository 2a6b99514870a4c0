/* straggler.c - medians of windows, and who stands out (straggler.h). */
#include "runtime/straggler.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    WINDOW = 16,     /* steps, at least */
    SAMPLES = 256,   /* steps of a window that count: its newest */
    TELL_AGAIN = 16, /* windows */
    WARM_UP = 4      /* steps that count for nothing */
};
#define WINDOW_S 10.0 /* seconds of a window, at least: short steps are noisy ones */

struct straggler {
    int ranks;
    double limit;
    int64_t skipped;
    int64_t steps;  /* of the window */
    double seconds; /* of the window */
    double *taken;  /* [ranks][SAMPLES] step n of the window at n mod SAMPLES */
    double *least;  /* [ranks] median of a window; 0 = none yet */
    double *ratio;  /* [ranks] of the newest window by the least */
    double *sorted; /* [max(ranks, SAMPLES)] scratch */
    int suspect;    /* of the window before; -1 = nobody */
    int told;       /* rank; -1 = nobody */
    int since;      /* windows since it was told */
};

status_t straggler_create(int ranks, double limit, struct straggler **out)
{
    *out = NULL;
    if (ranks < 2 || limit <= 0) {
        return STATUS_OK;
    }
    struct straggler *self = calloc(1, sizeof *self);
    size_t count = (size_t)ranks;
    if (self) {
        self->ranks = ranks;
        self->limit = limit;
        self->suspect = self->told = -1;
        self->taken = calloc(count * SAMPLES, sizeof *self->taken);
        self->least = calloc(count, sizeof *self->least);
        self->ratio = calloc(count, sizeof *self->ratio);
        self->sorted = calloc(count > SAMPLES ? count : SAMPLES, sizeof *self->sorted);
    }
    if (!self || !self->taken || !self->least || !self->ratio || !self->sorted) {
        straggler_destroy(self);
        return FAIL(STATUS_NOMEM, "no memory to compare %d ranks", ranks);
    }
    *out = self;
    return STATUS_OK;
}

void straggler_destroy(struct straggler *self)
{
    if (self) {
        free(self->taken);
        free(self->least);
        free(self->ratio);
        free(self->sorted);
        free(self);
    }
}

void straggler_add(struct straggler *self, int rank, double seconds)
{
    if (self) {
        self->taken[rank * SAMPLES + (int)(self->steps % SAMPLES)] = seconds;
    }
}

static int ascending(const void *one, const void *other)
{
    const double *a = one, *b = other;
    return (*a > *b) - (*a < *b);
}

/* Of values [count], which it sorts. */
static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, ascending);
    return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

static void find_ratios(struct straggler *self)
{
    int samples = self->steps < SAMPLES ? (int)self->steps : SAMPLES;
    for (int rank = 0; rank < self->ranks; rank++) {
        memcpy(self->sorted, self->taken + rank * SAMPLES, (size_t)samples * sizeof *self->sorted);
        double now = median(self->sorted, samples);
        if (now > 0 && (self->least[rank] <= 0 || now < self->least[rank])) {
            self->least[rank] = now;
        }
        self->ratio[rank] = self->least[rank] > 0 ? now / self->least[rank] : 1;
    }
}

/* By how much the rank's ratio is above that of the others. */
static double excess_of(const struct straggler *self, int rank)
{
    int others = 0;
    for (int r = 0; r < self->ranks; r++) {
        if (r != rank) {
            self->sorted[others++] = self->ratio[r];
        }
    }
    return self->ratio[rank] / median(self->sorted, others) - 1;
}

static int find_worst(const struct straggler *self, double *out_excess)
{
    int worst = 0;
    *out_excess = -1;
    for (int rank = 0; rank < self->ranks; rank++) {
        double excess = excess_of(self, rank);
        if (excess > *out_excess) {
            *out_excess = excess;
            worst = rank;
        }
    }
    return worst;
}

static void judge(struct straggler *self, int64_t step, char *out, size_t size)
{
    double excess;
    int worst = find_worst(self, &excess);
    bool slow = excess > self->limit, again = slow && worst == self->suspect;
    self->suspect = slow ? worst : -1;
    self->since++;
    if (again && (worst != self->told || self->since >= TELL_AGAIN)) {
        snprintf(out, size,
                 "rank %d has become slower: in steps %lld to %lld its operations took %.1f ms a "
                 "step, at "
                 "their best %.1f ms; that is %.0f %% more than what the other ranks have lost "
                 "(health.straggler)",
                 worst, (long long)(step - self->steps + 1), (long long)step,
                 self->ratio[worst] * self->least[worst] * 1e3, self->least[worst] * 1e3,
                 excess * 100);
        self->told = worst;
        self->since = 0;
    } else if (!slow && self->told >= 0) {
        snprintf(out, size, "rank %d is as quick as the others again, in steps %lld to %lld",
                 self->told, (long long)(step - self->steps + 1), (long long)step);
        self->told = -1;
    }
}

void straggler_step(struct straggler *self, int64_t step, double seconds, char *out, size_t size)
{
    out[0] = '\0';
    if (!self) {
        return;
    }
    if (self->skipped < WARM_UP) {
        self->skipped++;
        return;
    }
    self->steps++;
    self->seconds += seconds;
    if (self->steps >= WINDOW && self->seconds >= WINDOW_S) {
        find_ratios(self);
        judge(self, step, out, size);
        self->steps = 0;
        self->seconds = 0;
    }
}
