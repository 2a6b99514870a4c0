/* nccl_library.c - NCCL, found at run time: the program starts on machines without it. */
#include <dlfcn.h>

#include "comm/nccl/nccl_internal.h"

enum { RELEASE_LEAST = 21700 }; /* the first that lets us limit its CTAs */

#define LIBRARY_NAME "libnccl.so.2"

struct nccl_library nccl;

/* Where the loader looks, else where it was when this was built. */
static void *library_open(void)
{
    void *loaded = dlopen(LIBRARY_NAME, RTLD_NOW | RTLD_LOCAL);
#ifdef COMM_NCCL_FOLDER
    if (loaded == NULL) {
        loaded = dlopen(COMM_NCCL_FOLDER "/" LIBRARY_NAME, RTLD_NOW | RTLD_LOCAL);
    }
#endif
    return loaded;
}

status_t nccl_load(void)
{
    if (nccl.loaded != NULL) {
        return STATUS_OK;
    }
    void *loaded = library_open();
    if (loaded == NULL) {
        return FAIL(STATUS_UNSUPPORTED,
                    "transport nccl needs " LIBRARY_NAME ": %s; add its folder to LD_LIBRARY_PATH, "
                    "or use ipc or ucx",
                    dlerror());
    }
#define NCCL_FIND(name, symbol)                                                                    \
    nccl.name = (__typeof__(&symbol))dlsym(loaded, #symbol);                                       \
    if (nccl.name == NULL) {                                                                       \
        return FAIL(STATUS_UNSUPPORTED, LIBRARY_NAME " has no " #symbol "; a newer NCCL has");     \
    }
    NCCL_FUNCTIONS(NCCL_FIND)
#undef NCCL_FIND
    if (nccl.version(&nccl.release) != ncclSuccess || nccl.release < RELEASE_LEAST) {
        return FAIL(STATUS_UNSUPPORTED,
                    "NCCL is release %d, and transport nccl needs %d or later; use ipc or ucx",
                    nccl.release, RELEASE_LEAST);
    }
    nccl.loaded = loaded;
    return STATUS_OK;
}

status_t nccl_check(ncclResult_t result, status_t status, const char *doing, int from, int to)
{
    if (result == ncclSuccess) {
        return STATUS_OK;
    }
    const char *detail = nccl.last_error(NULL);
    return FAIL(
        status,
        "NCCL %s, rank %d to rank %d: %s%s%s (NCCL_DEBUG=WARN tells more; parallel.transport "
        "ipc and ucx do without NCCL)",
        doing, from, to, nccl.error_string(result), detail != NULL && detail[0] != '\0' ? ": " : "",
        detail != NULL ? detail : "");
}
