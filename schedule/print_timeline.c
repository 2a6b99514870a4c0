/* print_timeline.c - a simulated step drawn with characters, a line a rank.
 *
 *     rank 0 |F0--F1--....B0======W0-F2...
 *
 * A cell shows the phase that covers its middle. A phase of several cells carries its microbatch
 * number where that fits, so any number of columns gives a true picture.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schedule/plan_internal.h"

/* Consecutive operations of one kind, stage and microbatch. */
struct block {
    enum op_kind kind;
    int microbatch, stage;
    double start, end;
};

static bool op_is_drawn(const struct op *op)
{
    return op->kind == OP_F || op->kind == OP_B || op->kind == OP_W;
}

/* First cell whose middle is not before `time`. */
static int cell_of(double time, double makespan, int columns)
{
    double cell = time / makespan * columns;
    int at = (int)cell;
    return cell > at + 0.5 ? at + 1 : at;
}

static void block_draw(const struct plan *plan, const struct block *block, double makespan,
                       int columns, char *line)
{
    static const char fill[OP_KINDS] = {[OP_F] = '-', [OP_B] = '=', [OP_W] = '~'};
    int from = cell_of(block->start, makespan, columns);
    int end = cell_of(block->end, makespan, columns);
    end = end < columns ? end : columns;
    if (from >= end) {
        return;
    }
    memset(line + from, fill[block->kind], (size_t)(end - from));
    char label[24];
    int length =
        snprintf(label, sizeof label, "%s%d", op_kind_name(block->kind), block->microbatch);
    if (plan->stages > plan->ranks) {
        length = snprintf(label, sizeof label, "%s%d.%d", op_kind_name(block->kind), block->stage,
                          block->microbatch);
    }
    length = length <= end - from ? length : 1; /* the letter always fits */
    memcpy(line + from, label, (size_t)length);
}

/* `line` has `columns` characters and the end of the string. */
static void rank_draw(const struct plan *plan, int rank, const struct span *span, double makespan,
                      int columns, char *line)
{
    const struct rank_plan *list = &plan->rank[rank];
    struct block block = {.microbatch = -1};
    memset(line, '.', (size_t)columns);
    line[columns] = '\0';
    for (int i = 0; i < list->ops; i++) {
        const struct op *op = &list->op[i];
        if (!op_is_drawn(op)) {
            continue;
        }
        bool same = op->kind == block.kind && op->microbatch == block.microbatch &&
                    op->stage == block.stage && span[i].start <= block.end;
        if (!same && block.microbatch >= 0) {
            block_draw(plan, &block, makespan, columns, line);
        }
        if (!same) {
            block = (struct block){op->kind, op->microbatch, op->stage, span[i].start, span[i].end};
        }
        block.end = span[i].end;
    }
    if (block.microbatch >= 0) {
        block_draw(plan, &block, makespan, columns, line);
    }
}

static void timeline_draw(const struct plan *plan, struct span *const *span, const double *busy,
                          double makespan, int columns, char *line, FILE *out)
{
    double all = 0, length = makespan > 0 ? makespan : 1;
    fprintf(out, "time-line: schedule %s, %d microbatches, from cost alone (the wire is free)\n",
            plan->schedule, plan->microbatches);
    for (int rank = 0; rank < plan->ranks; rank++) {
        rank_draw(plan, rank, span[rank], length, columns, line);
        fprintf(out, "  rank %2d |%s| %5.1f%% busy\n", rank, line, 100 * busy[rank] / length);
        all += busy[rank];
    }
    fprintf(out, "  F- forward%s, . idle; number: %smicrobatch\n",
            plan->training ? ", B= backward of inputs, W~ of weights" : "",
            plan->stages > plan->ranks ? "stage." : "");
    fprintf(out, "  bubble %.1f%% of all ranks' time\n", 100 * (1 - all / (length * plan->ranks)));
}

static void spans_free(const struct plan *plan, struct span **span)
{
    for (int rank = 0; span != NULL && rank < plan->ranks; rank++) {
        free(span[rank]);
    }
    free(span);
}

static struct span **spans_create(const struct plan *plan)
{
    struct span **span = calloc((size_t)plan->ranks, sizeof *span);
    for (int rank = 0; span != NULL && rank < plan->ranks; rank++) {
        span[rank] = calloc((size_t)plan->rank[rank].ops, sizeof *span[rank]);
        if (span[rank] == NULL) {
            spans_free(plan, span);
            return NULL;
        }
    }
    return span;
}

void plan_print_timeline(const struct plan *plan, int columns, FILE *out)
{
    columns = columns < 10 ? 10 : columns;
    struct span **span = spans_create(plan);
    double *busy = calloc((size_t)plan->ranks, sizeof *busy), makespan = 0;
    char *line = malloc((size_t)columns + 1);
    if (span == NULL || busy == NULL || line == NULL ||
        simulate_run(plan, span, busy, &makespan) != STATUS_OK) {
        fprintf(out, "time-line: could not be simulated\n");
    } else {
        timeline_draw(plan, span, busy, makespan, columns, line, out);
    }
    spans_free(plan, span);
    free(busy);
    free(line);
}
