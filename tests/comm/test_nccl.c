/* test_nccl.c - the verbs of the transport "nccl" without a GPU: a library that writes down what it is
 * asked for, and streams of the host, where all is done at once. */
#include "tests/test.h"

#ifdef COMM_HAVE_NCCL
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "comm/nccl_house.h"

enum { CHANNELS = 3, SLOTS = 2, CALLS = 4096 };

static const void *sent[CALLS], *received[CALLS];
static int sends, receives;
static ncclResult_t trouble;

static ncclResult_t fake_send(const void *source, size_t count, ncclDataType_t type, int peer,
                              ncclComm_t comm, cudaStream_t stream)
{
    (void)comm, (void)stream;
    assert_int_equal(count, 8);
    assert_int_equal(type, ncclInt8);
    assert_int_equal(peer, NCCL_RECEIVER);
    sent[sends++] = source;
    return ncclSuccess;
}

static ncclResult_t fake_recv(void *slot, size_t count, ncclDataType_t type, int peer,
                              ncclComm_t comm, cudaStream_t stream)
{
    (void)comm, (void)stream;
    assert_int_equal(count, 8);
    assert_int_equal(type, ncclInt8);
    assert_int_equal(peer, NCCL_SENDER);
    received[receives++] = slot;
    return ncclSuccess;
}

static ncclResult_t fake_error(ncclComm_t comm, ncclResult_t *out)
{
    (void)comm;
    *out = trouble;
    return ncclSuccess;
}

static const char *fake_text(ncclResult_t result)
{
    return result == ncclRemoteError ? "remote error" : "?";
}

static const char *fake_detail(ncclComm_t comm)
{
    (void)comm;
    return "socket closed";
}

/* Rank 1 of two, whose three channels come from rank 0 or, with `sends`, go there. */
struct scene {
    struct group group;
    struct wire wire;
    struct wire_channel channel[CHANNELS];
    struct wire_count counts[CHANNELS];
    void *slot[CHANNELS][SLOTS];
    int64_t memory[CHANNELS][SLOTS];
    struct nccl_wire self;
    struct nccl_pair pair;
    struct nccl_channel own[CHANNELS];
};

static void begin(struct scene *scene, bool sending)
{
    static const struct group_options options = {.deadline_s = 1};

    memset(scene, 0, sizeof *scene);
    sends = receives = 0;
    trouble = ncclSuccess;
    nccl.send = fake_send;
    nccl.recv = fake_recv;
    nccl.async_error = fake_error;
    nccl.error_string = fake_text;
    nccl.last_error = fake_detail;
    group_init(&scene->group, NULL, 1, 2, &options, NULL);
    assert_ok(device_open(DEVICE_HOST, 0, &scene->self.device));
    struct device *device = scene->self.device;
    scene->pair = (struct nccl_pair){.from = sending, .to = !sending, .sends = sending};
    assert_ok(device_event_create(device, false, &scene->pair.mark));
    scene->pair.slots = CHANNELS * SLOTS;
    scene->pair.posted = calloc(CHANNELS * SLOTS, sizeof(int));
    for (int i = 0; i < NCCL_DEPTH; i++) {
        assert_ok(device_event_create(device, false, &scene->pair.turn[i].end));
    }
    for (int c = 0; c < CHANNELS; c++) {
        for (int k = 0; k < SLOTS; k++) {
            scene->slot[c][k] = &scene->memory[c][k];
        }
        scene->channel[c] =
            (struct wire_channel){sending, !sending, 8, SLOTS, sending ? NULL : scene->slot[c]};
        scene->own[c].pair = &scene->pair;
        scene->own[c].newest = -1;
        scene->own[c].posted = calloc(SLOTS, sizeof(int));
        scene->own[c].arrival = calloc(SLOTS, sizeof(struct nccl_arrival));
        for (int k = 0; k < SLOTS; k++) {
            assert_ok(device_event_create(device, false, &scene->own[c].arrival[k].vacant));
        }
    }
    scene->self.wire = &scene->wire;
    scene->self.group = &scene->group;
    scene->self.pair = &scene->pair;
    scene->self.pairs = 1;
    scene->self.channel = scene->own;
    scene->wire = (struct wire){.class = &nccl_wire_class,
                                .group = &scene->group,
                                .device = device,
                                .count = CHANNELS,
                                .channel = scene->channel,
                                .counts = scene->counts,
                                .state = &scene->self};
}

static void end(struct scene *scene)
{
    for (int c = 0; c < CHANNELS; c++) {
        for (int k = 0; k < SLOTS; k++) {
            device_event_destroy(scene->self.device, scene->own[c].arrival[k].vacant);
        }
        free(scene->own[c].posted);
        free(scene->own[c].arrival);
    }
    for (int i = 0; i < NCCL_DEPTH; i++) {
        device_event_destroy(scene->self.device, scene->pair.turn[i].end);
    }
    device_event_destroy(scene->self.device, scene->pair.mark);
    free(scene->pair.posted);
    free(scene->pair.expected);
    device_close(scene->self.device);
    group_fini(&scene->group);
}

static void assert_received(const struct scene *scene, const int (*order)[2], int count)
{
    assert_int_equal(receives, count);
    for (int i = 0; i < count; i++) {
        assert_ptr_equal(received[i], scene->slot[order[i][0]][order[i][1]]);
    }
}

