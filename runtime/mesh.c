/* mesh.c - coordinates of ranks, and the groups that follow from them (mesh.h). */
#include "runtime/mesh.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

enum {
    HOST = 64,
    TOLD_MOST = 8
}; /* bytes of a host's name; replicas, and runs of ranks of one, that are listed */

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

/* ---- for people ---- */

/* "ranks 0-3 on n1, 4-7 on n2": neighbours of a pipeline whose numbers ascend one by one on one host. */
static void replica_print(const struct mesh *mesh, int replica, char (*host)[HOST], char *out,
                          size_t size)
{
    size_t used = 0;
    int runs = 0;
    for (int place = 0, last; place < mesh->pp && used < size; place = last + 1, runs++) {
        int rank = mesh_rank_at(mesh, place, replica), step = mesh_rank_at(mesh, 1, 0);
        last = place;
        while (last + 1 < mesh->pp &&
               strcmp(host[mesh_rank_at(mesh, last + 1, replica)], host[rank]) == 0) {
            last++;
        }
        if (runs == TOLD_MOST) {
            snprintf(out + used, size - used, ", ...");
            return;
        }
        used += (size_t)snprintf(out + used, size - used, "%s%d", runs > 0 ? ", " : "ranks ", rank);
        if (last > place && used < size) {
            used += (size_t)snprintf(out + used, size - used, step == 1 ? "-%d" : " .. %d",
                                     mesh_rank_at(mesh, last, replica));
        }
        if (used < size) {
            used += (size_t)snprintf(out + used, size - used, " on %s", host[rank]);
        }
    }
}

static void tell(const struct mesh *mesh, char (*host)[HOST])
{
    char line[512];
    log_info("%d replicas of a pipeline of %d rank%s (parallel.order=%s)", mesh->dp, mesh->pp,
             mesh->pp == 1 ? "" : "s", mesh->order == MESH_PP_DP ? "pp-dp" : "dp-pp");
    for (int replica = 0; replica < mesh->dp && replica < TOLD_MOST; replica++) {
        replica_print(mesh, replica, host, line, sizeof line);
        log_info("replica %d: %s", replica, line);
    }
    if (mesh->dp > TOLD_MOST) {
        log_info("and %d more replicas in the same way", mesh->dp - TOLD_MOST);
    }
}

status_t mesh_tell(const struct mesh *mesh)
{
    char own[HOST] = "";
    if (mesh->dp == 1) {
        return STATUS_OK;
    }
    gethostname(own, sizeof own - 1);
    char(*host)[HOST] = calloc((size_t)group_size(mesh->job), sizeof *host);
    status_t status = group_agree(
        mesh->job, host ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for the names of hosts"));
    if (status == STATUS_OK) {
        status = group_allgather(mesh->job, own, sizeof own, host);
    }
    if (status == STATUS_OK && group_rank(mesh->job) == 0) {
        tell(mesh, host);
    }
    free(host);
    return status;
}
