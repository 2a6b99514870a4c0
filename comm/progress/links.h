/* links.h - messages to other hosts: in parts, in the order in which they are needed, few bytes at a time.
 *
 * What a rank sends to other hosts shares one link. A library that is given all of it moves all of it at once, and
 * what is needed now arrives with what is needed later. So the progress thread keeps puts in a list and gives the
 * library parts of messages: of the message with the lowest order (wire_put) whose slot has been posted, as long as
 * less than a window of bytes is under way. What becomes urgent waits for a window at most.
 *
 *     sender    takes a part of the first message of the list that has a slot
 *     receiver  posts all parts of a slot, and tells the sender; tells it when a part has landed
 *
 * A note carries both, counted since the wire was made, so that a later note says all that an earlier one did. Nothing
 * is sent that has no slot: what is under way lands whatever else happens, so no order can stop the wire.
 *
 * Ranks of a host that share its card share the window too (link_share.h): orders are the same on all ranks.
 *
 * All of it belongs to the progress thread.
 */
#ifndef COMM_LINKS_H
#define COMM_LINKS_H

#include "comm/progress/progress.h"

enum { NOTE_POSTS = 12 }; /* channels in one note */

struct link_note {
    int32_t from;
    int32_t channels;
    int64_t landed; /* bytes, of the note's reader */
    struct {
        int32_t channel;
        uint32_t posts; /* so far, modulo 2^32 */
    } posted[NOTE_POSTS];
};

/* What a transport does for it; each says by itself why it could not. */
struct links_class {
    /* Starts one part of a ticket's message, of which links_part tells the end. */
    bool (*part)(struct ticket *ticket, size_t offset, size_t bytes);
    /* Before the first part. What it starts itself is `pending` too, and ends with links_part. */
    bool (*begin)(struct ticket *ticket);
    /* All parts are through. */
    void (*complete)(struct ticket *ticket, bool good);
    /* `note` stays until links_told. */
    bool (*tell)(struct progress *progress, int to, const struct link_note *note);
};

/* NULL in *out: no channel of the wire is to be kept in order. */
MUST_USE status_t links_create(struct progress *progress, const struct links_class *class,
                               struct links **out);
void links_destroy(struct links *links);
/* Do the messages of the channel go by here? */
bool links_keep(const struct links *links, int channel);
/* The most parts of a message of the channel. */
int links_parts(const struct links *links, int channel);
/* The ranks whose notes come here; [ranks]. */
bool links_hear(const struct links *links, int rank);

void links_start(struct links *links, struct ticket *ticket);
/* A part of the ticket is through; `landed`: its bytes, for an arrival. */
void links_part(struct links *links, struct ticket *ticket, size_t landed, bool good);
void links_heard(struct links *links, const struct link_note *note);
void links_told(struct links *links, int to, bool good);
/* Something could leave but for what other ranks of the host have under way: look again soon. */
bool links_held(const struct links *links);
/* Starts what may be started, and tells what there is to tell. True if something was. */
bool links_turn(struct links *links);

#endif
