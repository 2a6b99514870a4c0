/* program_id.c - tells builds apart. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "runtime/runtime.h"

uint64_t program_id(void)
{
    struct stat info;
    uint64_t id = 0;
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return 0;
    }
    if (fstat(file, &info) == 0 && info.st_size > 0) {
        void *bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, file, 0);
        if (bytes != MAP_FAILED) {
            id = hash_bytes(bytes, (size_t)info.st_size, 0);
            munmap(bytes, (size_t)info.st_size);
        }
    }
    close(file);
    return id;
}
