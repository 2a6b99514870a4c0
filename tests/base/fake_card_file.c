/* fake_card_file.c - put before the C library (LD_PRELOAD): a host with the file of an NVIDIA GPU. */
#include <dlfcn.h>
#include <string.h>
#include <unistd.h>

int access(const char *path, int mode)
{
    int (*real)(const char *path, int mode);
    void *found = dlsym(RTLD_NEXT, "access");
    memcpy(&real, &found, sizeof real);
    return strcmp(path, "/dev/nvidia0") == 0 ? 0 : real(path, mode);
}
