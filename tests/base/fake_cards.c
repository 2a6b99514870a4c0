/* fake_cards.c - put before CUDA's runtime (LD_PRELOAD): a host whose driver is FAKE_DRIVER (13000 = for
 * CUDA 13.0, 0 = none), with a card of each capability in FAKE_CARDS ("90 75"). It cannot compute. With
 * FAKE_TELLS it says what CUDA would find in the environment when MPI starts, which may be the first to use
 * it. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cudaGetDeviceCount(int *out);
int cudaDriverGetVersion(int *out);
int cudaRuntimeGetVersion(int *out);
int cudaDeviceGetAttribute(int *out, int attribute, int card);
int MPI_Init_thread(int *argc, char ***argv, int required, int *provided);

enum { RUNTIME = 13000, INSUFFICIENT_DRIVER = 35, NO_DEVICE = 100, MAJOR = 75, MINOR = 76 };

static int capabilities(int out[8])
{
    const char *text = getenv("FAKE_CARDS");
    int count = 0, length = 0;
    while (text && count < 8 && sscanf(text, "%d%n", &out[count], &length) == 1) {
        text += length;
        count++;
    }
    return count;
}

int cudaDriverGetVersion(int *out)
{
    const char *text = getenv("FAKE_DRIVER");
    *out = text ? atoi(text) : 0;
    return 0;
}

int cudaRuntimeGetVersion(int *out)
{
    *out = RUNTIME;
    return 0;
}

int cudaGetDeviceCount(int *out)
{
    int driver, all[8];
    (void)cudaDriverGetVersion(&driver);
    *out = driver < RUNTIME ? 0 : capabilities(all);
    return driver < RUNTIME ? INSUFFICIENT_DRIVER : *out == 0 ? NO_DEVICE : 0;
}

int cudaDeviceGetAttribute(int *out, int attribute, int card)
{
    int all[8];
    if (card >= capabilities(all)) {
        return NO_DEVICE;
    }
    *out = attribute == MAJOR ? all[card] / 10 : attribute == MINOR ? all[card] % 10 : 0;
    return 0;
}

int MPI_Init_thread(int *argc, char ***argv, int required, int *provided)
{
    int (*real)(int *argc, char ***argv, int required, int *provided);
    void *found = dlsym(RTLD_NEXT, "MPI_Init_thread");
    const char *connections = getenv("CUDA_DEVICE_MAX_CONNECTIONS");
    memcpy(&real, &found, sizeof real);
    if (getenv("FAKE_TELLS")) {
        fprintf(stderr, "MPI starts with %s connections\n", connections ? connections : "no");
    }
    return real(argc, argv, required, provided);
}
