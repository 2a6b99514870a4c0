/* test_nccl.c - the verbs of the transport "nccl" without a GPU: a library that writes down what it is
 * asked for, and a device that writes down which words its streams wait for. Messages end when the test
 * says so. */
#include "tests/test.h"

#ifdef COMM_HAVE_NCCL
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/device_internal.h"
#include "base/log.h"
#include "comm/nccl/nccl_internal.h"

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

/* ---- streams ---- */

struct word_call {
    const uint32_t *word;
    uint32_t value;
    void *stream;
};

static struct word_call writes[CALLS], waits[CALLS];
static int write_count, wait_count;

static status_t fake_write(struct device *device, const struct device_word *words, int count,
                           void *stream)
{
    (void)device;
    for (int i = 0; i < count; i++) {
        writes[write_count++ % CALLS] = (struct word_call){words[i].word, words[i].value, stream};
    }
    return STATUS_OK;
}

static status_t fake_wait(struct device *device, const struct device_word *words, int count,
                          void *stream)
{
    (void)device;
    for (int i = 0; i < count; i++) {
        waits[wait_count++ % CALLS] = (struct word_call){words[i].word, words[i].value, stream};
    }
    return STATUS_OK;
}

static void assert_call(const struct word_call *call, const uint32_t *word, uint32_t value,
                        const void *stream)
{
    assert_ptr_equal(call->word, word);
    assert_int_equal(call->value, value);
    assert_ptr_equal(call->stream, stream);
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
    struct nccl_words words;
    struct nccl_channel own[CHANNELS];
    struct device_ops ops;
    struct device device;
    char wires, pairs; /* streams */
};

static void begin(struct scene *scene, bool sending)
{
    static const struct group_options options = {.deadline_s = 0.2};

    memset(scene, 0, sizeof *scene);
    sends = receives = write_count = wait_count = 0;
    trouble = ncclSuccess;
    nccl.send = fake_send;
    nccl.recv = fake_recv;
    nccl.async_error = fake_error;
    nccl.error_string = fake_text;
    nccl.last_error = fake_detail;
    group_init(&scene->group, NULL, 1, 2, &options, NULL);
    scene->ops = device_host_ops;
    scene->ops.words_write = fake_write;
    scene->ops.words_wait = fake_wait;
    scene->device.ops = &scene->ops;
    scene->pair = (struct nccl_pair){.from = sending,
                                     .to = !sending,
                                     .sends = sending,
                                     .stream = &scene->pairs,
                                     .words = &scene->words,
                                     .slots = CHANNELS * SLOTS,
                                     .posted = calloc(CHANNELS * SLOTS, sizeof(int))};
    for (int c = 0; c < CHANNELS; c++) {
        for (int k = 0; k < SLOTS; k++) {
            scene->slot[c][k] = &scene->memory[c][k];
        }
        scene->channel[c] =
            (struct wire_channel){sending, !sending, 8, SLOTS, sending ? NULL : scene->slot[c], 0};
        scene->own[c] =
            (struct nccl_channel){.pair = &scene->pair,
                                  .newest = -1,
                                  .posted = calloc(SLOTS, sizeof(int)),
                                  .arrival = calloc(SLOTS, sizeof(struct nccl_arrival))};
    }
    scene->self = (struct nccl_wire){.wire = &scene->wire,
                                     .group = &scene->group,
                                     .device = &scene->device,
                                     .pair = &scene->pair,
                                     .pairs = 1,
                                     .channel = scene->own};
    scene->wire = (struct wire){.class = &nccl_wire_class,
                                .group = &scene->group,
                                .device = &scene->device,
                                .stream = &scene->wires,
                                .placed = true,
                                .count = CHANNELS,
                                .channel = scene->channel,
                                .counts = scene->counts,
                                .state = &scene->self};
}

static void end(struct scene *scene)
{
    for (int c = 0; c < CHANNELS; c++) {
        free(scene->own[c].posted);
        free(scene->own[c].arrival);
    }
    free(scene->pair.posted);
    free(scene->pair.expected);
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
    end(&scene);
}

