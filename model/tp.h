/* tp.h - private to model/: what a part of tensor parallelism has, and its exchanges (model.h).
 *
 * Units are written for any number of parts: with one, exchanges do nothing and tensors stand for themselves.
 */
#ifndef MODEL_TP_H
#define MODEL_TP_H

#include "model/part_internal.h"

/* Does use->tp divide all that it has to? */
MUST_USE status_t tp_check(const struct model_config *config, const struct model_use *use);

/* Where element `local` of what part `tp_rank` has lies in the whole parameter; returns how many elements from there
 * on follow each other in both. */
int64_t tp_run(const struct param *param, int tp, int tp_rank, int64_t local, int64_t *out_whole);

/* Words of the vocabulary that this part has, and the first of them. */
size_t tp_words(const struct part *part);
size_t tp_first_word(const struct part *part);

/* ---- exchanges of rows of width D, ended in the order in which they were begun ----
 *
 * Where each part has all rows of the keys (model->split_rows is false) nothing is gathered, and a sum is one of all
 * rows. */

/* Rooms [tokens, D] that the part's units need for rows of all parts; with one part none. */
int tp_rooms(const struct model *model);
/* Rows [N, D] of each part go to room `which`. */
void tp_gather_begin(struct part *part, const void *tensor, int which);
void tp_gather_end(struct part *part);
/* `tensor` [tokens, D] is a part's share of a sum, which this part gets of its rows, in their place. */
void tp_reduce_begin(struct part *part, void *tensor);
void tp_reduce_end(struct part *part);
/* [count] of each part, one after the other, to out; of several parts. */
void tp_gather_sums(struct part *part, const float *own, float *out, size_t count);

/* The rows of all parts where tp_gather_begin put them; with one part `tensor`. */
const void *tp_all(const struct part *part, const void *tensor, int which);
/* Where to form a share of a sum: room `which`; with one part `alone`. */
void *tp_partial(const struct part *part, int which, void *alone);
/* This part's rows of a tensor [tokens, D]. */
void *tp_own_rows(const struct part *part, void *tensor);

/* ---- the output of a unit: a product over inputs that are divided ---- */

/* Makes the output of what the product left in tp_partial(part, 0, stash->out). */
void tp_sum_output(struct part *part, const struct unit_shape *shape, const struct stash *stash);
/* Its bias, which the first part adds, and whose gradient that part forms; NULL in the others. */
const void *tp_bias(const struct part *part, int unit, int role);
float *tp_bias_gradient(const struct part *part, int unit, int role);
/* The output's gradient of all rows: gathered by B where they are divided, kept until W. */
const void *tp_gather_output_gradient(struct part *part, int unit);
const void *tp_output_gradient(const struct part *part, int unit);

#endif
