/* test_megatron.c - Megatron pairs: what is read, and damaged ones, field by field. */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "data/tokens.h"

static char message[4096];
static char prefix[64], index_path[80], data_path[80];

/* Five sequences in three documents, the second one empty: 7 tokens. */
enum { SEQUENCES = 5, DOCUMENTS = 3, TOKENS = 7 };
static const int32_t lengths[SEQUENCES] = {2, 0, 3, 1, 1};
static const int64_t firsts[DOCUMENTS + 1] = {0, 3, 3, 5};
static const int64_t ids[TOKENS] = {9, 8, 7, 200, 5, 4, 0};

enum { AT_VERSION = 9, AT_TYPE = 17, AT_SEQUENCES = 18, AT_ENTRIES = 26, AT_LENGTHS = 34 };
enum { AT_POINTERS = AT_LENGTHS + 4 * SEQUENCES, AT_DOCUMENTS = AT_POINTERS + 8 * SEQUENCES };
enum { INDEX_SIZE = AT_DOCUMENTS + 8 * (DOCUMENTS + 1) };

static unsigned char index_bytes[INDEX_SIZE + SEQUENCES];

static int setup(void **state)
{
    (void)state;
    log_set_level(LOG_WARN);
    snprintf(prefix, sizeof prefix, "test_megatron.%d", (int)getpid());
    snprintf(index_path, sizeof index_path, "%s.idx", prefix);
    snprintf(data_path, sizeof data_path, "%s.bin", prefix);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(index_path);
    unlink(data_path);
    return 0;
}

static void save(const char *path, const void *bytes, size_t size)
{
    FILE *stream = fopen(path, "wb");
    assert_non_null(stream);
    assert_int_equal(fwrite(bytes, 1, size, stream), size);
    fclose(stream);
}

/* A sound pair on disk and its index in index_bytes. */
static void make_pair(int type, size_t width)
{
    unsigned char data[TOKENS * 8];
    uint64_t version = 1, sequences = SEQUENCES, entries = DOCUMENTS + 1;
    int64_t pointers[SEQUENCES], at = 0;

    for (int s = 0; s < SEQUENCES; s++) {
        pointers[s] = at;
        at += (int64_t)width * lengths[s];
    }
    for (int i = 0; i < TOKENS; i++) {
        memcpy(data + width * (size_t)i, &ids[i], width); /* little-endian: its low bytes */
    }
    memset(index_bytes, 0, sizeof index_bytes);
    memcpy(index_bytes, "MMIDIDX\0\0", 9);
    memcpy(index_bytes + AT_VERSION, &version, 8);
    index_bytes[AT_TYPE] = (unsigned char)type;
    memcpy(index_bytes + AT_SEQUENCES, &sequences, 8);
    memcpy(index_bytes + AT_ENTRIES, &entries, 8);
    memcpy(index_bytes + AT_LENGTHS, lengths, sizeof lengths);
    memcpy(index_bytes + AT_POINTERS, pointers, sizeof pointers);
    memcpy(index_bytes + AT_DOCUMENTS, firsts, sizeof firsts);
    save(index_path, index_bytes, INDEX_SIZE);
    save(data_path, data, width * TOKENS);
}

static status_t open_captured(const char *path, int64_t vocab, struct tokens **out)
{
    message[0] = '\0';
    log_capture(message, sizeof message);
    status_t status = tokens_open(path, vocab, out);
    log_capture(NULL, 0);
    return status;
}

static void assert_says(const char *words)
{
    if (strstr(message, words) == NULL) {
        fail_msg("'%s' is missing in: %s", words, message);
    }
}

static void assert_refused(const char *words)
{
    struct tokens *tokens = NULL;

    assert_status(open_captured(prefix, 0, &tokens), STATUS_INVALID);
    assert_null(tokens);
    assert_says(words);
    assert_says(prefix);
}

/* The sound index with `size` bytes of `value` at `at`. */
static void assert_patch_refused(size_t at, int64_t value, size_t size, const char *words)
{
    unsigned char patched[INDEX_SIZE];

    memcpy(patched, index_bytes, INDEX_SIZE);
    memcpy(patched + at, &value, size);
    save(index_path, patched, INDEX_SIZE);
    assert_refused(words);
}

