/* test_meter.c - messages between neighbours arrive, and a transport that refuses says why. */
#include "tests/test.h"

#include <string.h>

#include "base/device.h"
#include "comm/transport.h"

static const struct group_options patient = {.deadline_s = 20, .heartbeat_s = 10};
static const size_t bytes[] = {64, 5000, 100000};
enum { SIZES = 3, SLOTS = 3 };

static status_t run_all(struct meter *meter)
{
    for (int size = 0; size < SIZES; size++) {
        for (int way = METER_FORTH; way <= METER_ROUND; way++) {
            double seconds = -1;
            TRY(meter_time(meter, (enum meter_way)way, size, 7, &seconds));
            if (!(seconds > 0)) {
                return FAIL(STATUS_INTERNAL, "%g seconds", seconds);
            }
        }
        TRY(meter_verify(meter, size));
    }
    return STATUS_OK;
}

static status_t body(struct group *group, void *argument)
{
    const int *first = argument;
    struct device *device;
    struct meter *meter;
    char why[256] = "";
    TRY(device_open(DEVICE_HOST, 0, &device));
    struct meter_options options = {
        .device = device, .bytes = bytes, .sizes = SIZES, .slots = SLOTS, .first = *first};
    TRY(meter_try(group, "threads", &options, &meter, why, sizeof why));
    int rank = group_rank(group), offset = rank - *first;
    int partner = offset < 0 ? -1 : offset % 2 == 0 ? rank + 1 : rank - 1;
    partner = partner < group_size(group) ? partner : -1;
    if (!meter || meter_partner(meter) != partner) {
        return FAIL(STATUS_INTERNAL, "rank %d has another partner than %d: %s", rank, partner, why);
    }
    TRY(run_all(meter));
    meter_destroy(meter);
    TRY(meter_try(group, "mpi", &options, &meter, why, sizeof why));
    if (meter || !strstr(why, "threads of one process")) {
        return FAIL(STATUS_INTERNAL, "mpi is not refused: %s", why);
    }
    device_close(device);
    return STATUS_OK;
}

static void test_pairs(void **state)
{
    (void)state;
    for (int ranks = 2; ranks <= 5; ranks++) {
        for (int first = 0; first <= 1; first++) {
            assert_ok(group_run_threads(ranks, &patient, NULL, body, &first));
        }
    }
}

static status_t lossy(struct group *group, void *argument)
{
    (void)argument;
    struct device *device;
    struct meter *meter;
    double seconds;
    TRY(device_open(DEVICE_HOST, 0, &device));
    struct meter_options options = {.device = device, .bytes = bytes, .sizes = 1, .slots = SLOTS};
    TRY(meter_create(group, "threads", &options, &meter));
    status_t status = meter_time(meter, METER_FORTH, 0, 5, &seconds);
    meter_destroy(meter);
    device_close(device);
    return status;
}

static void test_lost_message_ends_it(void **state)
{
    (void)state;
    const struct group_options hasty = {.deadline_s = 0.3, .heartbeat_s = 10};
    const struct loop_faults faults = {.lose = true, .lose_channel = 0, .lose_message = 2};
    status_t status = group_run_threads(2, &hasty, &faults, lossy, NULL);
    assert_true(status == STATUS_TIMEOUT || status == STATUS_PEER);
}

static status_t choose(struct group *group, void *argument)
{
    (void)argument;
    static const char *const names[] = {"mpi", "threads", NULL}, *const none[] = {"mpi", NULL};
    struct device *device;
    const char *name = NULL;
    char line[512];
    TRY(device_open(DEVICE_HOST, 0, &device));
    TRY(choose_measured(group, names, device, NULL, &name, line, sizeof line));
    if (strcmp(name, "threads") != 0 || !strstr(line, "mpi cannot be used: ") ||
        !strstr(line, "threads of one process") || !strstr(line, "; threads ") ||
        !strstr(line, " GB/s at 32 MiB, ")) {
        return FAIL(STATUS_INTERNAL, "chosen: %s (%s)", name, line);
    }
    status_t status = choose_measured(group, none, device, NULL, &name, line, sizeof line);
    device_close(device);
    return status == STATUS_UNSUPPORTED && strstr(line, "mpi cannot be used")
               ? STATUS_OK
               : FAIL(STATUS_INTERNAL, "chosen from nothing: %s", line);
}

static void test_choice(void **state)
{
    (void)state;
    assert_ok(group_run_threads(2, &patient, NULL, choose, NULL));
    assert_ok(group_run_threads(3, &patient, NULL, choose, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_lost_message_ends_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
