/* preflight_parts.c - muddpipe preflight: adapters and their distance to a GPU from a made-up sysfs; what is judged wrong
 * with made-up hosts. */
#include "tests/test.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/preflight/preflight.h"

static char root[] = "/tmp/muddpipe-sys.XXXXXX";

static void sh(const char *format, ...)
{
    char command[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    assert_int_equal(system(command), 0);
}

/* A PCI device behind some bridges, on a NUMA node. */
static void device(const char *path, int numa)
{
    sh("mkdir -p %s/devices/%s && echo %d >%s/devices/%s/numa_node && mkdir -p %s/bus/pci/devices "
       "&& "
       "ln -s %s/devices/%s %s/bus/pci/devices/",
       root, path, numa, root, path, root, root, path, root);
}

static void adapter(const char *name, const char *path, const char *state, const char *rate)
{
    sh("d=%s/class/infiniband/%s && mkdir -p $d/ports/1 && ln -s %s/devices/%s $d/device && "
       "echo '%s' >$d/ports/1/state && echo '%s' >$d/ports/1/rate",
       root, name, root, path, state, rate);
}

static void nearest_is(const char *bus, const char *name, enum distance distance)
{
    struct adapter list[ADAPTERS];
    enum distance found = DISTANCES;
    int count = fabric_read(root, list);
    assert_int_equal(count, 3);
    int nearest = fabric_nearest(root, bus, list, count, &found);
    assert_in_range(nearest, 0, 2);
    assert_string_equal(list[nearest].name, name);
    assert_int_equal(found, distance);
}

static void distances(void **state)
{
    struct adapter list[ADAPTERS];
    enum distance distance;
    (void)state;
    assert_non_null(mkdtemp(root));
    assert_int_equal(fabric_read(root, list), 0);
    device("pci0000:17/0000:17:01.0/0000:18:00.0/0000:19:00.0/0000:1b:00.0",
           0); /* a GPU behind a switch */
    device("pci0000:17/0000:17:01.0/0000:18:00.0/0000:19:01.0/0000:1c:00.0",
           0);                                         /* an adapter behind it */
    device("pci0000:3a/0000:3a:01.0/0000:3b:00.0", 0); /* a GPU */
    device("pci0000:3a/0000:3a:05.0/0000:3d:00.0", 0); /* beside an adapter */
    device("pci0000:5d/0000:5d:01.0/0000:5e:00.0", 0); /* a GPU without one */
    device("pci0000:9a/0000:9a:01.0/0000:9b:00.0", 1); /* a GPU of the other node */
    device("pci0000:ba/0000:ba:01.0/0000:bb:00.0", 0); /* an adapter */
    adapter("mlx5_0", "pci0000:17/0000:17:01.0/0000:18:00.0/0000:19:01.0/0000:1c:00.0", "4: ACTIVE",
            "400 Gb/sec (4X NDR)");
    adapter("mlx5_1", "pci0000:3a/0000:3a:05.0/0000:3d:00.0", "4: ACTIVE", "200 Gb/sec (4X HDR)");
    adapter("mlx5_2", "pci0000:ba/0000:ba:01.0/0000:bb:00.0", "4: ACTIVE", "100 Gb/sec (4X EDR)");
    adapter("mlx5_3", "pci0000:ba/0000:ba:01.0/0000:bb:00.0", "1: DOWN", "400 Gb/sec (4X NDR)");
    nearest_is("0000:1B:00.0", "mlx5_0", DISTANCE_SWITCH);
    nearest_is("0000:3B:00.0", "mlx5_1", DISTANCE_HOST_BRIDGE);
    int count = fabric_read(root, list);
    assert_int_not_equal(fabric_nearest(root, "0000:5E:00.0", list, count, &distance), -1);
    assert_int_equal(distance, DISTANCE_NUMA);
    assert_int_not_equal(fabric_nearest(root, "0000:9B:00.0", list, count, &distance), -1);
    assert_int_equal(distance, DISTANCE_FAR);
    assert_int_equal(fabric_nearest(root, "0000:FF:00.0", list, count, &distance), -1);
    for (int i = 0; i < count; i++) {
        assert_true(list[i].gbit == (strcmp(list[i].name, "mlx5_0") == 0   ? 400
                                     : strcmp(list[i].name, "mlx5_1") == 0 ? 200
                                                                           : 100));
    }
    sh("rm -rf %s", root);
}

enum { RANKS = 8 }; /* two hosts of four */
static struct facts facts[RANKS];
static double rates[RANKS * RANKS];

static void all_well(void)
{
    for (int r = 0; r < RANKS; r++) {
        facts[r] = (struct facts){.memory_free = INT64_C(100) << 30,
                                  .shm_free = INT64_C(10) << 30,
                                  .locked = -1,
                                  .adapters = 4,
                                  .adapter_gbit = 400,
                                  .gemm = 600e12 + r * 1e12};
        strcpy(facts[r].host, r < 4 ? "node-a" : "node-b");
        strcpy(facts[r].program, "1.0, abc");
        strcpy(facts[r].computes, "NVIDIA H100");
        strcpy(facts[r].bus, "0000:1B:00.0");
        for (int other = 0; other < RANKS; other++) {
            rates[r * RANKS + other] = r == other ? 0 : r / 4 == other / 4 ? 300e9 : 40e9;
        }
    }
}

/* How much is wrong; what was printed is in `text`. */
static char text[8192];
static int judged(const char *transport)
{
    const struct judged what = {facts, rates, RANKS, true, transport};
    FILE *out = fmemopen(text, sizeof text, "w");
    int wrong = judge(&what, out);
    fclose(out);
    return wrong;
}

#define assert_found(count, words)                                                                 \
    do {                                                                                           \
        assert_int_equal(judged("ucx"), count);                                                    \
        assert_non_null(strstr(text, words));                                                      \
        all_well();                                                                                \
    } while (0)

static void judgements(void **state)
{
    (void)state;
    all_well();
    assert_found(0, "pairs between hosts: 16, each way 40.00 GB/s");
    facts[6].gemm = 500e12;
    assert_found(
        1, "WRONG    host node-b (rank 6): NVIDIA H100 0000:1B:00.0 multiplies at 500 TFLOP/s");
    strcpy(facts[4].driver, "driver 570");
    assert_found(1, "WRONG    host node-b (rank 4): GPU driver: driver 570, elsewhere none");
    facts[4].shm_free = INT64_C(32) << 20;
    assert_found(1, "WRONG    host node-b (rank 4): /dev/shm has 32 MiB free");
    facts[0].memory_free = INT64_C(300) << 20;
    assert_found(1, "WRONG    host node-a (rank 0): 300 MiB of memory are free");
    facts[4].locked = 64 << 10;
    assert_found(1, "at most 64 KiB may be locked");
    facts[4].clock = -3;
    assert_found(1, "WRONG    host node-b (rank 4): its clock is -3.000 s");
    facts[4].clock = 0.5;
    assert_found(0, "warning  host node-b (rank 4): its clock is +0.500 s");
    facts[4].clock = 2;
    facts[4].clock_error = 1.95; /* not known to be that much */
    assert_int_equal(judged("ucx"), 0);
    all_well();
    for (int other = 0; other < RANKS; other++) {
        rates[5 * RANKS + other] /= 4;
        rates[other * RANKS + 5] /= 4;
    }
    assert_found(2, "WRONG    host node-b (rank 5): 4 pairs of ranks between hosts are slower");
    for (int i = 0; i < RANKS * RANKS; i++) {
        rates[i] = rates[i] == 40e9 ? 2e9 : rates[i];
    }
    assert_found(1, "this looks like TCP");
    facts[4].adapters = 0;
    judged("ucx");
    assert_non_null(strstr(text, "no InfiniBand or RoCE port is up there"));
    all_well();
    strcpy(facts[0].nccl_hangs, "2.31.2 is not");
    strcpy(facts[0].libraries, "NCCL 2.30.7");
    assert_int_equal(judged("ipc"), 1); /* another library than elsewhere */
    assert_int_equal(judged("nccl"), 2);
    assert_non_null(strstr(text, "parallel.transport is nccl: 2.31.2 is not"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(distances),
        cmocka_unit_test(judgements),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