/* Posts in any order, receives in the order of the sender's puts, over two walks and a new order. */
static void test_expected(void **state)
{
    static const int walk[] = {0, 1, 0, 2}, other[] = {2, 1};
    static const int order[][2] = {{0, 0}, {1, 0}, {0, 1}, {2, 0}, {0, 0},
                                   {1, 1}, {0, 1}, {2, 1}, {2, 0}, {1, 0}};
    struct scene scene;
    struct wire *wire = &scene.wire;

    (void)state;
    begin(&scene, false);
    assert_ok(wire_expect(wire, 0, walk, 4));
    assert_ok(wire_post(wire, 2, 0, 7));
    assert_ok(wire_post(wire, 1, 0, 7));
    assert_int_equal(receives, 0);
    assert_ok(wire_post(wire, 0, 0, 14));
    assert_int_equal(receives, 2); /* 0, 1; then another 0 is missing */
    assert_ok(wire_post(wire, 0, 1, 15));
    assert_int_equal(receives, 4);
    assert_ok(wire_wait(wire, 0, 0, 14, NULL));
    assert_ok(wire_wait(wire, 1, 0, 7, NULL));
    assert_ok(wire_wait(wire, 0, 1, 15, NULL));
    assert_ok(wire_wait(wire, 2, 0, 7, NULL));
    assert_ok(wire_post(wire, 1, 1, 8));
    assert_ok(wire_post(wire, 0, 0, 16));
    assert_ok(wire_post(wire, 0, 1, 17));
    assert_ok(wire_post(wire, 2, 1, 8));
    assert_int_equal(receives, 8);
    assert_ok(wire_expect(wire, 0, other, 2));
    assert_ok(wire_post(wire, 1, 0, 9));
    assert_ok(wire_post(wire, 2, 0, 9));
    assert_received(&scene, order, 10);
    assert_int_equal(scene.counts[0].messages, 2);
    assert_int_equal(scene.counts[0].bytes, 16);
    end(&scene);
}

static void test_unexpected(void **state)
{
    static const int order[][2] = {{2, 1}, {0, 0}, {2, 0}};
    struct scene scene;

    (void)state;
    begin(&scene, false);
    assert_ok(wire_post(&scene.wire, 2, 1, 5));
    assert_ok(wire_post(&scene.wire, 0, 0, 1));
    assert_ok(wire_post(&scene.wire, 2, 0, 6));
    assert_received(&scene, order, 3);
    for (int m = 1; m < 3 * NCCL_DEPTH; m++) { /* the events serve again */
        assert_ok(wire_wait(&scene.wire, 0, m % 2 == 0, m, NULL));
        assert_ok(wire_post(&scene.wire, 0, m % 2, m + 1));
    }
    assert_ok(wire_wait(&scene.wire, 2, 1, 5, NULL)); /* long after it landed */
    assert_int_equal(scene.counts[0].messages, 3 * NCCL_DEPTH - 1);
    end(&scene);
}

/* What cannot land before something else has a slot is an error and no hang. */
static void test_turn(void **state)
{
    static const int walk[] = {0, 1};
    struct scene scene;
    char text[1024];

    (void)state;
    begin(&scene, false);
    assert_ok(wire_expect(&scene.wire, 0, walk, 2));
    assert_ok(wire_post(&scene.wire, 1, 0, 3));
    log_capture(text, sizeof text);
    assert_status(wire_wait(&scene.wire, 1, 0, 3, NULL), STATUS_INTERNAL);
    log_capture(NULL, 0);
    assert_non_null(strstr(text, "message 3 of channel 1 is awaited before its turn"));
    assert_non_null(strstr(text, "rank 0 puts one of channel 0 first"));
    end(&scene);
}

static void test_puts(void **state)
{
    struct scene scene;
    int64_t source[2];

    (void)state;
    begin(&scene, true);
    for (int m = 0; m < 3 * NCCL_DEPTH; m++) {
        assert_ok(wire_put(&scene.wire, m % 2, m % SLOTS, m / 2, &source[m % 2]));
        assert_ptr_equal(sent[m], &source[m % 2]);
    }
    assert_int_equal(sends, 3 * NCCL_DEPTH);
    assert_ok(wire_sent(&scene.wire, 0, 0)); /* its event has served another put since */
    assert_ok(wire_sent(&scene.wire, 1, 3 * NCCL_DEPTH / 2 - 1));
    assert_int_equal(scene.counts[1].messages, 3 * NCCL_DEPTH / 2);
    end(&scene);
}

/* The network may fail where no call of ours is under way. */
static void test_trouble(void **state)
{
    struct scene scene;
    int64_t source = 0;
    char text[1024];

    (void)state;
    begin(&scene, true);
    trouble = ncclRemoteError;
    log_capture(text, sizeof text);
    assert_status(wire_put(&scene.wire, 0, 0, 0, &source), STATUS_INTERNAL);
    log_capture(NULL, 0);
    assert_non_null(strstr(text, "rank 1 to rank 0: remote error: socket closed"));
    assert_non_null(strstr(text, "NCCL_DEBUG=WARN"));
    assert_int_equal(sends, 0);
    end(&scene);
}

static void test_host(void **state)
{
    struct scene scene;
    char text[1024];

    (void)state;
    begin(&scene, true);
    log_capture(text, sizeof text);
    assert_status(nccl_check_device(scene.self.device), STATUS_UNSUPPORTED);
    assert_status(nccl_check_device(NULL), STATUS_UNSUPPORTED);
    log_capture(NULL, 0);
    assert_non_null(strstr(text, "this rank computes on the host; use ucx or mpi"));
    end(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_expected), cmocka_unit_test(test_unexpected),
        cmocka_unit_test(test_turn),     cmocka_unit_test(test_puts),
        cmocka_unit_test(test_trouble),  cmocka_unit_test(test_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
#include <stdio.h>

int main(void)
{
    printf("skipped: nccl.h was not found when this was configured\n");
    return TEST_SKIPPED;
}
#endif
