/* print.c - partition, traffic and memory of a plan as tables for people. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "schedule/plan_internal.h"

enum { NAME = 48 };

/* "12.6 MiB"; bytes below a KiB as they are. */
static const char *human_bytes(int64_t bytes, char *buffer)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)bytes;
    size_t i = 0;
    while (value >= 1024 && i + 1 < sizeof unit / sizeof unit[0]) {
        value /= 1024;
        i++;
    }
    snprintf(buffer, NAME, i == 0 ? "%.0f %s" : "%.1f %s", value, unit[i]);
    return buffer;
}

/* "1.25 TFLOP" */
static const char *human_flops(double flops, char *buffer)
{
    static const char *const unit[] = {"FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"};
    size_t i = 0;
    while (flops >= 1000 && i + 1 < sizeof unit / sizeof unit[0]) {
        flops /= 1000;
        i++;
    }
    snprintf(buffer, NAME, i == 0 ? "%.0f %s" : "%.2f %s", flops, unit[i]);
    return buffer;
}

/* ---- partition ---- */

struct stage_cost {
    double forward, backward, weight;
};

static struct stage_cost stage_cost(const struct plan *plan, int stage)
{
    struct stage_cost cost = {0};
    const struct stage_plan *s = &plan->stage[stage];
    for (int i = 0; i < s->units; i++) {
        const struct unit *unit = &plan->graph->unit[s->unit[i]];
        cost.forward += unit->forward_cost;
        cost.backward += plan->training ? unit->backward_cost : 0;
        cost.weight += plan->training ? unit->weight_cost : 0;
    }
    return cost;
}

/* "attn 3 .. ffn 5" */
static const char *stage_units(const struct plan *plan, int stage, char *buffer)
{
    const struct stage_plan *s = &plan->stage[stage];
    const char *first = plan->graph->unit[s->unit[0]].name;
    const char *last = plan->graph->unit[s->unit[s->units - 1]].name;
    if (s->units == 1) {
        snprintf(buffer, NAME, "%s", first);
    } else {
        snprintf(buffer, NAME, "%s .. %s", first, last);
    }
    return buffer;
}

void plan_print_partition(const struct plan *plan, FILE *out)
{
    double total = 0, largest = 0;
    for (int stage = 0; stage < plan->stages; stage++) {
        struct stage_cost cost = stage_cost(plan, stage);
        double sum = cost.forward + cost.backward + cost.weight;
        total += sum;
        largest = sum > largest ? sum : largest;
    }
    double mean = total > 0 ? total / plan->stages : 1;
    fprintf(out, "partition: %d stages, %d microbatches, schedule %s; cost of a microbatch\n",
            plan->stages, plan->microbatches, plan->schedule);
    fprintf(out, "  stage  rank  units                  count  frames       forward      backward"
                 "       weights  of mean\n");
    for (int stage = 0; stage < plan->stages; stage++) {
        const struct stage_plan *s = &plan->stage[stage];
        struct stage_cost cost = stage_cost(plan, stage);
        char units[NAME], forward[NAME], backward[NAME], weight[NAME];
        fprintf(out, "  %5d  %4d  %-21s  %5d  %6d  %12s  %12s  %12s  %6.1f%%\n", stage,
                plan_rank_of(plan, stage), stage_units(plan, stage, units), s->units, s->frames,
                human_flops(cost.forward, forward), human_flops(cost.backward, backward),
                human_flops(cost.weight, weight),
                100 * (cost.forward + cost.backward + cost.weight) / mean);
    }
    char all[NAME];
    fprintf(out, "  in all %s; the largest stage costs %.3f times the mean\n",
            human_flops(total, all), largest / mean);
}

/* ---- traffic ---- */

static void traffic_line(const char *label, int64_t plain, int64_t dense, FILE *out)
{
    char a[NAME], b[NAME], c[NAME];
    fprintf(out, "  %-9s  %10s  %16" PRId64 "  %10s  %16" PRId64 "  %10s  %16" PRId64 "\n", label,
            human_bytes(plain, a), plain, human_bytes(dense, b), dense,
            human_bytes(plain + dense, c), plain + dense);
}

