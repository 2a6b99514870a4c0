/* contract_links.c - messages that are kept in order: what is needed first overtakes, whatever was put before. */
#include "tests/comm/contract.h"

#include <inttypes.h>

#include "tests/comm/rig.h"

/* In the order of the puts: two large ones, then a small one. */
enum { FIRST, SECOND, SMALL, CHANNELS };
enum { PART = 4096, LARGE = 8 << 20, ROUNDS = 3 };

static const struct wire_channel channels[CHANNELS] = {
    [FIRST] = {.to = 1, .bytes = LARGE, .slots = 1},
    [SECOND] = {.to = 1, .bytes = LARGE, .slots = 1},
    [SMALL] = {.to = 1, .bytes = PART, .slots = 1}};
static const int64_t order[CHANNELS] = {[FIRST] = 9, [SECOND] = 5, [SMALL] = 1};

static status_t put_all(struct rig *rig, int64_t m)
{
    for (int i = 0; i < CHANNELS; i++) {
        TRY(rig_fill(rig, rig_source(rig, i, 0), i, m));
    }
    TRY(rig_settle(rig));
    TRY(group_barrier(rig->group)); /* all are posted */
    for (int i = 0; i < CHANNELS; i++) {
        TRY(wire_put(rig->wire, i, 0, m, 10 * m + order[i], rig_source(rig, i, 0)));
    }
    for (int i = 0; i < CHANNELS; i++) {
        TRY(wire_sent(rig->wire, i, m));
    }
    return STATUS_OK;
}

static status_t take_all(struct rig *rig, int64_t m, bool by_order)
{
    struct wire_stamp stamp[CHANNELS];

    for (int i = 0; i < CHANNELS; i++) {
        TRY(wire_post(rig->wire, i, 0, m));
    }
    TRY(rig_settle(rig));
    TRY(group_barrier(rig->group));
    for (int i = 0; i < CHANNELS; i++) {
        TRY(wire_wait(rig->wire, i, 0, m, &stamp[i]));
        TRY(rig_take(rig, i, 0, m));
    }
    if (rig->streamed) { /* stamps are for waits that stop the caller */
        return STATUS_OK;
    }
    const int *expected =
        by_order ? (const int[]){SMALL, SECOND, FIRST} : (const int[]){FIRST, SECOND, SMALL};
    for (int i = 1; i < CHANNELS; i++) {
        int a = expected[i - 1], b = expected[i];
        EXPECT(stamp[a].landed <= stamp[b].landed,
               "message %d landed %" PRId64 " us after message %d", a,
               (stamp[a].landed - stamp[b].landed) / 1000, b);
    }
    return STATUS_OK;
}

static status_t exchange(struct group *group, const char *transport, bool by_order)
{
    struct rig rig;
    status_t status = STATUS_OK;

    rig_links =
        (struct wire_links){.window = 2 * PART, .part = PART, .by_order = by_order, .all = true};
    TRY(rig_open(&rig, group, transport, channels, CHANNELS, 1, CHANNELS * ROUNDS));
    for (int64_t m = 0; m < ROUNDS && status == STATUS_OK; m++) {
        if (group_rank(group) == 0) {
            status = put_all(&rig, m);
        } else if (group_rank(group) == 1) {
            status = take_all(&rig, m, by_order);
        } else {
            status = group_barrier(group);
        }
    }
    if (status == STATUS_OK) {
        status = rig_check(&rig);
    }
    if (status == STATUS_OK) {
        status = group_barrier(group);
    }
    rig_close(&rig);
    return status;
}

status_t contract_links(struct group *group, const char *transport)
{
    TRY(exchange(group, transport, true));
    TRY(exchange(group, transport, false));
    /* And all that every wire must do, in parts that divide nothing, one of them under way, and several. */
    rig_links = (struct wire_links){.window = 1, .part = 30011, .by_order = true, .all = true};
    TRY(contract_wire(group, transport));
    rig_links = (struct wire_links){.window = 700000, .part = 100003, .all = true};
    return contract_wire(group, transport);
}
