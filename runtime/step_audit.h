/* step_audit.h - private to runtime/: steps in which one microbatch is computed twice (health.audit_every).
 *
 * Every operation of the microbatch, on every rank, runs twice (kernels/audit.h): F, B, GRAD and W. What an
 * operation reads must be what was written there, what arrived included. After the walk the ranks compare the hash of
 * each message of the microbatch where it was put with that where it arrived. Whatever differs ends the run before
 * the next step.
 */
#ifndef RUNTIME_STEP_AUDIT_H
#define RUNTIME_STEP_AUDIT_H

#include "runtime/worker.h"

struct trainer;

/* May this run be audited? STATUS_INVALID names the keys that forbid it. */
MUST_USE status_t step_audit_allowed(const struct run_config *config);
/* For the worker that trains, where health.audit_every is not 0. */
MUST_USE status_t step_audit_create(struct trainer *trainer);
void step_audit_destroy(struct worker *worker);

/* Around the walk of a step. The end is collective. */
void step_audit_begin(struct trainer *trainer, int64_t step);
MUST_USE status_t step_audit_end(struct trainer *trainer, int64_t step);

/* Around `count` operations of the walk. */
MUST_USE status_t step_audit_before(struct worker *worker, const struct op *op, int count);
MUST_USE status_t step_audit_after(struct worker *worker, const struct op *op, int count);

#endif
