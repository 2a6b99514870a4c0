/* contract_sums.c - collectives: bits, places, chunks, several under way, bytes; groups split from others. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bf16.h"
#include "base/device.h"
#include "base/log.h"
#include "base/rng.h"
#include "tests/comm/contract.h"
#include "tests/comm/rig.h"

enum { RANKS_MOST = 16, EDGE = 8 };
static const float untouched = -77.0f;
static _Thread_local struct rig_memory memory; /* where the lists are, on this rank */

/* ---- values ---- */

/* Sums of these have other bits in another order. */
static float value_of(int call, int rank, size_t i)
{
    uint64_t stream = (uint64_t)(call * RANKS_MOST + rank);
    double scale = i % 3 == 0 ? 1e6 : i % 3 == 1 ? 1.0 : 1e-4;
    return (float)((rng_uniform(7, stream, i) - 0.5) * scale);
}

static float sum_of(int call, int ranks, size_t i)
{
    float sum = value_of(call, 0, i);
    for (int r = 1; r < ranks; r++) {
        sum += value_of(call, r, i);
    }
    return sum;
}

enum pattern { EQUAL, UNLIKE, SOME_NOTHING, NOTHING, MANY, PATTERNS };

static void fill_counts(enum pattern pattern, int ranks, size_t *out)
{
    for (int r = 0; r < ranks; r++) {
        size_t of[PATTERNS] = {7, (size_t)(3 * r + 1), r % 2 == 0 ? 0 : 5, 0, 1000 + (size_t)r};
        out[r] = of[pattern];
    }
}

/* ---- a call, and what must come of it ---- */

/* `list`, or what it should have, in memory of the device under test and in pinned memory beside it. */
struct list {
    float *there, *here; /* EDGE elements behind their beginnings */
    size_t count;
};

static size_t list_bytes(const struct list *list)
{
    return (list->count + 2 * EDGE) * sizeof(float);
}

static status_t list_create(struct list *list, size_t count)
{
    void *there, *here;

    list->count = count;
    TRY(device_alloc(memory.device, MEMORY_DEVICE, list_bytes(list), "a list", &there));
    TRY(device_alloc(memory.device, MEMORY_PINNED, list_bytes(list), "a list", &here));
    list->there = (float *)there + EDGE;
    list->here = (float *)here + EDGE;
    for (size_t i = 0; i < count + 2 * EDGE; i++) {
        ((float *)here)[i] = untouched;
    }
    return STATUS_OK;
}

static void list_free(struct list *list)
{
    if (list->there != NULL) {
        device_free(memory.device, MEMORY_DEVICE, list->there - EDGE);
        device_free(memory.device, MEMORY_PINNED, list->here - EDGE);
    }
    *list = (struct list){0};
}

static status_t list_send(const struct list *list)
{
    return device_copy(memory.device, list->there - EDGE, list->here - EDGE, list_bytes(list),
                       memory.stream);
}

static status_t list_fetch(const struct list *list)
{
    TRY(device_copy(memory.device, list->here - EDGE, list->there - EDGE, list_bytes(list),
                    memory.stream));
    return device_stream_sync(memory.device, memory.stream);
}

struct trial {
    int number, rank, ranks, root;
    enum collective_kind kind;
    bool in_place;
    size_t counts[RANKS_MOST], total, before, own;
    struct list *in, *out, lists[2]; /* out: NULL in place */
    size_t in_count, out_count;
    int64_t call;
};

/* Which element of all the i-th of `in` is. */
static size_t place_of(const struct trial *trial, size_t i)
{
    return trial->kind == COLLECTIVE_ALL_GATHER ? trial->before + i : i;
}

static void trial_fill(struct trial *trial, enum pattern pattern)
{
    trial->total = trial->before = 0;
    fill_counts(pattern, trial->ranks, trial->counts);
    for (int r = 0; r < trial->ranks; r++) {
        trial->before += r < trial->rank ? trial->counts[r] : 0;
        trial->total += trial->counts[r];
    }
    trial->own = trial->counts[trial->rank];
    trial->in_count = trial->kind == COLLECTIVE_ALL_GATHER ? trial->own : trial->total;
    trial->out_count = trial->kind == COLLECTIVE_REDUCE_SCATTER ? trial->own : trial->total;
}

