/* fabric.c - InfiniBand and RoCE ports, and how near they are to a GPU, from sysfs. */
#include <ctype.h>
#include <dirent.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "tools/preflight/preflight.h"

const char *distance_name(enum distance distance)
{
    static const char *const name[DISTANCES] = {"same PCIe switch", "same PCIe host bridge",
                                                "same NUMA node", "across NUMA nodes"};
    return name[distance];
}

/* The first line of a file, without its end; "" if there is none. */
static void read_line(const char *path, char *out, size_t size)
{
    FILE *file = fopen(path, "r");
    out[0] = '\0';
    if (file) {
        if (!fgets(out, (int)size, file)) {
            out[0] = '\0';
        }
        out[strcspn(out, "\n")] = '\0';
        fclose(file);
    }
}

static int numa_of(const char *device)
{
    char path[PATH_MAX + 128], line[32];
    snprintf(path, sizeof path, "%s/numa_node", device);
    read_line(path, line, sizeof line);
    return line[0] ? atoi(line) : -1;
}

/* The fastest of the adapter's ports that are up; 0 if none is. "4: ACTIVE", "400 Gb/sec (4X NDR)". */
static double rate_of(const char *adapter)
{
    char path[PATH_MAX + 128], line[64];
    double most = 0;
    for (int port = 1; port <= 4; port++) {
        snprintf(path, sizeof path, "%s/ports/%d/state", adapter, port);
        read_line(path, line, sizeof line);
        if (strstr(line, "ACTIVE")) {
            snprintf(path, sizeof path, "%s/ports/%d/rate", adapter, port);
            read_line(path, line, sizeof line);
            double rate = atof(line);
            most = rate > most ? rate : most;
        }
    }
    return most;
}

static bool adapter_read(const char *class, const char *name, struct adapter *out)
{
    char path[PATH_MAX + 64], device[PATH_MAX + 80], *real;
    snprintf(path, sizeof path, "%s/%s", class, name);
    snprintf(out->name, sizeof out->name, "%.31s", name);
    out->gbit = rate_of(path);
    snprintf(device, sizeof device, "%s/device", path);
    real = realpath(device, NULL);
    snprintf(out->path, sizeof out->path, "%s", real ? real : "");
    free(real);
    out->numa = numa_of(device);
    return out->gbit > 0;
}

int fabric_read(const char *root, struct adapter *out)
{
    char path[PATH_MAX];
    int count = 0;
    snprintf(path, sizeof path, "%s/class/infiniband", root);
    DIR *folder = opendir(path);
    for (const struct dirent *entry; folder && count < ADAPTERS && (entry = readdir(folder));) {
        if (entry->d_name[0] != '.' && strlen(entry->d_name) < 32) {
            count += adapter_read(path, entry->d_name, &out[count]);
        }
    }
    if (folder) {
        closedir(folder);
    }
    return count;
}

/* Folders that two paths have in common, below "/sys/devices/pciDDDD:BB". */
static int common_bridges(const char *one, const char *other)
{
    int common = -1;
    const char *a = strstr(one, "/devices/pci"), *b = strstr(other, "/devices/pci");
    for (; a && b && *a && *a == *b; a++, b++) {
        common += *a == '/' && a > strstr(one, "/devices/pci") + 8;
    }
    if (a && b && ((*a == '/' && *b == '\0') || (*b == '/' && *a == '\0'))) {
        common++;
    }
    return common;
}

static enum distance distance_of(const char *gpu, int numa, const struct adapter *adapter)
{
    int bridges = common_bridges(gpu, adapter->path);
    return bridges > 0                          ? DISTANCE_SWITCH
           : bridges == 0                       ? DISTANCE_HOST_BRIDGE
           : numa >= 0 && numa == adapter->numa ? DISTANCE_NUMA
                                                : DISTANCE_FAR;
}

int fabric_nearest(const char *root, const char *bus, const struct adapter *adapter, int count,
                   enum distance *out)
{
    char path[PATH_MAX], address[32];
    int nearest = -1;
    size_t i = 0;
    for (; bus[i] && i + 1 < sizeof address; i++) {
        address[i] = (char)tolower((unsigned char)bus[i]);
    }
    address[i] = '\0';
    snprintf(path, sizeof path, "%s/bus/pci/devices/%s", root, address);
    char *gpu = realpath(path, NULL);
    int numa = numa_of(path);
    for (int a = 0; gpu && a < count; a++) {
        enum distance distance = distance_of(gpu, numa, &adapter[a]);
        if (nearest < 0 || distance < *out) {
            nearest = a;
            *out = distance;
        }
    }
    free(gpu);
    return nearest;
}