static void assert_sound(const char *path)
{
    struct tokens *tokens = NULL;
    int32_t read[TOKENS];

    assert_ok(tokens_open(path, 201, &tokens));
    assert_int_equal(tokens_format(tokens), TOKENS_MEGATRON);
    assert_int_equal(tokens_count(tokens), TOKENS);
    assert_string_equal(tokens_path(tokens), data_path);
    assert_ok(tokens_read(tokens, 0, TOKENS, read));
    for (int i = 0; i < TOKENS; i++) {
        assert_int_equal(read[i], ids[i]);
    }
    assert_int_equal(tokens_documents(tokens), DOCUMENTS);
    assert_int_equal(tokens_document(tokens, 0), 0);
    assert_int_equal(tokens_document(tokens, 1), 5);
    assert_int_equal(tokens_document(tokens, 2), 5);
    assert_int_equal(tokens_document(tokens, 3), 7);
    tokens_close(tokens);
}

static void test_sound(void **state)
{
    static const struct {
        int code;
        size_t width;
    } types[] = {{1, 1}, {8, 2}, {4, 4}, {5, 8}};

    (void)state;
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        make_pair(types[t].code, types[t].width);
        assert_sound(prefix);
        assert_sound(index_path);
        assert_sound(data_path);
    }
    save(index_path, index_bytes, INDEX_SIZE + SEQUENCES); /* with modes at its end */
    assert_sound(prefix);
}

static void test_tokens(void **state)
{
    struct tokens *tokens = NULL;
    int64_t bad[TOKENS] = {9, 8, 7, -3, 5, 4, 0};

    (void)state;
    make_pair(8, 2);
    assert_status(open_captured(prefix, 200, &tokens), STATUS_INVALID);
    assert_says("token 200 at position 3 is not below the vocabulary's 200");
    make_pair(5, 8);
    save(data_path, bad, sizeof bad);
    assert_refused("token -3 at position 3 is negative");
    bad[3] = (int64_t)1 << 40;
    save(data_path, bad, sizeof bad);
    assert_refused("token 1099511627776 at position 3");
}

static void test_header(void **state)
{
    (void)state;
    make_pair(8, 2);
    assert_patch_refused(AT_VERSION, 2, 8, "version 2");
    assert_patch_refused(AT_TYPE, 6, 1, "type 6");
    assert_patch_refused(AT_TYPE, 0, 1, "type 0");
    assert_patch_refused(AT_SEQUENCES, 6, 8, "cut off or damaged");
    assert_patch_refused(AT_SEQUENCES, -1, 8, "cut off or damaged");
    assert_patch_refused(AT_SEQUENCES, INT64_MAX / 12 + 1, 8, "cut off or damaged");
    assert_patch_refused(AT_SEQUENCES, (int64_t)(UINT64_MAX / 12 + 6), 8, "cut off or damaged");
    assert_patch_refused(AT_ENTRIES, 3, 8, "cut off or damaged");
    assert_patch_refused(AT_ENTRIES, INT64_MIN, 8, "cut off or damaged");
    assert_patch_refused(AT_ENTRIES, (int64_t)1 << 61, 8, "cut off or damaged");
    for (size_t size = 1; size < INDEX_SIZE; size++) {
        struct tokens *tokens = NULL;
        save(index_path, index_bytes, size);
        assert_status(open_captured(index_path, 0, &tokens), STATUS_INVALID);
    }
    save(index_path, index_bytes, INDEX_SIZE + 1);
    assert_refused("cut off or damaged");
    save(index_path, "", 0);
    assert_status(open_captured(index_path, 0, NULL), STATUS_INVALID);
    save(index_path, "no index at all, but long enough for a header", 45);
    assert_status(open_captured(index_path, 0, NULL), STATUS_INVALID);
    assert_says("does not begin like a Megatron index");
    assert_status(open_captured(data_path, 0, NULL), STATUS_INVALID);
    assert_says("no Megatron .idx lies beside it");
}