/* Where this rank's part begins that is in place in a list of all. */
static size_t place_in_place(const struct trial *trial, bool of_in)
{
    bool part = trial->kind == (of_in ? COLLECTIVE_ALL_GATHER : COLLECTIVE_REDUCE_SCATTER);
    return trial->in_place && part ? trial->before : 0;
}

static status_t trial_begin(struct trial *trial, enum pattern pattern,
                            struct collective *collective)
{
    trial_fill(trial, pattern);
    trial->in = &trial->lists[0];
    trial->out = trial->in_place ? NULL : &trial->lists[1];
    TRY(list_create(trial->in, trial->in_place ? trial->total : trial->in_count));
    TRY(trial->out ? list_create(trial->out, trial->out_count) : STATUS_OK);
    float *in = trial->in->here + place_in_place(trial, true);
    for (size_t i = 0; i < trial->in_count; i++) {
        in[i] = value_of(trial->number, trial->rank, place_of(trial, i));
    }
    if (trial->kind == COLLECTIVE_BROADCAST && trial->rank != trial->root) {
        for (size_t i = 0; i < trial->total; i++) {
            trial->in->here[i] = untouched;
        }
    }
    TRY(list_send(trial->in));
    TRY(trial->out ? list_send(trial->out) : STATUS_OK);
    const struct collective_call call = {.kind = trial->kind,
                                         .counts = trial->counts,
                                         .element = sizeof(float),
                                         .in = trial->in_place ? NULL : trial->in->there,
                                         .out = trial->in_place ? trial->in->there +
                                                                      place_in_place(trial, false)
                                                                : trial->out->there,
                                         .root = trial->root};
    return collective_start(collective, &call, &trial->call);
}

/* Whose value the i-th element of an all-gather is. */
static int owner_of(const struct trial *trial, size_t i)
{
    int rank = 0;
    for (size_t end = trial->counts[0]; i >= end; end += trial->counts[rank]) {
        rank++;
    }
    return rank;
}

static float expected(const struct trial *trial, size_t i)
{
    switch (trial->kind) {
    case COLLECTIVE_REDUCE_SCATTER:
        return sum_of(trial->number, trial->ranks, trial->before + i);
    case COLLECTIVE_ALL_REDUCE:
        return sum_of(trial->number, trial->ranks, i);
    case COLLECTIVE_ALL_GATHER:
        return value_of(trial->number, owner_of(trial, i), i);
    default:
        return value_of(trial->number, trial->root, i);
    }
}

/* In another order a sum may be off by what rounding makes of its addends. */
static bool is_right(const struct trial *trial, bool ordered, size_t i, float is, float should)
{
    bool sum = trial->kind == COLLECTIVE_REDUCE_SCATTER || trial->kind == COLLECTIVE_ALL_REDUCE;
    size_t at = trial->kind == COLLECTIVE_REDUCE_SCATTER ? trial->before + i : i;
    double all = 0;

    for (int r = 0; r < trial->ranks; r++) {
        all += fabs((double)value_of(trial->number, r, at));
    }
    return memcmp(&is, &should, sizeof is) == 0 ||
           (sum && !ordered && fabs((double)is - (double)should) <= 1e-7 * trial->ranks * all);
}

static status_t trial_end(struct trial *trial, struct collective *collective)
{
    TRY(collective_wait(collective, trial->call));
    const struct list *list = trial->in_place ? trial->in : trial->out;
    TRY(list_fetch(list));
    const float *out = list->here + place_in_place(trial, false);
    for (size_t i = 0; i < trial->out_count; i++) {
        float value = expected(trial, i);
        EXPECT(is_right(trial, collective_is_ordered(collective), i, out[i], value),
               "%s %d, element %zu: %.9g, not %.9g", collective_kind_name(trial->kind),
               trial->number, i, (double)out[i], (double)value);
    }
    for (int i = 1; i <= EDGE; i++) {
        EXPECT(list->here[-i] == untouched && list->here[list->count + (size_t)i - 1] == untouched,
               "%s %d wrote beside its memory", collective_kind_name(trial->kind), trial->number);
    }
    TRY(list_fetch(trial->in));
    for (size_t i = 0;
         !trial->in_place && trial->kind != COLLECTIVE_BROADCAST && i < trial->in_count; i++) {
        float value = value_of(trial->number, trial->rank, place_of(trial, i));
        EXPECT(trial->in->here[i] == value, "%s %d changed what it reads",
               collective_kind_name(trial->kind), trial->number);
    }
    list_free(&trial->lists[0]);
    list_free(&trial->lists[1]);
    return STATUS_OK;
}

