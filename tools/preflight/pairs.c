/* pairs.c - the rate between each two ranks. */
#include <stdlib.h>
#include <string.h>

#include "base/trace.h"
#include "tools/preflight/preflight.h"

enum { SLOTS = 4, REPEATS = 3 };
static const size_t bytes[] = {(size_t)8 << 20};

/* Round `round` of a tournament of `ranks` players: who meets is next to each other in the order. The first stays, the
 * others move on by one place a round; an odd number of ranks has one seat that nobody takes, whose neighbour comes
 * last. */
static void order_of(int ranks, int round, int *out)
{
    int seats = ranks + ranks % 2, at = 0, alone = -1;
    for (int i = 0; i < seats / 2; i++) {
        int pair[2] = {i == 0 ? 0 : 1 + (i - 1 + round) % (seats - 1),
                       1 + (seats - 2 - i + round) % (seats - 1)};
        if (pair[0] == ranks || pair[1] == ranks) {
            alone = pair[0] == ranks ? pair[1] : pair[0];
        } else {
            out[at++] = pair[0];
            out[at++] = pair[1];
        }
    }
    if (alone >= 0) {
        out[at] = alone;
    }
}

/* bytes/s of this rank's pair, both ways at once, the best of the repeats; 0 without a partner. */
static status_t measure_pair(const struct bench_place *place, struct meter *meter, double *out)
{
    int count = device_kind(place->device) == DEVICE_CUDA ? 32 : 8;
    *out = 0;
    for (int i = 0; i <= REPEATS; i++) { /* the first is not counted */
        TRY(group_barrier(place->group));
        if (meter_partner(meter) < 0) {
            continue;
        }
        int64_t start = trace_now();
        TRY(meter_run(meter, METER_BOTH, 0, count, NULL));
        TRY(meter_settle(meter));
        double rate = (double)bytes[0] * count / ((double)(trace_now() - start) * 1e-9);
        *out = i > 0 && rate > *out ? rate : *out;
    }
    return STATUS_OK;
}

static status_t measure_round(const struct bench_place *place, const int *order, double *rates)
{
    int ranks = group_size(place->group);
    double mine = 0, all[ranks];
    struct meter *meter;
    struct meter_options options = {.device = place->device,
                                    .stream = place->stream,
                                    .bytes = bytes,
                                    .sizes = 1,
                                    .slots = SLOTS,
                                    .order = order};
    TRY(meter_create(place->group, place->transport, &options, &meter));
    status_t status = meter_verify(meter, 0);
    if (status == STATUS_OK) {
        status = measure_pair(place, meter, &mine);
    }
    meter_destroy(meter);
    TRY(status);
    TRY(group_allgather(place->group, &mine, sizeof mine, all));
    for (int i = 0; i + 1 < ranks; i += 2) {
        int one = order[i], other = order[i + 1];
        double slower = all[one] < all[other] ? all[one] : all[other];
        rates[one * ranks + other] = rates[other * ranks + one] = slower;
    }
    return STATUS_OK;
}

status_t pairs_measure(const struct bench_place *place, double seconds, double *rates,
                       int *out_left)
{
    int ranks = group_size(place->group), rounds = ranks + ranks % 2 - 1;
    int order[ranks];
    int64_t until = trace_now() + (int64_t)(seconds * 1e9);
    memset(rates, 0, (size_t)ranks * (size_t)ranks * sizeof *rates);
    *out_left = 0;
    for (int round = 0; ranks > 1 && round < rounds; round++) {
        char more = trace_now() < until;
        TRY(group_broadcast(place->group, &more, sizeof more, 0));
        if (!more) {
            *out_left += (rounds - round) * (ranks / 2);
            break;
        }
        order_of(ranks, round, order);
        TRY(measure_round(place, order, rates));
    }
    return STATUS_OK;
}
