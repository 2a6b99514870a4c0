/* judge.c - what is wrong with which host. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench.h"
#include "tools/preflight/preflight.h"

/* Shares of the median below which a rank or a pair is wrong: GPUs of one kind are alike within a few percent, cores
 * that are shared with others are not. */
#define GPU_SHARE 0.9
#define HOST_SHARE 0.5
#define PAIR_SHARE 0.5
#define LINE_SHARE 0.25 /* of what the adapter can do, between hosts */
#define MIB (INT64_C(1) << 20)
#define GIB (INT64_C(1) << 30)
#define CLOCK_WRONG 1.0 /* seconds */
#define CLOCK_APART 0.1

struct judging {
    const struct judged *what;
    FILE *out;
    int wrong;
};

__attribute__((format(printf, 3, 4))) static void wrong(struct judging *self, int rank,
                                                        const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(self->out, "WRONG    host %s (rank %d): ", self->what->facts[rank].host, rank);
    vfprintf(self->out, format, arguments);
    fputc('\n', self->out);
    va_end(arguments);
    self->wrong++;
}

__attribute__((format(printf, 3, 4))) static void warning(const struct judging *self, int rank,
                                                          const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(self->out, "warning  host %s (rank %d): ", self->what->facts[rank].host, rank);
    vfprintf(self->out, format, arguments);
    fputc('\n', self->out);
    va_end(arguments);
}

static bool same_host(const struct judging *self, int one, int other)
{
    return strcmp(self->what->facts[one].host, self->what->facts[other].host) == 0;
}

/* Is this the first rank of its host? */
static bool speaks(const struct judging *self, int rank)
{
    int first = 0;
    while (!same_host(self, first, rank)) {
        first++;
    }
    return first == rank;
}

/* Sorts them; 0 of none. */
static double median(double *values, int count)
{
    return count > 0 ? bench_value_of(values, count).median : 0;
}

/* ---- versions ---- */

/* What most ranks have, by the offset of a text in struct facts. */
static const char *usual(const struct judging *self, size_t offset)
{
    const char *best = "";
    int most = 0;
    for (int r = 0; r < self->what->ranks; r++) {
        const char *text = (const char *)&self->what->facts[r] + offset;
        int same = 0;
        for (int other = 0; other < self->what->ranks; other++) {
            same += strcmp(text, (const char *)&self->what->facts[other] + offset) == 0;
        }
        if (same > most) {
            most = same;
            best = text;
        }
    }
    return best;
}

static void judge_versions(struct judging *self)
{
    static const struct {
        size_t offset;
        const char *name;
        bool fault;
    } texts[] = {
        {offsetof(struct facts, program), "muddpipe", true},
        {offsetof(struct facts, libraries), "libraries", true},
        {offsetof(struct facts, driver), "GPU driver", true},
        {offsetof(struct facts, computes), "what it computes on", true},
        {offsetof(struct facts, processor), "processor", false},
        {offsetof(struct facts, system), "kernel", false},
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        const char *most = usual(self, texts[i].offset);
        for (int r = 0; r < self->what->ranks; r++) {
            const char *own = (const char *)&self->what->facts[r] + texts[i].offset;
            if (strcmp(own, most) == 0) {
                continue;
            }
            if (texts[i].fault) {
                wrong(self, r, "%s: %s, elsewhere %s", texts[i].name, own[0] ? own : "none",
                      most[0] ? most : "none");
            } else if (speaks(self, r)) {
                warning(self, r, "%s: %s, elsewhere %s", texts[i].name, own, most);
            }
        }
    }
}

/* ---- hosts ---- */

static void judge_memory(struct judging *self, int rank)
{
    const struct facts *facts = &self->what->facts[rank];
    if (facts->memory_free >= 0 && facts->memory_free < GIB) {
        wrong(self, rank, "%lld MiB of memory are free: something else runs there",
              (long long)(facts->memory_free / MIB));
    }
    if (facts->shm_free >= 0 && facts->shm_free < 64 * MIB) {
        wrong(self, rank,
              "/dev/shm has %lld MiB free: messages between ranks of a host pass through it "
              "(containers: "
              "--shm-size, or the host's /dev/shm)",
              (long long)(facts->shm_free / MIB));
    } else if (facts->shm_free >= 0 && facts->shm_free < 512 * MIB) {
        warning(self, rank, "/dev/shm has only %lld MiB free", (long long)(facts->shm_free / MIB));
    }
    if (facts->adapters > 0 && facts->locked >= 0 && facts->locked < GIB) {
        wrong(self, rank,
              "at most %lld KiB may be locked (ulimit -l), and its network adapters need locked "
              "memory: "
              "transports would fall back to TCP",
              (long long)(facts->locked / 1024));
    }
}

/* Seconds by which a clock is surely apart from rank 0's. */
static double apart_of(const struct facts *facts)
{
    return fabs(facts->clock) - facts->clock_error;
}