static void test_tables(void **state)
{
    (void)state;
    make_pair(8, 2);
    assert_patch_refused(AT_LENGTHS, -1, 4, "sequence 0 has -1 tokens");
    assert_patch_refused(AT_LENGTHS, 1, 4, "sequence 1 begins at byte 4");
    assert_patch_refused(AT_LENGTHS, INT32_MAX, 4, "sequence 0 ends at byte 4294967294");
    assert_patch_refused(AT_LENGTHS + 16, 2, 4, "sequence 4 ends at byte 16");
    assert_patch_refused(AT_LENGTHS + 16, 0, 4, "its sequences end at byte 12");
    assert_patch_refused(AT_POINTERS + 16, 5, 8, "sequence 2 begins at byte 5");
    assert_patch_refused(AT_POINTERS + 16, -4, 8, "sequence 2 begins at byte -4");
    assert_patch_refused(AT_POINTERS + 16, INT64_MAX, 8,
                         "sequence 2 begins at byte 9223372036854775807");
    assert_patch_refused(AT_POINTERS, 2, 8, "sequence 0 begins at byte 2");
    assert_patch_refused(AT_DOCUMENTS, 1, 8, "document 0 begins with sequence 1");
    assert_patch_refused(AT_DOCUMENTS + 16, 2, 8, "document 2 begins with sequence 2");
    assert_patch_refused(AT_DOCUMENTS + 8, -3, 8, "document 1 begins with sequence -3");
    assert_patch_refused(AT_DOCUMENTS + 24, 6, 8, "document 3 begins with sequence 6");
    assert_patch_refused(AT_DOCUMENTS + 24, 4, 8, "its documents end at sequence 4 of 5");
}

static void test_data(void **state)
{
    struct tokens *tokens = NULL;
    unsigned char zeros[2 * TOKENS + 1] = {0};

    (void)state;
    make_pair(8, 2);
    save(data_path, zeros, 2 * TOKENS - 1);
    assert_refused("sequence 4 ends at byte 14");
    save(data_path, zeros, 2 * TOKENS + 1);
    assert_refused("has 15: damaged, or not its pair");
    save(data_path, zeros, 0);
    assert_refused("cut off, or not its pair");
    unlink(data_path);
    assert_status(open_captured(prefix, 0, &tokens), STATUS_IO);
    assert_says("cannot open token file");
    unlink(index_path);
    assert_status(open_captured(prefix, 0, &tokens), STATUS_IO);
    assert_status(open_captured(index_path, 0, &tokens), STATUS_IO);
}

/* Random damage anywhere is refused or read within bounds (a sanitizer would tell). */
static void test_random_damage(void **state)
{
    unsigned char damaged[INDEX_SIZE];
    uint32_t draw = 1;

    (void)state;
    make_pair(8, 2);
    for (int round = 0; round < 3000; round++) {
        struct tokens *tokens = NULL;
        int32_t read[TOKENS];
        memcpy(damaged, index_bytes, INDEX_SIZE);
        for (int i = 0; i < 1 + round % 3; i++) {
            draw = draw * 1664525u + 1013904223u;
            damaged[(draw >> 16) % INDEX_SIZE] = (unsigned char)(draw >> 8);
        }
        save(index_path, damaged, INDEX_SIZE);
        if (open_captured(index_path, 0, &tokens) == STATUS_OK) {
            assert_true(tokens_count(tokens) <= 2 * TOKENS);
            int64_t count = tokens_count(tokens) < TOKENS ? tokens_count(tokens) : TOKENS;
            assert_ok(tokens_read(tokens, 0, count, read));
            for (int64_t d = 0; d <= tokens_documents(tokens); d++) {
                assert_in_range(tokens_document(tokens, d), 0, tokens_count(tokens));
            }
            tokens_close(tokens);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound),  cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_header), cmocka_unit_test(test_tables),
        cmocka_unit_test(test_data),   cmocka_unit_test(test_random_damage),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
