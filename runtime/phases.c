/* phases.c - from the start of a process to its first step (phases.h). */
#include "runtime/phases.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/trace.h"

/* Age of this process in seconds: field 22 of its stat is when it started, in ticks since the host did. 0 where
 * /proc does not tell. */
static double process_age(void)
{
    char line[1024] = "";
    unsigned long long ticks = 0;
    struct timespec now;
    FILE *file = fopen("/proc/self/stat", "r");
    const char *at = file && fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
    for (int field = 2; at && field < 22; field++) { /* the name before it may have spaces */
        at = strchr(at + 1, ' ');
    }
    bool known = at && sscanf(at, "%llu", &ticks) == 1 && clock_gettime(CLOCK_BOOTTIME, &now) == 0;
    if (file) {
        fclose(file);
    }
    return known ? (double)now.tv_sec + (double)now.tv_nsec * 1e-9 -
                       (double)ticks / (double)sysconf(_SC_CLK_TCK)
                 : 0;
}

void phases_end(struct phases *phases, const char *name)
{
    int64_t now = trace_now();
    if (phases->count == 0) {
        phases->begun = now - (int64_t)(process_age() * 1e9);
    }
    if (phases->count < PHASES_MOST) {
        phases->name[phases->count] = name;
        phases->end[phases->count++] = now;
    }
}

const char *phases_print(const struct phases *phases, char *buffer, size_t size)
{
    int64_t before = phases->begun,
            last = phases->count > 0 ? phases->end[phases->count - 1] : before;
    size_t length = (size_t)snprintf(buffer, size, "%.2f s", (double)(last - before) * 1e-9);
    for (int i = 0; i < phases->count && length < size; i++) {
        length += (size_t)snprintf(buffer + length, size - length, "%s %s %.2f", i == 0 ? ":" : ",",
                                   phases->name[i], (double)(phases->end[i] - before) * 1e-9);
        before = phases->end[i];
    }
    return buffer;
}
