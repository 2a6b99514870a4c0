/* zb_v.c - two chunks a rank, placed there and back again, so that a rank has the first and the last
 * layers (ZB-V of Qi et al., 2024). With F = B = W and M >= 2P no rank idles between its first and its
 * last operation, in the activation memory of 1F1B.
 *
 * Rank r, down = its stage on the way there, up = the one on the way back:
 *
 *     2(P-r)-1 x   F down
 *     r        x   F up, F down
 *     P-r      x   F up, B up, W up
 *     then         B down, W down, F down, F up, B up, W up    while there are forwards
 *     r        x   B down, B up                                W of both put off
 *     P-r      x   B down, W down                              the oldest W
 *     then         W up, W down                                what is left
 *
 * It is written for 2P-1 microbatches and more; for fewer, those that do not exist are left out.
 *
 * While there are forwards, F down could come before B down as well. It comes after W down, for what B down
 * reads has arrived by then: at F = B = W nothing waits longer, and the down stage holds one frame less.
 */
#include "schedule/plan_internal.h"

struct vee {
    const struct layout *layout;
    struct phase_list *out;
    int stage[2];             /* down, up */
    int next[2][PHASE_KINDS]; /* microbatch of the next phase of each kind */
};

enum { DOWN, UP };

static void vee_add(struct vee *vee, enum phase_kind kind, int way)
{
    int m = vee->next[way][kind]++;
    if (m < vee->layout->microbatches) {
        phase_add(vee->out, kind, vee->stage[way], m);
    }
}

static void vee_backward(struct vee *vee, int way)
{
    vee_add(vee, PHASE_B, way);
    vee_add(vee, PHASE_K, way);
}

static void vee_whole_backward(struct vee *vee, int way)
{
    vee_backward(vee, way);
    vee_add(vee, PHASE_W, way);
}

static void vee_warm_up(struct vee *vee, int P, int rank)
{
    for (int i = 0; i < 2 * (P - rank) - 1; i++) {
        vee_add(vee, PHASE_F, DOWN);
    }
    for (int i = 0; i < rank; i++) {
        vee_add(vee, PHASE_F, UP);
        vee_add(vee, PHASE_F, DOWN);
    }
    for (int i = 0; i < P - rank; i++) {
        vee_add(vee, PHASE_F, UP);
        vee_whole_backward(vee, UP);
    }
}

static void vee_cool_down(struct vee *vee, int P, int rank)
{
    for (int i = 0; i < rank; i++) {
        vee_backward(vee, DOWN);
        vee_backward(vee, UP);
    }
    for (int i = 0; i < P - rank; i++) {
        vee_whole_backward(vee, DOWN);
    }
    for (int way = UP; way >= DOWN; way--) {
        while (vee->next[way][PHASE_W] < vee->next[way][PHASE_B]) {
            vee_add(vee, PHASE_W, way);
        }
    }
}

static void zb_v_build(const struct layout *layout, int rank, struct phase_list *out)
{
    int P = layout->ranks, M = layout->microbatches > 2 * P - 1 ? layout->microbatches : 2 * P - 1;
    struct vee vee = {.layout = layout, .out = out, .stage = {rank, 2 * P - 1 - rank}};
    vee_warm_up(&vee, P, rank);
    while (vee.next[UP][PHASE_F] < vee.next[DOWN][PHASE_F] || vee.next[DOWN][PHASE_F] < M) {
        vee_whole_backward(&vee, DOWN);
        if (vee.next[DOWN][PHASE_F] < M) {
            vee_add(&vee, PHASE_F, DOWN);
        }
        vee_add(&vee, PHASE_F, UP);
        vee_whole_backward(&vee, UP);
    }
    vee_cool_down(&vee, P, rank);
}

const struct builder zb_v_builder = {.name = "zb-v",
                                     .training = true,
                                     .delays_weights = true,
                                     .chunks = 2,
                                     .most_chunks = 2,
                                     .rank_of = place_vee,
                                     .build = zb_v_build};