static void judge_clock(struct judging *self, int rank)
{
    const struct facts *facts = &self->what->facts[rank];
    double apart = apart_of(facts);
    for (int before = 0; before < rank; before++) { /* once for a host */
        if (same_host(self, before, rank) && apart_of(&self->what->facts[before]) > CLOCK_APART) {
            return;
        }
    }
    if (apart > CLOCK_WRONG) {
        wrong(self, rank,
              "its clock is %+.3f s (+- %.3f) from rank 0's: is its time service running?",
              facts->clock, facts->clock_error);
    } else if (apart > CLOCK_APART) {
        warning(self, rank, "its clock is %+.3f s (+- %.3f) from rank 0's: logs do not match",
                facts->clock, facts->clock_error);
    }
}

static void judge_hosts(struct judging *self)
{
    for (int r = 0; r < self->what->ranks; r++) {
        const struct facts *facts = &self->what->facts[r];
        if (speaks(self, r)) {
            judge_memory(self, r);
        }
        judge_clock(self, r);
        if (speaks(self, r) && self->what->gpus && facts->nccl_hangs[0]) {
            if (strcmp(self->what->transport, "nccl") == 0) {
                wrong(self, r, "%s, and parallel.transport is nccl: %s", facts->libraries,
                      facts->nccl_hangs);
            } else {
                warning(self, r, "%s: of NCCL %s", facts->libraries, facts->nccl_hangs);
            }
        }
        if (facts->adapters == 0 && self->what->facts[0].adapters > 0) {
            wrong(self, r, "no InfiniBand or RoCE port is up there, and %d on rank 0's host",
                  self->what->facts[0].adapters);
        }
    }
}

/* ---- rates ---- */

static void judge_products(struct judging *self)
{
    int ranks = self->what->ranks;
    double sorted[ranks];
    for (int r = 0; r < ranks; r++) {
        sorted[r] = self->what->facts[r].gemm;
    }
    double usual_rate = median(sorted, ranks);
    double share = self->what->gpus ? GPU_SHARE : HOST_SHARE;
    for (int r = 0; r < ranks; r++) {
        const struct facts *facts = &self->what->facts[r];
        if (facts->gemm < share * usual_rate) {
            wrong(self, r, "%s%s%s multiplies at %.3g TFLOP/s, the others at %.3g (median)",
                  facts->computes, facts->bus[0] ? " " : "", facts->bus, facts->gemm * 1e-12,
                  usual_rate * 1e-12);
        }
    }
}

/* Rates of pairs within hosts, or between them; returns how many. out [ranks * ranks] */
static int collect(const struct judging *self, bool within, double *out)
{
    int count = 0, ranks = self->what->ranks;
    for (int a = 0; a < ranks; a++) {
        for (int b = a + 1; b < ranks; b++) {
            double rate = self->what->rates[a * ranks + b];
            if (rate > 0 && same_host(self, a, b) == within) {
                out[count++] = rate;
            }
        }
    }
    return count;
}

/* "of which rank 3 is in 7" */
static int most_often(const struct judging *self, bool within, double least, int *out_pairs)
{
    int ranks = self->what->ranks, worst = 0, most = 0;
    *out_pairs = 0;
    for (int a = 0; a < ranks; a++) {
        int slow = 0;
        for (int b = 0; b < ranks; b++) {
            double rate = self->what->rates[a * ranks + b];
            slow += a != b && rate > 0 && rate < least && same_host(self, a, b) == within;
        }
        *out_pairs += slow;
        if (slow > most) {
            most = slow;
            worst = a;
        }
    }
    *out_pairs /= 2;
    return worst;
}

static void judge_pairs(struct judging *self, bool within)
{
    int ranks = self->what->ranks, slow = 0;
    double *rates = calloc((size_t)ranks * (size_t)ranks, sizeof *rates);
    int count = rates ? collect(self, within, rates) : 0;
    double usual_rate = median(rates, count), line = self->what->facts[0].adapter_gbit / 8 * 1e9;
    if (count > 0) {
        fprintf(self->out, "pairs %s: %d, each way %.2f GB/s (median; %.2f - %.2f)\n",
                within ? "within a host" : "between hosts", count, usual_rate * 1e-9,
                rates[0] * 1e-9, rates[count - 1] * 1e-9);
    }
    int worst = count > 2 ? most_often(self, within, PAIR_SHARE * usual_rate, &slow) : 0;
    if (slow > 0) {
        wrong(self, worst,
              "%d pairs of ranks %s are slower than half of the median, %s of them with this rank",
              slow, within ? "within a host" : "between hosts", slow == 1 ? "one" : "most");
    }
    if (!within && count > 0 && line > 0 && usual_rate < LINE_SHARE * line) {
        wrong(
            self, 0,
            "%.2f GB/s between hosts over %s, where the adapters can do %.1f: this looks like TCP "
            "(UCX_TLS, UCX_NET_DEVICES, NCCL_IB_HCA; `ibstat`)",
            usual_rate * 1e-9, self->what->transport, line * 1e-9);
    }
    free(rates);
}

int judge(const struct judged *what, FILE *out)
{
    struct judging self = {what, out, 0};
    judge_pairs(&self, true);
    judge_pairs(&self, false);
    judge_versions(&self);
    judge_hosts(&self);
    judge_products(&self);
    return self.wrong;
}
