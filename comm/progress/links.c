/* links.c - messages to other hosts, see links.h. */
#include "comm/progress/links.h"

#include <stdlib.h>

#include "base/log.h"
#include "comm/progress/link_share.h"

struct link_channel {
    bool kept;
    uint32_t posts; /* made here, or told by the receiver */
    uint32_t puts;  /* started here */
    int64_t order;  /* of the last of them */
    bool untold;    /* posts that the sender does not know of */
    int next;       /* untold: the next one of the same peer, -1 = none */
};

struct link_peer {
    bool talks;
    int64_t landed;        /* bytes that it says it has */
    int64_t arrived, told; /* bytes from it, of which it knows */
    int first, last;       /* channels with untold posts; -1 = none */
    bool telling;          /* the note is under way */
    struct link_note note;
};

struct links {
    struct progress *progress;
    const struct links_class *class;
    size_t part;
    int64_t window, under_way; /* bytes */
    bool by_order;
    struct link_channel *channel; /* [count] */
    struct link_peer *peer;       /* [ranks] */
    struct ticket *waiting;       /* departures of which parts are left, in the order of leaving */
    struct link_share *share;     /* the wire's; NULL: the link is this rank's alone */
    bool held;                    /* what could leave waits for other ranks of the host */
};

/* ---- creation ---- */

static bool crosses(const struct wire *wire, const struct wire_channel *c)
{
    const int *leader = wire->group->leader;
    bool mine = c->from == wire->group->rank || c->to == wire->group->rank;
    return mine && (wire->links.all || (leader && leader[c->from] != leader[c->to]));
}

status_t links_create(struct progress *progress, const struct links_class *class,
                      struct links **out)
{
    struct wire *wire = progress->wire;
    int kept = 0, size = wire->group->size;

    *out = NULL;
    for (int i = 0; i < wire->count; i++) {
        kept += crosses(wire, &wire->channel[i]);
    }
    if (kept == 0 || wire->links.window <= 0) {
        return STATUS_OK;
    }
    struct links *links = calloc(1, sizeof *links);
    if (links != NULL) {
        links->channel = calloc((size_t)wire->count, sizeof *links->channel);
        links->peer = calloc((size_t)size, sizeof *links->peer);
    }
    if (links == NULL || links->channel == NULL || links->peer == NULL) {
        links_destroy(links);
        return FAIL(STATUS_NOMEM, "no memory for the links of %d channels", kept);
    }
    links->progress = progress;
    links->class = class;
    links->part = (size_t)wire->links.part;
    links->window = wire->links.window;
    links->by_order = wire->links.by_order;
    links->share = wire->share;
    for (int i = 0; i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        links->channel[i].kept = crosses(wire, c);
        if (links->channel[i].kept) {
            links->peer[c->from == wire->group->rank ? c->to : c->from].talks = true;
        }
    }
    for (int i = 0; i < size; i++) {
        links->peer[i].first = links->peer[i].last = -1;
    }
    *out = links;
    return STATUS_OK;
}

void links_destroy(struct links *links)
{
    if (links == NULL) {
        return;
    }
    free(links->channel);
    free(links->peer);
    free(links);
}

bool links_keep(const struct links *links, int channel)
{
    return links != NULL && links->channel[channel].kept;
}

int links_parts(const struct links *links, int channel)
{
    size_t bytes = links->progress->wire->channel[channel].bytes;
    return (int)((bytes + links->part - 1) / links->part);
}

bool links_hear(const struct links *links, int rank)
{
    return links != NULL && links->peer[rank].talks;
}

/* ---- messages ---- */

static size_t next_part(const struct links *links, const struct ticket *ticket)
{
    size_t left = ticket->bytes - ticket->started;
    return left < links->part ? left : links->part;
}

/* All parts that were started are through, and no more will be. */
static void close_ticket(struct links *links, struct ticket *ticket)
{
    if (ticket->pending == 0 && (ticket->broken || ticket->started == ticket->bytes)) {
        links->class->complete(ticket, !ticket->broken);
    }
}

static void start_part(struct links *links, struct ticket *ticket)
{
    size_t offset = ticket->started, bytes = next_part(links, ticket);

    ticket->pending++; /* before: the end may be told at once */
    ticket->started += bytes;
    if (!links->class->part(ticket, offset, bytes)) {
        ticket->pending--;
        ticket->broken = true;
    }
}

/* Behind those of the same order. */
static void wait_in_line(struct links *links, struct ticket *ticket)
{
    struct ticket **link = &links->waiting;

    while (*link != NULL && (!links->by_order || (*link)->order <= ticket->order)) {
        link = &(*link)->next;
    }
    ticket->next = *link;
    *link = ticket;
}

static void tell_post(struct links *links, int channel)
{
    struct link_channel *own = &links->channel[channel];
    struct link_peer *peer = &links->peer[links->progress->wire->channel[channel].from];

    own->posts++;
    if (own->untold) {
        return;
    }
    own->untold = true;
    own->next = -1;
    if (peer->last >= 0) {
        links->channel[peer->last].next = channel;
    } else {
        peer->first = channel;
    }
    peer->last = channel;
}

