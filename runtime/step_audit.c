/* step_audit.c - one microbatch of a step computed twice (step_audit.h). */
#include "runtime/step_audit.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/trainer.h"

enum { SENT, RECEIVED, SIDES };

struct step_audit {
    struct audit *audit;
    int64_t step;
    int microbatch; /* of the step under way that is computed twice; -1 = none */
    int shipments;
    uint64_t *hash;            /* [SIDES][shipments] of the microbatch's message here; 0 = none */
    uint64_t *all;             /* [ranks][SIDES][shipments] */
    int *slot;                 /* [stages] backward memory of the microbatch; -1 = none yet */
    struct audit_range *range; /* [2 * stages + shipments] scratch: what nobody else writes */
    int64_t operations, bytes; /* before this step */
};

status_t step_audit_allowed(const struct run_config *config)
{
    if (config->health.audit_every > 0 && config->precision == PRECISION_BF16 &&
        !config->deterministic) {
        return FAIL(
            STATUS_INVALID,
            "health.audit_every: in bf16 an operation computed twice has the same bits only "
            "with deterministic=true");
    }
    return STATUS_OK;
}

/* ---- where tensors live ---- */

/* The stream may wait for a peer: so this looks after the peers meanwhile. */
static status_t copy(struct worker *worker, void *dst, const void *src, size_t bytes)
{
    TRY(worker_settle(worker));
    TRY(device_copy(worker->device, dst, src, bytes, worker->stream));
    return worker_settle(worker);
}

static status_t fetch(void *worker, void *dst, const void *src, size_t bytes)
{
    return copy(worker, dst, src, bytes);
}

/* ---- creation ---- */

static status_t create_tables(struct step_audit *self, const struct worker *worker)
{
    size_t stages = (size_t)worker->plan->stages, shipments = (size_t)worker->plan->shipments;
    size_t ranks = (size_t)worker->plan->ranks;
    self->shipments = worker->plan->shipments;
    self->hash = calloc(SIDES * shipments + 1, sizeof *self->hash);
    self->all = calloc(ranks * SIDES * shipments + 1, sizeof *self->all);
    self->slot = calloc(stages, sizeof *self->slot);
    self->range = calloc(2 * stages + shipments, sizeof *self->range);
    return self->hash && self->all && self->slot && self->range
               ? STATUS_OK
               : FAIL(STATUS_NOMEM, "no memory for the hashes of %zu messages", shipments);
}

status_t step_audit_create(struct trainer *trainer)
{
    struct worker *worker = trainer->workers.train;
    struct audit_memory memory = {fetch, fetch, worker};
    if (trainer->config.health.audit_every == 0) {
        return STATUS_OK;
    }
    struct step_audit *self = calloc(1, sizeof *self);
    if (!self) {
        return FAIL(STATUS_NOMEM, "no memory to compute a microbatch twice");
    }
    worker->audit = self;
    self->microbatch = -1;
    TRY(create_tables(self, worker));
    return audit_create(worker->device ? &memory : NULL, &self->audit);
}

void step_audit_destroy(struct worker *worker)
{
    struct step_audit *self = worker->audit;
    if (!self) {
        return;
    }
    audit_destroy(self->audit);
    free(self->hash);
    free(self->all);
    free(self->slot);
    free(self->range);
    free(self);
    worker->audit = NULL;
}

/* ---- operations ---- */

static bool computes(const struct op *op)
{
    return op->kind == OP_F || op->kind == OP_B || op->kind == OP_GRAD || op->kind == OP_W;
}

static const void *arrival_of(const struct worker *worker, int shipment, int microbatch)
{
    int slots = worker->active->shipment[shipment].slots;
    return worker->tables.arrival[shipment][microbatch % slots];
}

/* What only the microbatch's own operations and messages write. */
static void keep_own(struct worker *worker)
{
    struct step_audit *self = worker->audit;
    const struct plan *plan = worker->active;
    int ranges = 0;
    for (int stage = 0; stage < plan->stages; stage++) {
        int local = worker->tables.local[stage];
        if (local < 0) {
            continue;
        }
        int frame = self->microbatch % plan->stage[stage].frames;
        self->range[ranges++] = part_frame_range(worker->part, local, frame);
        if (self->slot[stage] >= 0) {
            self->range[ranges++] = part_backward_range(worker->part, local, self->slot[stage]);
        }
    }
    for (int s = 0; s < plan->shipments; s++) {
        if (self->hash[RECEIVED * self->shipments + s] != 0) {
            self->range[ranges++] = (struct audit_range){arrival_of(worker, s, self->microbatch),
                                                         (size_t)plan->shipment[s].bytes};
        }
    }
    audit_keep(self->audit, self->range, ranges);
}

