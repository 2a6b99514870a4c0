/* audit.c - what was written, and whether it stays and comes again (audit.h). */
#include "kernels/audit_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

struct written {
    const char *at;
    size_t bytes;
    uint64_t hash;
    const char *operation, *name; /* that wrote it, as which argument; "it", "arrived" */
    char what[AUDIT_WHAT];        /* during what */
};

struct audit {
    struct audit_memory memory;
    struct written *written;
    int count, room;
    char what[AUDIT_WHAT];
    const char *operation; /* under way */
    char *before, *fetched;
    size_t before_room, fetched_room;
    uint64_t first[AUDIT_USES];
    int64_t operations, bytes;
    status_t status; /* the first failure */
    bool told;
    char found[3 * AUDIT_WHAT + 400]; /* STATUS_MISMATCH: what */
};

status_t audit_create(const struct audit_memory *memory, struct audit **out)
{
    struct audit *audit = calloc(1, sizeof *audit);
    if (!audit) {
        return FAIL(STATUS_NOMEM, "no memory to compute operations twice");
    }
    audit->memory = memory ? *memory : (struct audit_memory){0};
    *out = audit;
    return STATUS_OK;
}

void audit_destroy(struct audit *audit)
{
    if (audit) {
        free(audit->written);
        free(audit->before);
        free(audit->fetched);
        free(audit);
    }
}

void audit_say(struct audit *audit, const char *what)
{
    snprintf(audit->what, sizeof audit->what, "%s", what);
}

void audit_counts(const struct audit *audit, int64_t *out_operations, int64_t *out_bytes)
{
    *out_operations = audit->operations;
    *out_bytes = audit->bytes;
}

status_t audit_result(struct audit *audit)
{
    if (audit->status == STATUS_MISMATCH && !audit->told) {
        audit->told = true;
        return FAIL(STATUS_MISMATCH, "%s", audit->found);
    }
    return audit->status;
}

/* ---- memory ---- */

static status_t room_for(char **memory, size_t *room, size_t bytes)
{
    if (bytes <= *room) {
        return STATUS_OK;
    }
    char *more = realloc(*memory, bytes);
    if (!more) {
        return FAIL(STATUS_NOMEM, "no %zu bytes of memory to compute an operation twice", bytes);
    }
    *memory = more;
    *room = bytes;
    return STATUS_OK;
}

static status_t fetch(const struct audit *audit, void *dst, const void *src, size_t bytes)
{
    if (audit->memory.fetch) {
        return audit->memory.fetch(audit->memory.arg, dst, src, bytes);
    }
    memcpy(dst, src, bytes);
    return STATUS_OK;
}

static status_t store(const struct audit *audit, void *dst, const void *src, size_t bytes)
{
    if (audit->memory.store) {
        return audit->memory.store(audit->memory.arg, dst, src, bytes);
    }
    memcpy(dst, src, bytes);
    return STATUS_OK;
}

status_t audit_hash(struct audit *audit, const void *at, size_t bytes, uint64_t *out)
{
    if (audit->memory.fetch) {
        TRY(room_for(&audit->fetched, &audit->fetched_room, bytes));
        TRY(fetch(audit, audit->fetched, at, bytes));
        at = audit->fetched;
    }
    *out = hash_bytes(at, bytes, 0);
    return STATUS_OK;
}

size_t audit_largest(struct audit *audit, const int32_t *ids, size_t count)
{
    int32_t largest = -1;
    const int32_t *list = ids;
    if (audit->status == STATUS_OK && audit->memory.fetch) {
        audit->status = room_for(&audit->fetched, &audit->fetched_room, count * sizeof *ids);
        if (audit->status == STATUS_OK) {
            audit->status = fetch(audit, audit->fetched, ids, count * sizeof *ids);
        }
        list = (const int32_t *)(const void *)audit->fetched;
    }
    for (size_t i = 0; i < count && audit->status == STATUS_OK; i++) {
        largest = list[i] > largest ? list[i] : largest;
    }
    return (size_t)(largest + 1);
}

/* ---- what was written ---- */

static bool overlap(const struct written *written, const char *at, size_t bytes)
{
    return written->at < at + bytes && at < written->at + written->bytes;
}

static void forget(struct audit *audit, const void *at, size_t bytes)
{
    int kept = 0;
    for (int i = 0; i < audit->count; i++) {
        if (!overlap(&audit->written[i], at, bytes)) {
            audit->written[kept++] = audit->written[i];
        }
    }
    audit->count = kept;
}

