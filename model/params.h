/* params.h - private to model/: how the table of parameters is made, and looked into. */
#ifndef MODEL_PARAMS_H
#define MODEL_PARAMS_H

#include "model/shape.h"

/* The unit whose parameters are being added. */
struct param_list {
    struct model *model;
    int unit, layer;
};

/* Shape [rows, columns]; columns 0 = a vector. What the return value points to may be changed until the
 * next one is added. */
struct param *param_add(struct param_list *list, int role, int64_t rows, int64_t columns,
                        enum param_init init, double value, const char *format, ...)
    __attribute__((format(printf, 7, 8)));

/* Fills model->param and unit_param. */
MUST_USE status_t params_fill(struct model *model);

/* Parameter with this role, -1 if the unit has none such. */
int unit_param(const struct model *model, int unit, int role, int index, bool bias);

#endif
