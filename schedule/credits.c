/* credits.c - slots enough that no message holds up one behind it for ever, nor its sender.
 *
 * What one rank puts to another lands in its order (comm/comm.h). With several stages a rank a message
 * whose slot comes free late may so stand before one that is needed for its slot to come free. Here all
 * ranks run, as far as messages go; where all of them stand still, the first message of every queue whose
 * slot is not posted gets one more, and they go on. A slot more is just that: a message that may land one
 * microbatch earlier.
 */
#include <stdlib.h>
#include <string.h>

#include "schedule/plan_internal.h"

struct stream {
    int first, last; /* messages put and not landed; -1 */
    int length;
};

struct traffic {
    const struct plan *plan;
    int *next;          /* [ranks] operation */
    int *put, *landed;  /* [shipments] messages */
    int *credit;        /* [shipments] messages that may land so far */
    int *more;          /* [shipments] slots that were added */
    int *behind, *what; /* [messages] the next one in its queue; its shipment */
    int messages;
    struct stream *stream; /* [from][to] ranks */
};

static struct stream *stream_of(const struct traffic *traffic, int shipment)
{
    const struct plan *plan = traffic->plan;
    const struct shipment *s = &plan->shipment[shipment];
    return &traffic->stream[plan->stage[s->from].rank * plan->ranks + plan->stage[s->to].rank];
}

static void stream_land(struct traffic *traffic, int shipment)
{
    struct stream *stream = stream_of(traffic, shipment);
    while (stream->first >= 0) {
        int what = traffic->what[stream->first];
        if (traffic->landed[what] >= traffic->credit[what]) {
            return;
        }
        traffic->landed[what]++;
        stream->first = traffic->behind[stream->first];
        stream->length--;
    }
}

static void stream_put(struct traffic *traffic, int shipment)
{
    struct stream *stream = stream_of(traffic, shipment);
    int message = traffic->messages++;
    traffic->what[message] = shipment;
    traffic->behind[message] = -1;
    if (stream->first < 0) {
        stream->first = message;
    } else {
        traffic->behind[stream->last] = message;
    }
    stream->last = message;
    stream->length++;
    traffic->put[shipment]++;
}

/* False: the rank stands still. */
static bool traffic_op(struct traffic *traffic, const struct op *op)
{
    switch (op->kind) {
    case OP_POST:
        traffic->credit[op->shipment]++;
        stream_land(traffic, op->shipment);
        return true;
    case OP_PUT:
        if (stream_of(traffic, op->shipment)->length >= PLAN_QUEUE) {
            return false;
        }
        stream_put(traffic, op->shipment);
        stream_land(traffic, op->shipment);
        return true;
    case OP_WAIT:
    case OP_SENT:
        return traffic->landed[op->shipment] > op->microbatch;
    default:
        return true;
    }
}

static bool traffic_move(struct traffic *traffic, bool *out_done)
{
    bool moved = false;
    *out_done = true;
    for (int rank = 0; rank < traffic->plan->ranks; rank++) {
        const struct rank_plan *list = &traffic->plan->rank[rank];
        int *next = &traffic->next[rank];
        while (*next < list->ops && traffic_op(traffic, &list->op[*next])) {
            ++*next;
            moved = true;
        }
        *out_done = *out_done && *next == list->ops;
    }
    return moved;
}

/* One more slot for each message that holds up others; false if there is none. */
static bool traffic_give(struct traffic *traffic)
{
    const struct plan *plan = traffic->plan;
    bool given = false;
    for (int i = 0; i < plan->ranks * plan->ranks; i++) {
        int first = traffic->stream[i].first, what = first >= 0 ? traffic->what[first] : -1;
        if (what >= 0 && plan->shipment[what].slots + traffic->more[what] < plan->microbatches) {
            traffic->more[what]++;
            traffic->credit[what]++;
            stream_land(traffic, what);
            given = true;
        }
    }
    return given;
}

static bool traffic_run(struct traffic *traffic)
{
    bool done = false;
    while (!done) {
        if (!traffic_move(traffic, &done) && !done && !traffic_give(traffic)) {
            return false; /* not for want of slots: plan_check says what it is */
        }
    }
    return true;
}

static bool traffic_init(struct traffic *traffic)
{
    size_t shipments = (size_t)traffic->plan->shipments, ranks = (size_t)traffic->plan->ranks;
    size_t messages = shipments * (size_t)traffic->plan->microbatches;
    int *table = calloc(ranks + 4 * shipments + 2 * messages + 1, sizeof *table);
    traffic->next = table;
    traffic->stream = calloc(ranks * ranks, sizeof *traffic->stream);
    if (!table || !traffic->stream) {
        return false;
    }
    traffic->put = table + ranks;
    traffic->landed = traffic->put + shipments;
    traffic->credit = traffic->landed + shipments;
    traffic->more = traffic->credit + shipments;
    traffic->behind = traffic->more + shipments;
    traffic->what = traffic->behind + messages;
    for (size_t i = 0; i < ranks * ranks; i++) {
        traffic->stream[i].first = -1;
    }
    return true;
}

static bool add_slots(struct plan *plan, const int *more)
{
    bool grown = false;
    for (int i = 0; i < plan->shipments; i++) {
        struct shipment *s = &plan->shipment[i];
        grown = grown || more[i] > 0;
        s->slots += more[i];
        if (s->backward) {
            plan->sum[plan->stage[s->to].sum[s->key]].slots = s->slots;
        }
    }
    return grown;
}

status_t plan_grow_slots(struct plan *plan, bool *out_grown)
{
    struct traffic traffic = {.plan = plan};
    bool made = traffic_init(&traffic);
    *out_grown = false;
    if (made && traffic_run(&traffic)) {
        *out_grown = add_slots(plan, traffic.more);
    }
    free(traffic.next);
    free(traffic.stream);
    return made ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory to size the slots of a plan");
}

/* One more where a sender was held up; false if there was none. */
static bool give_more(const struct plan *plan, const bool *held_up, int *more)
{
    bool given = false;
    for (int i = 0; i < plan->shipments; i++) {
        if (held_up[i] && plan->shipment[i].slots + more[i] < plan->microbatches) {
            more[i]++;
            given = true;
        }
    }
    return given;
}

status_t plan_quicken_slots(struct plan *plan, bool *out_grown)
{
    size_t shipments = (size_t)plan->shipments + 1;
    int *more = calloc(shipments, sizeof *more);
    bool *held_up = calloc(shipments, sizeof *held_up);
    status_t status =
        more && held_up ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory to size a plan's slots");
    bool given = true;
    while (status == STATUS_OK && given) {
        memset(held_up, 0, shipments * sizeof *held_up);
        status = simulate_slots(plan, more, held_up);
        given = status == STATUS_OK && give_more(plan, held_up, more);
    }
    *out_grown = status == STATUS_OK && add_slots(plan, more);
    free(more);
    free(held_up);
    return status;
}
