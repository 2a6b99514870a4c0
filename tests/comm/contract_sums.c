/* contract_sums.c - collectives: bits, places, chunks, several under way, bytes; groups split from others. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/rng.h"
#include "tests/comm/contract.h"
#include "tests/comm/rig.h"

enum { RANKS_MOST = 16, EDGE = 8 };
static const float untouched = -77.0f;

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

struct trial {
    int number, rank, ranks, root;
    enum collective_kind kind;
    bool in_place;
    size_t counts[RANKS_MOST], total, before, own;
    float *in, *out; /* with EDGE untouched elements before and behind */
    size_t in_count, out_count;
    int64_t call;
};

static float *make_list(size_t count)
{
    float *list = malloc((count + 2 * EDGE) * sizeof *list);
    for (size_t i = 0; list != NULL && i < count + 2 * EDGE; i++) {
        list[i] = untouched;
    }
    return list != NULL ? list + EDGE : NULL;
}

static void free_list(float *list)
{
    if (list != NULL) {
        free(list - EDGE);
    }
}

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

static status_t trial_begin(struct trial *trial, enum pattern pattern,
                            struct collective *collective)
{
    trial_fill(trial, pattern);
    size_t most = trial->in_place ? trial->total : trial->in_count;
    trial->in = make_list(most);
    trial->out = trial->in_place ? NULL : make_list(trial->out_count);
    EXPECT(trial->in != NULL && (trial->in_place || trial->out != NULL), "no memory");
    bool shifted = trial->in_place && trial->kind == COLLECTIVE_ALL_GATHER;
    float *in = trial->in + (shifted ? trial->before : 0);
    for (size_t i = 0; i < trial->in_count; i++) {
        in[i] = value_of(trial->number, trial->rank, place_of(trial, i));
    }
    struct collective_call call = {.kind = trial->kind,
                                   .counts = trial->counts,
                                   .element = sizeof(float),
                                   .in = trial->in_place ? NULL : trial->in,
                                   .out = trial->in_place ? trial->in : trial->out,
                                   .root = trial->root};
    if (trial->in_place && trial->kind == COLLECTIVE_REDUCE_SCATTER) {
        call.out = trial->in + trial->before;
    }
    if (trial->kind == COLLECTIVE_BROADCAST && trial->rank != trial->root) {
        for (size_t i = 0; i < trial->total; i++) {
            trial->in[i] = untouched;
        }
    }
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

static status_t trial_end(struct trial *trial, struct collective *collective)
{
    TRY(collective_wait(collective, trial->call));
    const float *list = trial->in_place ? trial->in : trial->out;
    const float *out = list;
    size_t listed = trial->in_place ? trial->total : trial->out_count;
    if (trial->in_place && trial->kind == COLLECTIVE_REDUCE_SCATTER) {
        out = list + trial->before;
    }
    for (size_t i = 0; i < trial->out_count; i++) {
        float value = expected(trial, i);
        EXPECT(memcmp(&out[i], &value, sizeof value) == 0, "%s %d, element %zu: %.9g, not %.9g",
               collective_kind_name(trial->kind), trial->number, i, (double)out[i], (double)value);
    }
    for (int i = 1; i <= EDGE; i++) {
        EXPECT(list[-i] == untouched && list[listed + (size_t)i - 1] == untouched,
               "%s %d wrote beside its memory", collective_kind_name(trial->kind), trial->number);
    }
    for (size_t i = 0;
         !trial->in_place && trial->kind != COLLECTIVE_BROADCAST && i < trial->in_count; i++) {
        float value = value_of(trial->number, trial->rank, place_of(trial, i));
        EXPECT(trial->in[i] == value, "%s %d changed what it reads",
               collective_kind_name(trial->kind), trial->number);
    }
    free_list(trial->in);
    free_list(trial->out);
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
static status_t check_all(struct group *group, size_t chunk)
{
    const struct collective_options options = {.under_way = UNDER_WAY, .chunk = chunk};
    struct trial trial[UNDER_WAY];
    struct collective *collective;
    int64_t bytes = 0;

    TRY(collective_create(group, &options, &collective));
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
    TRY(group_barrier(group));
    collective_destroy(collective);
    return STATUS_OK;
}

status_t contract_sums(struct group *group)
{
    TRY(check_all(group, 0));
    return check_all(group, 64); /* bytes: many rounds */
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
    TRY(contract_sums(part));
    if (group_size(part) > 1) {
        TRY(contract_wire(part, transport));
    }
    TRY(group_split(part, group_rank(part) > 0, 0, &half)); /* a part of a part */
    TRY(contract_sums(half));
    TRY(group_barrier(group));
    group_close(half);
    group_close(part);
    return group_barrier(group);
}