static void say(const struct worker *worker, const struct op *op)
{
    char what[128], line[160];
    snprintf(line, sizeof line, "step %lld, %s", (long long)worker->audit->step,
             op_print(worker->active, op, what, sizeof what));
    audit_say(worker->audit->audit, line);
}

static status_t note_sent(struct worker *worker, const struct op *op)
{
    struct step_audit *self = worker->audit;
    return audit_hash(self->audit, worker_put_source(worker, op),
                      (size_t)worker->active->shipment[op->shipment].bytes,
                      &self->hash[SENT * self->shipments + op->shipment]);
}

static status_t note_received(struct worker *worker, const struct op *op)
{
    struct step_audit *self = worker->audit;
    say(worker, op);
    return audit_written(self->audit, arrival_of(worker, op->shipment, op->microbatch),
                         (size_t)worker->active->shipment[op->shipment].bytes,
                         &self->hash[RECEIVED * self->shipments + op->shipment]);
}

status_t step_audit_before(struct worker *worker, const struct op *op, int count)
{
    struct step_audit *self = worker->audit;
    if (!self || self->microbatch < 0) {
        return STATUS_OK;
    }
    for (int i = 0; i < count; i++) {
        if (op[i].microbatch == self->microbatch && op[i].kind == OP_PUT) {
            TRY(note_sent(worker, &op[i]));
        }
    }
    if (op->microbatch == self->microbatch && computes(op)) {
        self->slot[op->stage] = op->kind == OP_F ? self->slot[op->stage] : op->backward_slot;
        say(worker, op);
        part_audit(worker->part, self->audit);
    }
    return STATUS_OK;
}

status_t step_audit_after(struct worker *worker, const struct op *op, int count)
{
    struct step_audit *self = worker->audit;
    if (!self || self->microbatch < 0) {
        return STATUS_OK;
    }
    for (int i = 0; i < count; i++) {
        if (op[i].microbatch == self->microbatch && op[i].kind == OP_WAIT) {
            TRY(note_received(worker, &op[i]));
        }
    }
    if (op->microbatch == self->microbatch && computes(op)) {
        part_audit(worker->part, NULL);
        TRY(audit_result(self->audit));
        keep_own(worker);
    }
    return STATUS_OK;
}

/* ---- steps ---- */

void step_audit_begin(struct trainer *trainer, int64_t step)
{
    struct worker *worker = trainer->workers.train;
    struct step_audit *self = worker->audit;
    int64_t every = trainer->config.health.audit_every;
    if (!self) {
        return;
    }
    self->step = step;
    self->microbatch = -1;
    if (step % every == 0) {
        self->microbatch = (int)(step / every % worker->active->microbatches);
        memset(self->hash, 0, (size_t)(SIDES * self->shipments) * sizeof *self->hash);
        for (int stage = 0; stage < worker->plan->stages; stage++) {
            self->slot[stage] = -1;
        }
        audit_keep(self->audit, NULL, 0);
        audit_counts(self->audit, &self->operations, &self->bytes);
    }
}

/* The message of shipment s, on both of its ends. All ranks find the same; that where it arrived says so. */
static status_t compare(const struct worker *worker, int s)
{
    const struct step_audit *self = worker->audit;
    const struct plan *plan = worker->active;
    int from = plan_rank_of(plan, plan->shipment[s].from);
    int to = plan_rank_of(plan, plan->shipment[s].to);
    const uint64_t *of_from = self->all + (size_t)from * SIDES * (size_t)self->shipments;
    const uint64_t *of_to = self->all + (size_t)to * SIDES * (size_t)self->shipments;
    if (of_from[SENT * self->shipments + s] == of_to[RECEIVED * self->shipments + s]) {
        return STATUS_OK;
    }
    if (worker->rank != to) {
        return STATUS_MISMATCH;
    }
    return FAIL(
        STATUS_MISMATCH,
        "step %lld: what rank %d sent to rank %d is not what arrived there (%s%s of microbatch "
        "%d): the way between the two, or memory of one of them, is not to be trusted",
        (long long)self->step, group_named(worker->group, from), group_named(worker->group, to),
        plan->shipment[s].backward ? "d" : "", plan->graph->key[plan->shipment[s].key].name,
        self->microbatch);
}

