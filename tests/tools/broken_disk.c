/* broken_disk.c - a disk that fails, for a program that loads this before the C library.
 *
 * BROKEN_DISK=CALL:WORD[:ERRNO] makes CALL (pwrite, fsync, rename, mkdir, unlink) fail on paths that contain WORD, with
 * ENOSPC (28) unless said. ERRNO "kill" or "stop" ends or stops the process there. BROKEN_DISK_SLOW=WORD:MS makes every pwrite to such a path take so long.
 */
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static bool breaks(const char *call, const char *path)
{
    const char *order = getenv("BROKEN_DISK");
    char word[128] = "", what[32] = "", how[16] = "28";
    if (order == NULL || sscanf(order, "%31[^:]:%127[^:]:%15s", what, word, how) < 2 ||
        strcmp(what, call) != 0 || strstr(path, word) == NULL) {
        return false;
    }
    if (strcmp(how, "kill") == 0 || strcmp(how, "stop") == 0) {
        raise(how[0] == 'k' ? SIGKILL : SIGSTOP);
        return false;
    }
    errno = atoi(how);
    return true;
}

static const char *path_of(int file, char *buffer, size_t size)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, buffer, size - 1);
    buffer[length > 0 ? length : 0] = '\0';
    return buffer;
}

static void slow_down(const char *path)
{
    const char *order = getenv("BROKEN_DISK_SLOW");
    char word[128];
    int ms;
    if (order != NULL && sscanf(order, "%127[^:]:%d", word, &ms) == 2 &&
        strstr(path, word) != NULL) {
        nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
    }
}

ssize_t pwrite64(int file, const void *data, size_t size, off_t offset);
ssize_t pwrite(int file, const void *data, size_t size, off_t offset)
{
    static ssize_t (*real)(int, const void *, size_t, off_t);
    char path[PATH_MAX];
    path_of(file, path, sizeof path);
    slow_down(path);
    if (real == NULL) {
        *(void **)&real = dlsym(RTLD_NEXT, "pwrite");
    }
    return breaks("pwrite", path) ? -1 : real(file, data, size, offset);
}

ssize_t pwrite64(int file, const void *data, size_t size, off_t offset)
{
    return pwrite(file, data, size, offset);
}

int fsync(int file)
{
    static int (*real)(int);
    char path[PATH_MAX];
    if (real == NULL) {
        *(void **)&real = dlsym(RTLD_NEXT, "fsync");
    }
    return breaks("fsync", path_of(file, path, sizeof path)) ? -1 : real(file);
}

int rename(const char *from, const char *to)
{
    static int (*real)(const char *, const char *);
    if (real == NULL) {
        *(void **)&real = dlsym(RTLD_NEXT, "rename");
    }
    return breaks("rename", to) ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t mode)
{
    static int (*real)(const char *, mode_t);
    if (real == NULL) {
        *(void **)&real = dlsym(RTLD_NEXT, "mkdir");
    }
    return breaks("mkdir", path) ? -1 : real(path, mode);
}

int unlink(const char *path)
{
    static int (*real)(const char *);
    if (real == NULL) {
        *(void **)&real = dlsym(RTLD_NEXT, "unlink");
    }
    return breaks("unlink", path) ? -1 : real(path);
}
