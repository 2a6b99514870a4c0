/* contract_links.c - messages that are kept in order: what is needed first overtakes, whatever was put before. */
#include "tests/comm/contract.h"

#include <inttypes.h>

#include "comm/progress/link_share.h"
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

/* Every rank sees what all others of its host have said. */
static status_t check_share(struct group *group)
{
    struct link_share *share;
    int rank = group_rank(group), size = group_size(group);
    int64_t first, sum = 0;

    TRY(link_share_create(group, &share));
    EXPECT(share != NULL, "the ranks of a host share no memory");
    EXPECT(link_share_others(share, &first) == 0 && first == INT64_MAX, "something is under way");
    TRY(group_barrier(group));
    link_share_say(share, 100 + rank, 10 + rank);
    TRY(group_barrier(group));
    for (int i = 0; i < size; i++) {
        sum += i == rank ? 0 : 100 + i;
    }
    int64_t others = link_share_others(share, &first);
    EXPECT(others == sum && first == 10 + (rank == 0), "%" PRId64 " bytes and order %" PRId64,
           others, first);
    TRY(group_barrier(group));
    if (rank == 0) { /* what a rank that leaves had under way counts no more */
        link_share_destroy(share);
        TRY(group_barrier(group));
        return group_barrier(group);
    }
    TRY(group_barrier(group));
    others = link_share_others(share, &first);
    EXPECT(others == sum - 100 && first == (rank == 1 && size > 2 ? 12
                                            : rank == 1           ? INT64_MAX
                                                                  : 11),
           "%" PRId64 " bytes and order %" PRId64 " after rank 0 has left", others, first);
    TRY(group_barrier(group));
    link_share_destroy(share);
    return STATUS_OK;
}

status_t contract_links(struct group *group, const char *transport)
{
    TRY(exchange(group, transport, true));
    TRY(exchange(group, transport, false));
    /* And all that every wire must do, in parts that divide nothing, one of them under way, and several. */
    rig_links = (struct wire_links){.window = 1, .part = 30011, .by_order = true, .all = true};
    TRY(contract_wire(group, transport));
    TRY(check_share(group));
    rig_links = (struct wire_links){.window = 700000, .part = 100003, .shared = true, .all = true};
    return contract_wire(group, transport);
}