/* Of the weights of a unit, as its operations read them. */
static status_t hash_weights(struct worker *worker, int unit, size_t *counts, uint64_t *out)
{
    struct part_bucket bucket;
    size_t count = 0;
    part_bucket(worker->part, unit, &bucket);
    model_share_counts(worker->model, unit, counts);
    for (int share = 0; share < worker->model->shares; share++) {
        count += counts[share];
    }
    return audit_hash(worker->audit->audit, bucket.weights, count * bucket.element, out);
}

/* The replica whose weights are not those of most, or of the first if most differ; -1: all are the same. */
static int odd_one(const uint64_t *hash, int replicas)
{
    int like_first = 0, odd = -1;
    for (int r = 0; r < replicas; r++) {
        like_first += hash[r] == hash[0];
        odd = odd < 0 && hash[r] != hash[0] ? r : odd;
    }
    return odd >= 0 && 2 * like_first < replicas ? 0 : odd;
}

/* Of two nobody knows which is wrong. */
static status_t refuse_weights(const struct worker *worker, const struct group *group, int unit)
{
    char others[48] = "of the other replicas";
    int rank = group_named(group, group_rank(group));
    if (group_size(group) == 2) {
        snprintf(others, sizeof others, "on rank %d", group_named(group, 1 - group_rank(group)));
    }
    return FAIL(
        STATUS_MISMATCH,
        "step %lld: the weights of %s on rank %d are not those %s: the way between them, or "
        "memory of one of them, is not to be trusted",
        (long long)worker->audit->step, worker->model->graph.unit[unit].name, rank, others);
}

/* What every replica has been given must be the same. All ranks of the place find the same; one fails. */
static status_t compare_replicas(const struct trainer *trainer)
{
    struct worker *worker = trainer->workers.train;
    struct group *group = trainer->mesh.replicas;
    int replicas = group_size(group);
    size_t counts[replicas];
    uint64_t own, hash[replicas];
    for (int u = 0; u < worker->model->graph.units; u++) {
        if (!worker_hosts(worker, u)) {
            continue;
        }
        TRY(group_agree(group, hash_weights(worker, u, counts, &own)));
        TRY(group_allgather(group, &own, sizeof own, hash));
        int odd = odd_one(hash, replicas);
        if (odd >= 0) {
            return group_rank(group) == odd ? refuse_weights(worker, group, u) : STATUS_OK;
        }
    }
    return STATUS_OK;
}

static status_t compare_all(const struct trainer *trainer)
{
    const struct worker *worker = trainer->workers.train;
    struct step_audit *self = worker->audit;
    TRY(group_allgather(worker->group, self->hash,
                        (size_t)(SIDES * self->shipments) * sizeof *self->hash, self->all));
    for (int s = 0; s < self->shipments; s++) {
        TRY(compare(worker, s));
    }
    return STATUS_OK;
}

status_t step_audit_end(struct trainer *trainer, int64_t step)
{
    struct worker *worker = trainer->workers.train;
    struct step_audit *self = worker->audit;
    int64_t operations, bytes;
    if (!self || self->microbatch < 0) {
        return STATUS_OK;
    }
    TRY(trainer_settle(trainer, NULL));
    status_t status = compare_all(trainer);
    if (trainer->mesh.replicas) { /* what one replica, or one place, finds ends all */
        TRY(group_agree(trainer->group, status));
        status = group_agree(trainer->group, compare_replicas(trainer));
    }
    TRY(status);
    audit_counts(self->audit, &operations, &bytes);
    if (group_rank(trainer->group) == 0) {
        log_info("step %lld: microbatch %d computed twice with the same bits (on rank 0 %lld "
                 "operations, %.1f MiB), messages as they were sent%s",
                 (long long)step, self->microbatch, (long long)(operations - self->operations),
                 (double)(bytes - self->bytes) / 0x1p20,
                 trainer->mesh.replicas ? ", replicas with the same weights" : "");
    }
    self->microbatch = -1;
    return STATUS_OK;
}
