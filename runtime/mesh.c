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
    rank /= mesh->tp;
    return mesh->order == MESH_PP_DP ? rank % mesh->pp : rank / mesh->dp;
}

int mesh_replica_of(const struct mesh *mesh, int rank)
{
    rank /= mesh->tp;
    return mesh->order == MESH_PP_DP ? rank / mesh->pp : rank % mesh->dp;
}

int mesh_tp_rank_of(const struct mesh *mesh, int rank)
{
    return rank % mesh->tp;
}

int mesh_rank_at(const struct mesh *mesh, int place, int replica, int tp_rank)
{
    int rank = mesh->order == MESH_PP_DP ? replica * mesh->pp + place : place * mesh->dp + replica;
    return rank * mesh->tp + tp_rank;
}

status_t mesh_check(const struct run_config *config, int ranks)
{
    int pp = (int)config->parallel.pp, dp = (int)config->parallel.dp;
    int tp = (int)config->parallel.tp, each = tp * dp;
    char text[160];
    if (pp > 0 ? pp * each == ranks : ranks % each == 0) {
        return STATUS_OK;
    }
    if (pp > 0) {
        return FAIL(STATUS_INVALID,
                    "parallel.pp %d times parallel.tp %d times parallel.dp %d are %d ranks, but %d "
                    "%s started",
                    pp, tp, dp, pp * each, ranks, ranks == 1 ? "was" : "were");
    }
    int nearest_tp = tp, nearest_dp = dp;
    while (nearest_tp > ranks || ranks % nearest_tp != 0) {
        nearest_tp--;
    }
    while (nearest_dp * nearest_tp > ranks || ranks % (nearest_dp * nearest_tp) != 0) {
        nearest_dp--;
    }
    snprintf(text, sizeof text, "parallel.tp=%d and ", nearest_tp);
    return FAIL(STATUS_INVALID,
                "%s is %d, which does not divide the %d rank%s started: start a multiple of "
                "%d, or use %sparallel.dp=%d",
                tp > 1 ? "parallel.tp times parallel.dp" : "parallel.dp", each, ranks,
                ranks == 1 ? "" : "s", each, tp > 1 ? text : "", nearest_dp);
}

/* One of the groups that divide the job; none of one rank. */
static status_t divide(struct group *job, int ranks, int which, int number, struct group **out)
{
    return ranks > 1 ? group_split(job, which, number, out) : STATUS_OK;
}

status_t mesh_create(const struct run_config *config, struct group *job, struct mesh *out)
{
    int dp = (int)config->parallel.dp, tp = (int)config->parallel.tp, own = group_rank(job);
    *out = (struct mesh){.pp = group_size(job) / (dp * tp),
                         .dp = dp,
                         .tp = tp,
                         .order = (enum mesh_order)config->parallel.order,
                         .job = job,
                         .pipeline = job};
    TRY(group_agree(job, mesh_check(config, group_size(job))));
    out->place = mesh_place_of(out, own);
    out->replica = mesh_replica_of(out, own);
    out->tp_rank = mesh_tp_rank_of(out, own);
    if (dp * tp == 1) {
        return STATUS_OK;
    }
    out->pipeline = NULL;
    status_t status =
        group_split(job, out->replica * tp + out->tp_rank, out->place, &out->pipeline);
    if (status == STATUS_OK) {
        status = divide(job, dp, out->place * tp + out->tp_rank, out->replica, &out->replicas);
    }
    if (status == STATUS_OK) {
        status = divide(job, tp, out->place * dp + out->replica, out->tp_rank, &out->tensor);
    }
    if (status != STATUS_OK) {
        mesh_destroy(out);
    }
    return status;
}

void mesh_destroy(struct mesh *mesh)
{
    group_close(mesh->tensor);
    group_close(mesh->replicas);
    if (mesh->pipeline != mesh->job) {
        group_close(mesh->pipeline);
    }
    memset(mesh, 0, sizeof *mesh);
}

/* ---- for people ---- */

/* The rank after so many others of a replica, all parts of a place first. */
static int rank_of(const struct mesh *mesh, int replica, int number)
{
    return mesh_rank_at(mesh, number / mesh->tp, replica, number % mesh->tp);
}

/* "ranks 0-3 on n1, 4-7 on n2": neighbours of a replica whose numbers ascend one by one on one host. */
static void replica_print(const struct mesh *mesh, int replica, char (*host)[HOST], char *out,
                          size_t size)
{
    size_t used = 0;
    int runs = 0, ranks = mesh->pp * mesh->tp;
    bool dense = mesh->order == MESH_PP_DP || mesh->dp == 1 || mesh->pp == 1;
    for (int first = 0, last; first < ranks && used < size; first = last + 1, runs++) {
        int rank = rank_of(mesh, replica, first);
        last = first;
        while (last + 1 < ranks &&
               strcmp(host[rank_of(mesh, replica, last + 1)], host[rank]) == 0) {
            last++;
        }
        if (runs == TOLD_MOST) {
            snprintf(out + used, size - used, ", ...");
            return;
        }
        used += (size_t)snprintf(out + used, size - used, "%s%d", runs > 0 ? ", " : "ranks ", rank);
        if (last > first && used < size) {
            used += (size_t)snprintf(out + used, size - used, dense ? "-%d" : " .. %d",
                                     rank_of(mesh, replica, last));
        }
        if (used < size) {
            used += (size_t)snprintf(out + used, size - used, " on %s", host[rank]);
        }
    }
}

static void tell(const struct mesh *mesh, char (*host)[HOST])
{
    char line[512], together[16] = "", key[32] = "";
    if (mesh->tp > 1) {
        snprintf(together, sizeof together, " x %d", mesh->tp);
        snprintf(key, sizeof key, "parallel.tp=%d, ", mesh->tp);
    }
    log_info("%d replica%s of a pipeline of %d%s rank%s (%sparallel.order=%s)", mesh->dp,
             mesh->dp == 1 ? "" : "s", mesh->pp, together, mesh->pp * mesh->tp == 1 ? "" : "s", key,
             mesh->order == MESH_PP_DP ? "pp-dp" : "dp-pp");
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
    if (mesh->dp * mesh->tp == 1) {
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
