/* foreign.h - private to model/: keys of config.json by which other model families change the arithmetic.
 *
 * A file may carry the names of other programs. What they say must be what is computed here: an equal value passes
 * in silence, another one is refused with the key that means it here, and so is what cannot be had at all.
 */
#ifndef MODEL_FOREIGN_H
#define MODEL_FOREIGN_H

#include "base/json.h"
#include "model/model.h"

enum { FOREIGN_MOST = 64 };

struct foreign;

/* One that a file has, until the whole configuration is known. */
struct foreign_key {
    const struct foreign *what; /* of the table in foreign.c */
    char key[64], text[64];     /* text: of the value */
    bool object;                /* whose value cannot be printed in a word */
    char place[512];
};
struct foreign_keys {
    struct foreign_key key[FOREIGN_MOST];
    int count;
};

/* Takes the key down if it is one of the table, and says whether it is. The value of rope_parameters and rope_scaling
 * may be an object, whose members are keys too. */
bool foreign_note(struct foreign_keys *keys, const char *key, const struct json *value,
                  const char *place);
/* Every one against the configuration as it will be computed. */
MUST_USE status_t foreign_check(const struct foreign_keys *keys, const struct model_config *config);

#endif
