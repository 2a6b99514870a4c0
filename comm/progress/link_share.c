/* link_share.c - ranks of a host that share its network card, see link_share.h. */
#include "comm/progress/link_share.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"

enum { LINE = 64 }; /* bytes, of a cache */

struct line {
    _Alignas(LINE) _Atomic int64_t under_way;
    _Atomic int64_t order;
};

struct link_share {
    struct line *line; /* [lines] shared */
    int lines, own;
};

/* Where a rank's memory can be opened by another process of its host. */
struct card {
    int64_t pid, fd;
};

static int leader_of(const struct group *group, int rank)
{
    return group->leader ? group->leader[rank] : 0;
}

/* Ranks of this host, and how many of them come before this one. */
static int count_host(const struct group *group, int *out_before)
{
    int count = 0, here = leader_of(group, group->rank);

    *out_before = 0;
    for (int i = 0; i < group->size; i++) {
        count += leader_of(group, i) == here;
        *out_before += leader_of(group, i) == here && i < group->rank;
    }
    return count;
}

static struct line *map_lines(int fd, size_t bytes)
{
    void *memory =
        fd < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

/* By the first rank of the host: lines in which nobody has anything to send. -1: there is no memory for them. */
static int make_lines(int count, struct line **out)
{
    size_t bytes = (size_t)count * sizeof **out;
    int fd = memfd_create("muddpipe-link", MFD_CLOEXEC);

    *out = fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 ? map_lines(fd, bytes) : NULL;
    for (int i = 0; *out != NULL && i < count; i++) {
        atomic_store(&(*out)[i].order, INT64_MAX);
    }
    if (*out == NULL && fd >= 0) {
        close(fd);
    }
    return *out != NULL ? fd : -1;
}

/* By the others. */
static struct line *open_lines(const struct card *card, size_t bytes)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/%" PRId64 "/fd/%" PRId64, card->pid, card->fd);
    int fd = card->fd < 0 ? -1 : open(path, O_RDWR | O_CLOEXEC);
    struct line *line = map_lines(fd, bytes);
    if (fd >= 0) {
        close(fd);
    }
    return line;
}

status_t link_share_create(struct group *group, struct link_share **out)
{
    int own, lines = count_host(group, &own), here = leader_of(group, group->rank), error = 0;
    struct card mine = {.pid = getpid(), .fd = -1}, all[group->size];
    struct line *line = NULL;
    bool first = group->rank == here;

    *out = NULL;
    if (lines > 1 && first) {
        mine.fd = make_lines(lines, &line);
        error = errno;
    }
    status_t status = group_allgather(group, &mine, sizeof mine, all);
    if (status == STATUS_OK && lines > 1 && !first) {
        line = open_lines(&all[here], (size_t)lines * sizeof *line);
        error = errno;
    }
    if (status == STATUS_OK) {
        status = group_barrier(group); /* all have opened it */
    }
    if (mine.fd >= 0) {
        close((int)mine.fd);
    }
    *out = line != NULL ? malloc(sizeof **out) : NULL;
    if (*out != NULL) {
        **out = (struct link_share){line, lines, own};
    } else if (line != NULL) {
        munmap(line, (size_t)lines * sizeof *line);
    }
    if (lines > 1 && *out == NULL && status == STATUS_OK) {
        log_warn("rank %d cannot share memory with the ranks of its host (%s): its messages to "
                 "other hosts are not in one order with theirs",
                 group_named(group, group->rank), strerror(error));
    }
    if (status != STATUS_OK) {
        link_share_destroy(*out);
        *out = NULL;
    }
    return status;
}

void link_share_destroy(struct link_share *share)
{
    if (share == NULL) {
        return;
    }
    link_share_say(share, 0, INT64_MAX);
    munmap(share->line, (size_t)share->lines * sizeof *share->line);
    free(share);
}

void link_share_say(struct link_share *share, int64_t under_way, int64_t order)
{
    struct line *line = &share->line[share->own];

    atomic_store_explicit(&line->under_way, under_way, memory_order_relaxed);
    atomic_store_explicit(&line->order, order, memory_order_relaxed);
}

int64_t link_share_others(const struct link_share *share, int64_t *out_order)
{
    int64_t under_way = 0;

    *out_order = INT64_MAX;
    for (int i = 0; i < share->lines; i++) {
        if (i != share->own) {
            int64_t order = atomic_load_explicit(&share->line[i].order, memory_order_relaxed);
            under_way += atomic_load_explicit(&share->line[i].under_way, memory_order_relaxed);
            *out_order = order < *out_order ? order : *out_order;
        }
    }
    return under_way;
}