static status_t remember(struct audit *audit, const void *at, size_t bytes, uint64_t hash,
                         const char *operation, const char *name)
{
    forget(audit, at, bytes);
    if (audit->count == audit->room) {
        int room = 2 * audit->room + 64;
        struct written *more = realloc(audit->written, (size_t)room * sizeof *more);
        if (!more) {
            return FAIL(STATUS_NOMEM, "no memory to remember what %d operations wrote", room);
        }
        audit->written = more;
        audit->room = room;
    }
    struct written *written = &audit->written[audit->count++];
    *written = (struct written){
        .at = at, .bytes = bytes, .hash = hash, .operation = operation, .name = name};
    memcpy(written->what, audit->what, sizeof written->what);
    return STATUS_OK;
}

status_t audit_written(struct audit *audit, const void *at, size_t bytes, uint64_t *out)
{
    TRY(audit_hash(audit, at, bytes, out));
    return remember(audit, at, bytes, *out, "it", "arrived");
}

void audit_keep(struct audit *audit, const struct audit_range *range, int ranges)
{
    int kept = 0;
    for (int i = 0; i < audit->count; i++) {
        const struct written *written = &audit->written[i];
        bool inside = false;
        for (int r = 0; r < ranges; r++) {
            const char *begin = range[r].at;
            inside = inside || (begin && written->at >= begin &&
                                written->at + written->bytes <= begin + range[r].bytes);
        }
        if (inside) {
            audit->written[kept++] = *written;
        }
    }
    audit->count = kept;
}

static status_t mismatch(struct audit *audit)
{
    audit->status = STATUS_MISMATCH;
    return STATUS_MISMATCH;
}

/* Reads what somebody wrote under our eyes: is it still that? */
static status_t look_again(struct audit *audit, const struct tensor_use *use)
{
    uint64_t hash;
    for (int i = 0; i < audit->count; i++) {
        const struct written *written = &audit->written[i];
        if (written->at != use->at || written->bytes != use->bytes) {
            continue;
        }
        TRY(audit_hash(audit, use->at, use->bytes, &hash));
        if (hash == written->hash) {
            return STATUS_OK;
        }
        snprintf(audit->found, sizeof audit->found,
                 "%s: %s reads %s [%zu bytes], which has changed since %s %s in %s: memory of this "
                 "rank's host or GPU is not to be trusted",
                 audit->what, audit->operation, use->name, use->bytes, written->operation,
                 written->name, written->what);
        return mismatch(audit);
    }
    return STATUS_OK;
}

/* ---- an operation ---- */

static status_t begin(struct audit *audit, const struct tensor_use *use, int uses)
{
    size_t bytes = 0;
    for (int i = 0; i < uses; i++) {
        if (use[i].read) {
            TRY(look_again(audit, &use[i]));
        }
        bytes += use[i].written ? use[i].bytes : 0;
    }
    TRY(room_for(&audit->before, &audit->before_room, bytes));
    bytes = 0;
    for (int i = 0; i < uses; i++) {
        if (use[i].written) {
            TRY(fetch(audit, audit->before + bytes, use[i].at, use[i].bytes));
            bytes += use[i].bytes;
        }
    }
    return STATUS_OK;
}

bool audit_begin(struct audit *audit, const char *operation, const struct tensor_use *use, int uses)
{
    audit->operation = operation;
    if (audit->status == STATUS_OK) {
        audit->status = begin(audit, use, uses);
    }
    return audit->status == STATUS_OK;
}

static status_t put_back(struct audit *audit, const struct tensor_use *use, int uses)
{
    size_t at = 0;
    for (int i = 0; i < uses; i++) {
        if (use[i].written) {
            TRY(audit_hash(audit, use[i].at, use[i].bytes, &audit->first[i]));
        }
    }
    for (int i = 0; i < uses; i++) {
        if (use[i].written) {
            TRY(store(audit, use[i].at, audit->before + at, use[i].bytes));
            at += use[i].bytes;
        }
    }
    return STATUS_OK;
}

bool audit_again(struct audit *audit, const struct tensor_use *use, int uses)
{
    audit->status = put_back(audit, use, uses);
    return audit->status == STATUS_OK;
}

static status_t compare(struct audit *audit, const struct tensor_use *use, int uses)
{
    audit->operations++;
    for (int i = 0; i < uses; i++) {
        uint64_t hash;
        if (!use[i].written) {
            continue;
        }
        TRY(audit_hash(audit, use[i].at, use[i].bytes, &hash));
        audit->bytes += (int64_t)use[i].bytes;
        if (hash != audit->first[i]) {
            snprintf(
                audit->found, sizeof audit->found,
                "%s: %s, computed twice from the same numbers, gave two results in %s [%zu bytes]: "
                "this rank's processor or GPU is not to be trusted",
                audit->what, audit->operation, use[i].name, use[i].bytes);
            return mismatch(audit);
        }
        TRY(remember(audit, use[i].at, use[i].bytes, hash, audit->operation, use[i].name));
    }
    return STATUS_OK;
}

void audit_end(struct audit *audit, const struct tensor_use *use, int uses)
{
    audit->status = compare(audit, use, uses);
}