void links_start(struct links *links, struct ticket *ticket)
{
    ticket->pending = 0;
    ticket->started = 0;
    ticket->broken = !links->class->begin(ticket);
    if (ticket->sending) {
        struct link_channel *own = &links->channel[ticket->channel];
        CHECK(own->puts == 0 || ticket->order >= own->order,
              "channel %d: message %lld of order %lld after one of order %lld", ticket->channel,
              (long long)ticket->message, (long long)ticket->order, (long long)own->order);
        ticket->number = ++own->puts;
        own->order = ticket->order;
        wait_in_line(links, ticket);
        return;
    }
    ticket->pending++; /* lest the last part closes it in the middle */
    while (!ticket->broken && ticket->started < ticket->bytes) {
        start_part(links, ticket);
    }
    ticket->pending--;
    tell_post(links, ticket->channel);
    close_ticket(links, ticket);
}

void links_part(struct links *links, struct ticket *ticket, size_t landed, bool good)
{
    ticket->pending--;
    ticket->broken = ticket->broken || !good;
    if (!ticket->sending) {
        struct wire *wire = links->progress->wire;
        links->peer[wire->channel[ticket->channel].from].arrived += (int64_t)landed;
        wire_arrives(wire, ticket->channel, landed);
    }
    if (ticket->sending && ticket->started < ticket->bytes) {
        return; /* it is in the list, which links_turn alone changes */
    }
    close_ticket(links, ticket);
}

/* ---- notes ---- */

void links_heard(struct links *links, const struct link_note *note)
{
    struct link_peer *peer = &links->peer[note->from];

    if (note->landed > peer->landed) {
        links->under_way -= note->landed - peer->landed;
        peer->landed = note->landed;
    }
    for (int i = 0; i < note->channels && i < NOTE_POSTS; i++) {
        links->channel[note->posted[i].channel].posts = note->posted[i].posts;
    }
}

void links_told(struct links *links, int to, bool good)
{
    links->peer[to].telling = false;
    if (!good) {
        log_debug("a note to rank %d was lost", to);
    }
}

static void write_note(struct links *links, struct link_peer *peer)
{
    struct link_note *note = &peer->note;

    *note = (struct link_note){.from = links->progress->wire->group->rank, .landed = peer->arrived};
    peer->told = peer->arrived;
    while (peer->first >= 0 && note->channels < NOTE_POSTS) {
        struct link_channel *own = &links->channel[peer->first];
        note->posted[note->channels].channel = peer->first;
        note->posted[note->channels].posts = own->posts;
        note->channels++;
        own->untold = false;
        peer->first = own->next;
    }
    if (peer->first < 0) {
        peer->last = -1;
    }
}

static bool tell(struct links *links)
{
    bool told = false;

    for (int i = 0; i < links->progress->wire->group->size; i++) {
        struct link_peer *peer = &links->peer[i];
        if (!peer->talks || peer->telling || (peer->first < 0 && peer->told == peer->arrived)) {
            continue;
        }
        write_note(links, peer);
        peer->telling = true;
        told = true;
        if (!links->class->tell(links->progress, i, &peer->note)) {
            peer->telling = false;
        }
    }
    return told;
}

/* The first message that has a slot. A broken one leaves the list. */
static struct ticket **find_next(struct links *links)
{
    struct ticket **link = &links->waiting;

    while (*link != NULL && !(*link)->broken &&
           (int32_t)(links->channel[(*link)->channel].posts - (*link)->number) < 0) {
        link = &(*link)->next;
    }
    return link;
}

static void send_part(struct links *links, struct ticket **link)
{
    struct ticket *ticket = *link;

    ticket->pending++; /* lest it ends in here */
    if (!ticket->broken) {
        links->under_way += (int64_t)next_part(links, ticket);
        start_part(links, ticket);
    }
    ticket->pending--;
    if (ticket->broken || ticket->started == ticket->bytes) {
        *link = ticket->next;
        close_ticket(links, ticket);
    }
}

/* Is there room in the window for this one? On a link that is shared, what another rank would send first has half of
 * it to itself; and a rank with nothing under way may always send, lest it waits for one that does not. */
static bool has_room(struct links *links, const struct ticket *ticket)
{
    int64_t first, others;

    if (links->share == NULL) {
        return links->under_way < links->window;
    }
    link_share_say(links->share, links->under_way, ticket ? ticket->order : INT64_MAX);
    if (ticket == NULL || links->under_way == 0) {
        return true;
    }
    others = link_share_others(links->share, &first);
    bool mine = !links->by_order || ticket->order <= first;
    bool room = links->under_way + others < (mine ? links->window : links->window / 2);
    links->held = !room && links->under_way < links->window;
    return room;
}

bool links_held(const struct links *links)
{
    return links != NULL && links->held;
}

bool links_turn(struct links *links)
{
    bool moved = false;

    links->held = false;
    for (;;) {
        struct ticket **link = find_next(links);
        if (!has_room(links, *link) || *link == NULL) {
            break;
        }
        send_part(links, link);
        moved = true;
    }
    return tell(links) || moved;
}