/* Whose stream says what, and who waits for it. */
static void test_words(void **state)
{
    static const int walk[] = {1, 0};
    struct scene scene;
    int64_t source;

    (void)state;
    begin(&scene, false);
    assert_ok(wire_expect(&scene.wire, 0, walk, 2));
    assert_ok(wire_post(&scene.wire, 0, 0, 3)); /* second in turn */
    assert_ok(wire_post(&scene.wire, 1, 0, 3));
    assert_ok(wire_wait(&scene.wire, 0, 0, 3, NULL));
    assert_int_equal(write_count, 4);
    assert_int_equal(wait_count, 3);
    assert_call(&writes[0], &scene.words.marks, 1, &scene.wires);
    assert_call(&writes[1], &scene.words.marks, 2, &scene.wires);
    assert_call(&waits[0], &scene.words.marks, 2, &scene.pairs); /* of channel 1 */
    assert_call(&writes[2], &scene.words.ends, 1, &scene.pairs);
    assert_call(&waits[1], &scene.words.marks, 1, &scene.pairs);
    assert_call(&writes[3], &scene.words.ends, 2, &scene.pairs);
    assert_call(&waits[2], &scene.words.ends, 2, &scene.wires);
    end(&scene);

    begin(&scene, true);
    assert_ok(wire_put(&scene.wire, 2, 0, 9, 0, &source));
    assert_ok(wire_put(&scene.wire, 0, 0, 4, 0, &source));
    assert_ok(wire_sent(&scene.wire, 2, 9));
    assert_call(&writes[0], &scene.words.marks, 1, &scene.wires);
    assert_call(&waits[0], &scene.words.marks, 1, &scene.pairs);
    assert_call(&writes[1], &scene.words.ends, 1, &scene.pairs);
    assert_call(&waits[1], &scene.words.marks, 2, &scene.pairs);
    assert_call(&waits[2], &scene.words.ends, 1, &scene.wires);
    scene.words.ends = 2;
    assert_ok(wire_sent(&scene.wire, 0, 4)); /* has left: nothing to wait for */
    assert_int_equal(wait_count, 3);
    nccl_wire_class.release(&scene.wire);
    assert_true((int32_t)(scene.words.ends - (uint32_t)scene.pair.turns) > 1 << 20);
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

/* As many as a stream holds, and no more before some have ended. */
static void test_depth(void **state)
{
    struct scene scene;
    int64_t source[2];
    char text[1024];

    (void)state;
    begin(&scene, true);
    for (int m = 0; m < NCCL_DEPTH; m++) {
        assert_ok(wire_put(&scene.wire, m % 2, m % SLOTS, m / 2, 0, &source[m % 2]));
        assert_ptr_equal(sent[m], &source[m % 2]);
    }
    log_capture(text, sizeof text);
    assert_status(wire_put(&scene.wire, 2, 0, 0, 0, &source), STATUS_TIMEOUT);
    log_capture(NULL, 0);
    assert_non_null(strstr(text, "message 0 of channel 0 (rank 1 to rank 0"));
    scene.words.ends = 1;
    assert_ok(wire_put(&scene.wire, 2, 0, 0, 0, &source));
    assert_int_equal(sends, NCCL_DEPTH + 1);
    wait_count = 0;
    assert_ok(wire_sent(&scene.wire, 1, NCCL_DEPTH / 2 - 1));
    assert_ok(wire_sent(&scene.wire, 1, 0)); /* the oldest that has not left */
    assert_call(&waits[0], &scene.words.ends, NCCL_DEPTH, &scene.wires);
    assert_call(&waits[1], &scene.words.ends, 2, &scene.wires);
    assert_int_equal(scene.counts[1].messages, NCCL_DEPTH / 2);
    end(&scene);
}

/* Receives beyond that are held back, and issued when whoever waits for one looks again. */
static void test_held_back(void **state)
{
    struct scene scene;

    (void)state;
    begin(&scene, false);
    for (int m = 0; m < NCCL_DEPTH + 2; m++) { /* waited for in the stream; nothing lands yet */
        assert_ok(wire_post(&scene.wire, 0, m % SLOTS, m));
        if (m < NCCL_DEPTH) {
            assert_ok(wire_wait(&scene.wire, 0, m % SLOTS, m, NULL));
        }
    }
    assert_int_equal(receives, NCCL_DEPTH);
    log_capture((char[1024]){0}, 1024);
    assert_status(wire_wait(&scene.wire, 0, 0, NCCL_DEPTH, NULL), STATUS_TIMEOUT);
    log_capture(NULL, 0);
    scene.words.ends = 1;
    assert_ok(wire_wait(&scene.wire, 0, 0, NCCL_DEPTH, NULL));
    assert_int_equal(receives, NCCL_DEPTH + 1);
    assert_call(&waits[wait_count - 1], &scene.words.ends, NCCL_DEPTH + 1, &scene.wires);
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
    assert_status(wire_put(&scene.wire, 0, 0, 0, 0, &source), STATUS_INTERNAL);
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
    assert_status(nccl_check_device(&scene.device), STATUS_UNSUPPORTED);
    assert_status(nccl_check_device(NULL), STATUS_UNSUPPORTED);
    log_capture(NULL, 0);
    assert_non_null(strstr(text, "this rank computes on the host; use ucx or mpi"));
    end(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_expected), cmocka_unit_test(test_unexpected),
        cmocka_unit_test(test_words),    cmocka_unit_test(test_turn),
        cmocka_unit_test(test_depth),    cmocka_unit_test(test_held_back),
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
