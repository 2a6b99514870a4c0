/* cost.h - private to model/: what every unit costs. */
#ifndef MODEL_COST_H
#define MODEL_COST_H

#include "model/model.h"

/* Fills in FLOPs and bytes of the graph's units; everything else of the model is there. */
MUST_USE status_t cost_fill(struct model *model);

#endif
