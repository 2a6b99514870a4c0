/* mesh.h - private to runtime/: the ranks of a job as replicas of a pipeline, each of whose stages several ranks may
 * compute together.
 *
 * A rank has three coordinates: its place in the pipeline, which plans call a rank; its replica; and which part of
 * tensor parallelism it is. Replicas walk the same plan on data of their own; the ranks of a place and replica (a
 * tensor group) walk it together on the same data. These are always neighbours; parallel.order says which coordinate
 * runs next (pp = 3, dp = 2, and tp = 1):
 *
 *     pp-dp   replica 0: ranks 0 1 2, replica 1: 3 4 5     pipelines side by side, inside hosts if they fit
 *     dp-pp   replica 0: ranks 0 2 4, replica 1: 1 3 5     the replicas of a place side by side
 *
 * With tp = 2 rank r there is ranks 2 r and 2 r + 1. Nothing else turns a rank of the job into coordinates.
 */
#ifndef RUNTIME_MESH_H
#define RUNTIME_MESH_H

#include "base/config.h"
#include "comm/comm.h"

struct mesh {
    int pp, dp, tp;
    enum mesh_order order;
    int place, replica, tp_rank; /* of this rank */
    struct group *job;           /* all ranks; borrowed */
    /* Those of this rank's replica and part, numbered by place; the job if these are all. */
    struct group *pipeline;
    struct group *replicas; /* those of its place and part, numbered by replica; NULL with one */
    struct group *tensor;   /* those of its place and replica, numbered by part; NULL with one */
};

/* Do parallel.pp, parallel.tp and parallel.dp fit so many ranks? STATUS_INVALID in a sentence if not. */
MUST_USE status_t mesh_check(const struct run_config *config, int ranks);
/* Splits the job's group. Collective. */
MUST_USE status_t mesh_create(const struct run_config *config, struct group *job, struct mesh *out);
/* Rank 0 logs which ranks, on which hosts, are a replica each; nothing with one of one part. Collective. */
MUST_USE status_t mesh_tell(const struct mesh *mesh);
/* NULLs are fine; ranks that are lost do not hold it up. */
void mesh_destroy(struct mesh *mesh);

/* Coordinates of a rank of the job, and back. */
int mesh_place_of(const struct mesh *mesh, int rank);
int mesh_replica_of(const struct mesh *mesh, int rank);
int mesh_tp_rank_of(const struct mesh *mesh, int rank);
int mesh_rank_at(const struct mesh *mesh, int place, int replica, int tp_rank);

#endif
