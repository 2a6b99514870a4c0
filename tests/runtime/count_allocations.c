/* count_allocations.c - what the program's own code allocates while it trains. To be linked with
 * muddpipe's objects and --wrap of every function below: then calls of those objects come here, calls of
 * the libraries beside them do not.
 *
 * Counted is from the begin of the second step to the end of the last, by every thread: steps, and the
 * evaluations between them. At its end the program says how many there were and where in it.
 */
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/device.h"
#include "runtime/runtime.h"

enum { SITES = 64 };

static atomic_bool counting;
static atomic_llong allocations;
static struct site {
    atomic_uintptr_t address;
    atomic_llong count;
} site[SITES];

extern const char __executable_start; /* the linker's */

static void count(const void *caller)
{
    uintptr_t address = (uintptr_t)caller - (uintptr_t)&__executable_start;
    if (!counting) {
        return;
    }
    allocations++;
    for (int i = 0; i < SITES; i++) {
        uintptr_t none = 0;
        if (site[i].address == address ||
            atomic_compare_exchange_strong(&site[i].address, &none, address) || none == address) {
            site[i].count++;
            return;
        }
    }
}

__attribute__((destructor)) static void say(void)
{
    char line[96];
    int length = snprintf(line, sizeof line, "allocated while training: %lld\n", allocations);
    fwrite(line, 1, (size_t)length, stderr);
    for (int i = 0; i < SITES && site[i].address != 0; i++) {
        length = snprintf(line, sizeof line, "allocated at 0x%llx: %lld\n",
                          (unsigned long long)site[i].address, site[i].count);
        fwrite(line, 1, (size_t)length, stderr);
    }
}

/* ---- the window ---- */

status_t __real_trainer_step(struct trainer *trainer, const struct batch *batch,
                             const struct optimizer_args *optimizer, struct step_result *out);
status_t __wrap_trainer_step(struct trainer *trainer, const struct batch *batch,
                             const struct optimizer_args *optimizer, struct step_result *out);
status_t __wrap_trainer_step(struct trainer *trainer, const struct batch *batch,
                             const struct optimizer_args *optimizer, struct step_result *out)
{
    static _Thread_local int own;
    if (++own == 2) {
        counting = true;
    }
    return __real_trainer_step(trainer, batch, optimizer, out);
}

status_t __real_trainer_flush(struct trainer *trainer);
status_t __wrap_trainer_flush(struct trainer *trainer);
status_t __wrap_trainer_flush(struct trainer *trainer)
{
    counting = false;
    return __real_trainer_flush(trainer);
}

/* ---- what allocates ---- */

/* WRAP(type, function, (parameters), (arguments)) */
#define WRAP(type, function, parameters, arguments)                                                \
    type __real_##function parameters;                                                             \
    type __wrap_##function parameters;                                                             \
    type __wrap_##function parameters                                                              \
    {                                                                                              \
        count(__builtin_return_address(0));                                                        \
        return __real_##function arguments;                                                        \
    }

WRAP(void *, malloc, (size_t size), (size))
WRAP(void *, calloc, (size_t pieces, size_t size), (pieces, size))
WRAP(void *, realloc, (void *memory, size_t size), (memory, size))
WRAP(void *, aligned_alloc, (size_t align, size_t size), (align, size))
WRAP(char *, strdup, (const char *text), (text))
WRAP(FILE *, fopen, (const char *path, const char *mode), (path, mode))
WRAP(FILE *, open_memstream, (char **text, size_t *size), (text, size))
WRAP(void *, mmap, (void *at, size_t size, int protection, int flags, int fd, off_t offset),
     (at, size, protection, flags, fd, offset))
WRAP(status_t, device_alloc,
     (struct device * device, enum memory_kind kind, size_t bytes, const char *what, void **out),
     (device, kind, bytes, what, out))
WRAP(status_t, device_register, (struct device * device, void *memory, size_t bytes),
     (device, memory, bytes))
WRAP(status_t, device_stream_create, (struct device * device, bool urgent, void **out),
     (device, urgent, out))
WRAP(status_t, device_event_create, (struct device * device, bool timed, struct device_event **out),
     (device, timed, out))
