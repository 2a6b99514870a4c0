/* check_machine.h - the memory of the abstract machine (check_machine.c says what it proves). */
#ifndef SCHEDULE_CHECK_MACHINE_H
#define SCHEDULE_CHECK_MACHINE_H

#include "schedule/plan_internal.h"

enum slot_state { SLOT_FREE, SLOT_POSTED, SLOT_LANDED, SLOT_HELD, SLOT_FORMED };

/* An arrival slot, or a slot of a sum (both in one where a sum is received). */
struct slot {
    enum slot_state state;
    int microbatch;
    int uses;  /* still to come */
    int stage; /* SLOT_FORMED: by which; stages of a rank go on in one slot */
};

/* A frame, or what B of a unit leaves for GRAD and W. */
struct buffer {
    int microbatch;
    int uses;
};

struct message {
    bool put, landed;
    const struct op *behind; /* the put to the same rank that comes next */
};

/* Puts of one rank to another that have not landed: they land in their order (comm/comm.h). */
struct queue {
    const struct op *first, *last;
    int length;
};

struct machine {
    const struct checker *checker;
    const struct plan *plan;
    int *next;     /* [ranks] operation */
    bool *at_norm; /* [ranks] */
    struct slot *slot;
    size_t *shipment_slot;   /* [shipments] first slot; a backward one's is the sum's */
    int *arrival;            /* [ranks * keys] forward shipment that brings the key */
    size_t *sum_slot;        /* [sums] first slot */
    struct buffer *frame;    /* all stages' */
    size_t *frame_first;     /* [stages] */
    int *frame_uses;         /* [stages] uses of a frame by a microbatch */
    struct buffer *backward; /* all units' */
    size_t *backward_first;  /* [units] */
    int *open;               /* [ranks] unit between its B and a W at once; -1: none */
    bool *made;              /* [units][microbatches] F done */
    int *weights;            /* [units] microbatches whose weight gradient is in */
    struct message *message; /* [shipments][microbatches] */
    struct queue *queue;     /* [from][to] ranks */
};

static inline size_t machine_pair(const struct plan *plan, int row, int key)
{
    return (size_t)row * (size_t)plan->graph->keys + (size_t)key;
}

static inline int machine_home(const struct machine *machine, int key)
{
    return machine->checker->host[machine->plan->graph->key[key].producer];
}

/* Units of the stage that read the key. */
/* Do additions of the stage to the key's gradient read the key itself? */
bool machine_rereads(const struct plan *plan, int stage, int key);
int machine_readers(const struct plan *plan, int stage, int key);

/* False if there is no memory; fini is due all the same. */
bool machine_init(struct machine *machine);
void machine_fini(struct machine *machine);

#endif
