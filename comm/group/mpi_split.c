/* mpi_split.c - groups split from one of processes: communicators of their own, the liveness of the first. */
#include <stdlib.h>

#include "comm/comm.h"
#include "comm/group/mpi_group.h"

/* Who leads each member's host, among the members. */
static void find_hosts(struct group *made, const struct group *from, const int *members)
{
    for (int i = 0; i < made->size; i++) {
        int leader = 0;
        while (from->leader[members[leader]] != from->leader[members[i]]) {
            leader++;
        }
        mpi_state_of(made)->leader[i] = leader;
    }
    mpi_stand_on_host(made);
}

/* MPI has no splitting that could be tested for its end: a rank that is lost meanwhile ends this one by
 * force (health.h). */
static status_t make_communicators(struct mpi_state *state, const struct group *from, int color,
                                   int key)
{
    MPI_Comm *comms[] = {&state->collectives, &state->clocks};

    for (int i = 0; i < 2; i++) {
        TRY_MPI(MPI_Comm_split(mpi_state_of(from)->collectives, color, key, comms[i]),
                "to split a communicator");
        MPI_Comm_set_errhandler(*comms[i], MPI_ERRORS_RETURN);
    }
    return STATUS_OK;
}

static void made_free(struct group *made, struct mpi_state *state)
{
    if (made != NULL) {
        group_fini(made);
    }
    if (state != NULL) {
        free(state->leader);
    }
    free(state);
    free(made);
}

static status_t make_local(struct group *from, const int *members, int size, struct group **out)
{
    struct group *made = calloc(1, sizeof *made);
    struct mpi_state *state = calloc(1, sizeof *state);

    if (made != NULL && state != NULL && (state->leader = calloc((size_t)size, sizeof(int)))) {
        status_t status = group_init_split(made, from, members, size);
        if (status == STATUS_OK) {
            state->split = true;
            made->state = state;
            find_hosts(made, from, members);
            *out = made;
            return STATUS_OK;
        }
    }
    made_free(made, state);
    return FAIL(STATUS_NOMEM, "no memory for a group of %d processes", size);
}

status_t mpi_split(struct group *group, const int *members, int size, struct group **out)
{
    struct group *made = NULL;

    status_t status = group_agree(group, make_local(group, members, size, &made));
    if (status == STATUS_OK) {
        status = make_communicators(mpi_state_of(made), group, members[0], made->rank);
    }
    if (status != STATUS_OK) {
        made_free(made, made != NULL ? made->state : NULL);
        return status;
    }
    *out = made;
    return STATUS_OK;
}

/* The communicators of a group whose ranks are lost are left to the end of the process. */
void mpi_close_split(struct group *group)
{
    struct mpi_state *state = mpi_state_of(group);

    if (!group->shared->failed) {
        MPI_Comm_free(&state->collectives);
        MPI_Comm_free(&state->clocks);
    }
    mpi_scratch_free(state);
    made_free(group, state);
}