/* ---- the parts ---- */

enum { UNDER_WAY = 3, TRIALS = COLLECTIVE_KINDS * PATTERNS * 2 };

static void trial_choose(struct group *group, int number, struct trial *out)
{
    int ranks = group_size(group);
    *out = (struct trial){.number = number,
                          .rank = group_rank(group),
                          .ranks = ranks,
                          .root = number % ranks,
                          .kind = (enum collective_kind)(number % COLLECTIVE_KINDS),
                          .in_place = number / COLLECTIVE_KINDS % 2 == 1};
}

/* What a rank receives in all trials, by the closed forms. */
static int64_t bytes_of(const struct trial *trial)
{
    size_t others = (size_t)trial->ranks - 1, gathered = trial->total - trial->own;
    size_t values[COLLECTIVE_KINDS] = {others * trial->own, gathered,
                                       others * trial->own + gathered,
                                       trial->rank == trial->root ? 0 : trial->total};
    return (int64_t)(values[trial->kind] * sizeof(float));
}

static void come_late(const struct trial *trial)
{
    if (trial->number % 7 == trial->rank) {
        nanosleep(&(struct timespec){0, 3000000}, NULL);
    }
}

/* Every kind, with every pattern of counts, in place and not, as many under way as may be. */
static status_t run_trials(struct group *group, struct collective *collective, struct trial *trial)
{
    int64_t bytes = 0;

    for (int i = 0; i < TRIALS + UNDER_WAY; i++) {
        struct trial *one = &trial[i % UNDER_WAY];
        if (i >= UNDER_WAY) {
            TRY(trial_end(one, collective));
            bytes += bytes_of(one);
            EXPECT(collective_bytes(collective) == bytes, "%lld bytes, not %lld",
                   (long long)collective_bytes(collective), (long long)bytes);
        }
        if (i < TRIALS) {
            trial_choose(group, i, one);
            come_late(one);
            TRY(trial_begin(one, (enum pattern)(i / (2 * COLLECTIVE_KINDS)), collective));
        }
    }
    return group_barrier(group);
}

/* ---- sums of bfloat16 ---- */

static float half_of(int call, int rank, size_t i)
{
    return bf16_to_float(bf16_from_float(value_of(call, rank, i)));
}

/* Added up in float, rounded once; or within what rounding every addition makes of it. */
static bool half_is_right(const struct trial *trial, bool ordered, size_t at, uint16_t is)
{
    float sum = half_of(trial->number, 0, at);
    double all = fabs((double)sum);

    for (int r = 1; r < trial->ranks; r++) {
        float addend = half_of(trial->number, r, at);
        sum += addend;
        all += fabs((double)addend);
    }
    double off = fabs((double)bf16_to_float(is) - (double)sum);
    return is == bf16_from_float(sum) || (!ordered && off <= trial->ranks * all / 256);
}

/* In place: a reduce-scatter or an all-reduce. */
static status_t check_half(struct trial *trial, enum pattern pattern, struct collective *collective)
{
    bool all = trial->kind == COLLECTIVE_ALL_REDUCE;

    trial_fill(trial, pattern);
    TRY(list_create(&trial->lists[0], (trial->total + 1) / 2));
    uint16_t *here = (uint16_t *)(void *)trial->lists[0].here;
    uint16_t *there = (uint16_t *)(void *)trial->lists[0].there;
    size_t first = all ? 0 : trial->before;
    for (size_t i = 0; i < trial->total; i++) {
        here[i] = bf16_from_float(value_of(trial->number, trial->rank, i));
    }
    TRY(list_send(&trial->lists[0]));
    const struct collective_call call = {.kind = trial->kind,
                                         .counts = trial->counts,
                                         .element = sizeof *here,
                                         .bf16 = true,
                                         .out = there + first};
    TRY(collective_run(collective, &call));
    TRY(list_fetch(&trial->lists[0]));
    for (size_t i = first; i < first + trial->out_count; i++) {
        EXPECT(half_is_right(trial, collective_is_ordered(collective), i, here[i]),
               "%s of bfloat16, element %zu: %.9g", collective_kind_name(trial->kind), i,
               (double)bf16_to_float(here[i]));
    }
    list_free(&trial->lists[0]);
    return STATUS_OK;
}

