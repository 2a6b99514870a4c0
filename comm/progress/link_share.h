/* link_share.h - ranks of a host that share its network card: what they have under way together, and who is first.
 *
 * A line of shared memory for each of them, which it alone writes. Without shared memory every rank is by itself.
 */
#ifndef COMM_LINK_SHARE_H
#define COMM_LINK_SHARE_H

#include <stdint.h>

#include "comm/transport.h"

struct link_share;

/* Collective. NULL in *out: a rank that is alone on its host, or cannot reach the others' memory, which it says. */
MUST_USE status_t link_share_create(struct group *group, struct link_share **out);
void link_share_destroy(struct link_share *share); /* says that nothing is under way */
/* This rank has so many bytes under way, and what it would send next has this order; INT64_MAX: nothing. */
void link_share_say(struct link_share *share, int64_t under_way, int64_t order);
/* What the others have under way, and the least order of what they would send next. */
int64_t link_share_others(const struct link_share *share, int64_t *out_order);

#endif
