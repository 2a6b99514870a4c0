/* mesh.c - coordinates of ranks, and the groups that follow from them (mesh.h). */
#include "runtime/mesh.h"

#include <string.h>

int mesh_place_of(const struct mesh *mesh, int rank)
{
    return mesh->order == MESH_PP_DP ? rank % mesh->pp : rank / mesh->dp;
}

int mesh_replica_of(const struct mesh *mesh, int rank)
{
    return mesh->order == MESH_PP_DP ? rank / mesh->pp : rank % mesh->dp;
}

int mesh_rank_at(const struct mesh *mesh, int place, int replica)
{
    return mesh->order == MESH_PP_DP ? replica * mesh->pp + place : place * mesh->dp + replica;
}

status_t mesh_check(const struct run_config *config, int ranks)
{
    int pp = (int)config->parallel.pp, dp = (int)config->parallel.dp, nearest = dp;
    if (pp > 0 ? pp * dp == ranks : ranks % dp == 0) {
        return STATUS_OK;
    }
    if (pp > 0) {
        return FAIL(STATUS_INVALID,
                    "parallel.pp is %d and parallel.dp %d, which are %d ranks, but %d %s started",
                    pp, dp, pp * dp, ranks, ranks == 1 ? "was" : "were");
    }
    while (nearest > ranks || ranks % nearest != 0) {
        nearest--;
    }
    return FAIL(
        STATUS_INVALID,
        "parallel.dp is %d, which does not divide the %d rank%s started: start a multiple of "
        "%d, or use parallel.dp=%d",
        dp, ranks, ranks == 1 ? "" : "s", dp, nearest);
}

status_t mesh_create(const struct run_config *config, struct group *job, struct mesh *out)
{
    int dp = (int)config->parallel.dp;
    *out = (struct mesh){.pp = group_size(job) / dp,
                         .dp = dp,
                         .order = (enum mesh_order)config->parallel.order,
                         .job = job,
                         .pipeline = job};
    TRY(group_agree(job, mesh_check(config, group_size(job))));
    out->place = mesh_place_of(out, group_rank(job));
    out->replica = mesh_replica_of(out, group_rank(job));
    if (dp == 1) {
        return STATUS_OK;
    }
    out->pipeline = NULL;
    status_t status = group_split(job, out->replica, out->place, &out->pipeline);
    if (status == STATUS_OK) {
        status = group_split(job, out->place, out->replica, &out->replicas);
    }
    if (status != STATUS_OK) {
        mesh_destroy(out);
    }
    return status;
}

void mesh_destroy(struct mesh *mesh)
{
    group_close(mesh->replicas);
    if (mesh->pipeline != mesh->job) {
        group_close(mesh->pipeline);
    }
    memset(mesh, 0, sizeof *mesh);
}