static status_t check_halves(struct group *group, struct collective *collective,
                             struct trial *trial)
{
    static const enum pattern patterns[] = {EQUAL, UNLIKE, SOME_NOTHING, MANY};

    for (size_t i = 0; i < 2 * sizeof patterns / sizeof patterns[0]; i++) {
        trial_choose(group, TRIALS + (int)i, trial);
        trial->kind = i % 2 ? COLLECTIVE_ALL_REDUCE : COLLECTIVE_REDUCE_SCATTER;
        TRY(check_half(trial, patterns[i / 2], collective));
    }
    return group_barrier(group);
}

static status_t check_all(struct group *group, const char *carrier, size_t chunk)
{
    const struct collective_options options = {.under_way = UNDER_WAY,
                                               .chunk = chunk,
                                               .device = memory.device,
                                               .stream = memory.stream,
                                               .carrier = carrier};
    struct trial trial[UNDER_WAY] = {0};
    struct collective *collective;

    TRY(collective_create(group, &options, &collective));
    EXPECT(group_size(group) == 1 || strcmp(collective_carrier(collective), carrier) == 0,
           "carried by %s", collective_carrier(collective));
    status_t status = run_trials(group, collective, trial);
    if (status == STATUS_OK) {
        status = check_halves(group, collective, &trial[0]);
    }
    collective_destroy(collective);
    for (int i = 0; i < UNDER_WAY; i++) {
        list_free(&trial[i].lists[0]);
        list_free(&trial[i].lists[1]);
    }
    return status;
}

status_t contract_sums(struct group *group, const char *carrier)
{
    struct device *own = NULL;

    memory = rig_memory;
    if (memory.device == NULL) {
        TRY(device_open(DEVICE_HOST, 0, &own));
        memory.device = own;
    }
    status_t status = check_all(group, carrier, 0);
    if (status == STATUS_OK) {
        status = check_all(group, carrier, 64); /* bytes: many rounds */
    }
    if (own != NULL) {
        device_close(own);
    }
    return status;
}

/* ---- groups split from others ---- */

static status_t check_members(struct group *group, struct group *part, int color)
{
    int rank = group_rank(group), size = group_size(group), count = 0;
    int all[RANKS_MOST], expected_rank = 0;

    for (int r = 0; r < size; r++) {
        count += r % 2 == color;
        expected_rank += r % 2 == color && r > rank; /* keys descend */
    }
    EXPECT(group_size(part) == count && group_rank(part) == expected_rank, "rank %d is %d of %d",
           rank, group_rank(part), group_size(part));
    TRY(group_allgather(part, &rank, sizeof rank, all));
    for (int i = 0; i < count; i++) {
        EXPECT(all[i] == 2 * (count - 1 - i) + color, "member %d is rank %d", i, all[i]);
    }
    EXPECT(group_local_size(part) <= count && group_local_rank(part) < group_local_size(part),
           "rank %d of %d on its host", group_local_rank(part), group_local_size(part));
    return group_same(part, (uint64_t)color, "the color");
}

/* What a group can do its parts can, side by side, with messages that give ranks the numbers of the whole. */
static status_t check_failing(struct group *part, int color)
{
    int last = group_size(part) - 1;
    char text[512] = "", words[64];

    log_capture(text, sizeof text);
    status_t status = group_agree(part, group_rank(part) == last ? STATUS_NUMERIC : STATUS_OK);
    log_capture(NULL, 0);
    snprintf(words, sizeof words, "rank %d failed", color); /* the last of a part is its lowest */
    EXPECT(status == (group_rank(part) == last ? STATUS_NUMERIC : STATUS_PEER), "%s",
           status_name(status));
    EXPECT(group_rank(part) == last || strstr(text, words) != NULL, "it says: %s", text);
    return STATUS_OK;
}

status_t contract_split(struct group *group, const char *transport)
{
    int color = group_rank(group) % 2;
    struct group *part, *half;

    TRY(group_split(group, color, -group_rank(group), &part));
    TRY(check_members(group, part, color));
    TRY(check_failing(part, color));
    TRY(contract_sums(part, "host"));
    if (group_size(part) > 1) {
        TRY(contract_wire(part, transport));
    }
    TRY(group_split(part, group_rank(part) > 0, 0, &half)); /* a part of a part */
    TRY(contract_sums(half, "host"));
    TRY(group_barrier(group));
    group_close(half);
    group_close(part);
    return group_barrier(group);
}