static void traffic_table(const struct plan *plan, const int64_t *plain, const int64_t *dense,
                          FILE *out)
{
    fprintf(out, "traffic: bytes of a step, forward and backward, %d microbatches\n",
            plan->microbatches);
    fprintf(out, "  from  to   %28s  %28s  %28s\n", "plain", "dense", "both");
    int64_t all_plain = 0, all_dense = 0;
    for (int i = 0; i < plan->ranks * plan->ranks; i++) {
        if (plain[i] + dense[i] > 0) {
            char label[NAME];
            snprintf(label, sizeof label, "%4d  %2d", i / plan->ranks, i % plan->ranks);
            traffic_line(label, plain[i], dense[i], out);
        }
        all_plain += plain[i];
        all_dense += dense[i];
    }
    traffic_line("all links", all_plain, all_dense, out);
    fprintf(out, "  plain: the newest key to the next stage, and its gradient; dense: every "
                 "other shipment\n");
}

/* What replicas exchange. */
static void collectives_table(const struct plan *plan, FILE *out)
{
    int64_t all = 0;
    char text[NAME];
    if (plan->replicas == 1 || !plan->training) {
        return;
    }
    fprintf(out,
            "\nreplicas: %d, each with these ranks and links; bytes that those at a rank receive "
            "from each other in a step\n  rank\n",
            plan->replicas);
    for (int rank = 0; rank < plan->ranks; rank++) {
        int64_t bytes = plan_collective_bytes(plan, rank);
        fprintf(out, "  %4d  %10s  %16" PRId64 "\n", rank, human_bytes(bytes, text), bytes);
        all += bytes;
    }
    fprintf(out, "  all ranks  %s  %" PRId64 "\n", human_bytes(all, text), all);
    fprintf(out, "  sums of gradients, float32, moved beside the last backward, and weights, "
                 "beside the next "
                 "step's first forward\n");
}

void plan_print_traffic(const struct plan *plan, FILE *out)
{
    size_t pairs = (size_t)plan->ranks * (size_t)plan->ranks;
    int64_t *bytes = calloc(2 * pairs, sizeof *bytes);
    if (bytes == NULL) {
        fprintf(out, "traffic: no memory for the table\n");
        return;
    }
    plan_traffic(plan, bytes, bytes + pairs);
    traffic_table(plan, bytes, bytes + pairs, out);
    free(bytes);
    collectives_table(plan, out);
}

/* ---- memory ---- */

void plan_print_memory(const struct plan *plan, const int64_t *workspace, const char *known,
                       FILE *out)
{
    static const char *const column[] = {"parameters", "gradients",  "optimizer", "frames",
                                         "arrivals",   "grad slots", "backward"};
    enum { COLUMNS = sizeof column / sizeof column[0] };
    fprintf(out, "memory: bytes of every rank\n  rank");
    for (int i = 0; i < COLUMNS; i++) {
        fprintf(out, "  %10s", column[i]);
    }
    fprintf(out, "  %10s  %16s  %10s  %10s  %10s\n", "all", "exactly", "workspace", "together",
            "staging");
    for (int rank = 0; rank < plan->ranks; rank++) {
        struct plan_memory m;
        plan_memory(plan, rank, &m);
        const int64_t bytes[COLUMNS] = {m.parameters, m.gradients,      m.optimizer, m.frames,
                                        m.arrivals,   m.gradient_slots, m.backward};
        int64_t all = 0;
        char text[NAME];
        fprintf(out, "  %4d", rank);
        for (int i = 0; i < COLUMNS; i++) {
            fprintf(out, "  %10s", human_bytes(bytes[i], text));
            all += bytes[i];
        }
        fprintf(out, "  %10s  %16" PRId64, human_bytes(all, text), all);
        fprintf(out, "  %10s", human_bytes(workspace[rank], text));
        fprintf(out, "  %10s", human_bytes(all + workspace[rank], text));
        fprintf(out, "  %10s\n", human_bytes(m.staging, text));
    }
    fprintf(out,
            "  frames: activations of the microbatches in flight; arrivals: slots for keys of "
            "other stages\n"
            "  workspace: scratch of the operations, logits among it%s%s; together: `all` and "
            "workspace\n"
            "  staging: in neither; host memory pinned where tensors of GPUs pass through it "
            "(transport mpi, ucx without CUDA)\n",
            known[0] ? ", " : "", known);
}
