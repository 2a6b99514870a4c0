/* test_safetensors.c - weights in and out, and files that lie. */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "model/model.h"

static char message[4096];
static char folder[64], path[128];

static int setup(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "test_safetensors.%d", (int)getpid());
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    return mkdir(folder, 0777);
}

static int teardown(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void assert_says(const char *words)
{
    if (strstr(message, words) == NULL) {
        fail_msg("'%s' is missing in: %s", words, message);
    }
}

/* `length` as the file says; the header's own length if negative. */
static void write_file(const char *name, const char *header, int64_t length, size_t data)
{
    uint64_t said = length < 0 ? strlen(header) : (uint64_t)length;
    FILE *stream = fopen(name, "wb");

    assert_non_null(stream);
    fwrite(&said, sizeof said, 1, stream);
    fputs(header, stream);
    for (size_t i = 0; i < data; i++) {
        fputc((int)i, stream);
    }
    fclose(stream);
}

static status_t open_captured(const char *name, struct tensor_file **out)
{
    message[0] = '\0';
    log_capture(message, sizeof message);
    status_t status = tensor_file_open(name, out);
    log_capture(NULL, 0);
    return status;
}

static void test_golden(void **state)
{
    struct tensor_file *file = NULL;
    struct tensor tensor;
    float value[64 * 32];

    (void)state;
    assert_ok(tensor_file_open(TEST_FOLDER "/golden/muddformer-tiny", &file));
    assert_int_equal(tensor_file_count(file), 65);
    assert_true(tensor_file_find(file, "tok_embeddings.weight", &tensor));
    assert_int_equal(tensor.dims, 2);
    assert_int_equal(tensor.shape[0], 64);
    assert_int_equal(tensor.shape[1], 32);
    assert_ok(tensor_to_float(&tensor, value));
    assert_true(isfinite(value[0]) && value[0] != 0.0f);
    assert_false(tensor_file_find(file, "layers.9.ffn_norm.weight", &tensor));
    tensor_file_close(file);
    assert_ok(tensor_file_open(TEST_FOLDER "/golden/muddformer-tiny/tokens.safetensors", &file));
    assert_true(tensor_file_find(file, "tokens", &tensor));
    assert_int_equal(tensor.dtype, TENSOR_I32);
    tensor_file_close(file);
}

static void test_element_types(void **state)
{
    static const uint16_t half[] = {0x3c00, 0xc000, 0x0001, 0x83ff, 0x7c00, 0x7e00, 0x7bff};
    static const uint16_t brain[] = {0x3f80, 0xc000};
    static const double wide[] = {0.1, -3e300};
    struct tensor tensor = {.name = "x", .dtype = TENSOR_F16, .data = half, .count = 7};
    float value[7];

    (void)state;
    assert_ok(tensor_to_float(&tensor, value));
    assert_true(value[0] == 1.0f && value[1] == -2.0f);
    assert_true(value[2] == ldexpf(1, -24) && value[3] == -1023 * ldexpf(1, -24));
    assert_true(isinf(value[4]) && isnan(value[5]) && value[6] == 65504.0f);
    tensor = (struct tensor){.name = "x", .dtype = TENSOR_BF16, .data = brain, .count = 2};
    assert_ok(tensor_to_float(&tensor, value));
    assert_true(value[0] == 1.0f && value[1] == -2.0f);
    tensor = (struct tensor){.name = "x", .dtype = TENSOR_F64, .data = wide, .count = 2};
    assert_ok(tensor_to_float(&tensor, value));
    assert_true(value[0] == 0.1f && isinf(value[1]));
    tensor.dtype = TENSOR_I64;
    log_capture(message, sizeof message);
    assert_status(tensor_to_float(&tensor, value), STATUS_INVALID);
    log_capture(NULL, 0);
}

#define A4 "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}"
#define TENSOR(dtype, shape, offsets)                                                              \
    "{\"a\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static void test_broken_files(void **state)
{
    static const struct {
        const char *header;
        int64_t length; /* -1: true */
        size_t data;
        const char *words;
    } cases[] = {
        {"", 0, 0, "does not begin with {"},
        {"{}", 1000, 0, "cut off"},
        {"{}", INT64_MAX, 0, "cut off"},
        {"{}  ", 2, 0, "after the last tensor"},
        {"[1]", -1, 0, "does not begin with {"},
        {"{\"a\":}", -1, 0, "not valid JSON"},
        {"{" A4 "," A4 "}", -1, 4, "a"}, /* twice */
        {"{\"a\":3}", -1, 0, "dtype 'none'"},
        {TENSOR("F31", "[1]", "[0,4]"), -1, 4, "dtype 'F31'"},
        {TENSOR("F32", "[1.5]", "[0,4]"), -1, 4, "is no count"},
        {TENSOR("F32", "[-1]", "[0,4]"), -1, 4, "is no count"},
        {TENSOR("F32", "7", "[0,4]"), -1, 4, "needs a shape"},
        {TENSOR("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), -1, 4, "needs a shape"},
        {TENSOR("F32", "[4294967296,4294967296]", "[0,0]"), -1, 0, "more elements"},
        {TENSOR("F32", "[4611686018427387904]", "[0,0]"), -1, 0, "bytes of data"},
        {TENSOR("F32", "[1]", "[0]"), -1, 4, "data_offsets"},
        {TENSOR("F32", "[1]", "[4,0]"), -1, 4, "is said to be at"},
        {TENSOR("F32", "[1]", "[-4,0]"), -1, 4, "is said to be at"},
        {TENSOR("F32", "[2]", "[0,8]"), -1, 4, "is said to be at"},
        {TENSOR("F32", "[2]", "[0,4]"), -1, 4, "F32 [2], has 4 bytes"},
        {TENSOR("F32", "[1]", "[4,8]"), -1, 8, "a gap"},
        {TENSOR("F32", "[1]", "[0,4]"), -1, 5, "1 bytes after the last"},
        {"{" A4 ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]}}", -1, 6,
         "inside another"},
        {"{\"\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", -1, 4, "name of 0"},
    };
    struct tensor_file *file = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_file(path, cases[i].header, cases[i].length, cases[i].data);
        if (open_captured(path, &file) != STATUS_INVALID) {
            fail_msg("case %zu was accepted: %s", i, cases[i].header);
        }
        assert_says(cases[i].words);
        assert_says(path);
    }
    assert_int_equal(truncate(path, 3), 0);
    assert_status(open_captured(path, &file), STATUS_INVALID);
    assert_int_equal(truncate(path, 0), 0);
    assert_status(open_captured(path, &file), STATUS_INVALID);
    unlink(path);
    assert_status(open_captured(path, &file), STATUS_IO);
    assert_status(open_captured(folder, &file), STATUS_INVALID);
    assert_says("neither");
}

static void test_scalar_and_empty(void **state)
{
    struct tensor_file *file = NULL;
    struct tensor tensor;

    (void)state;
    write_file(path,
               "{\"s\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
               "\"e\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":[0,0]}}   ",
               -1, 4);
    assert_ok(tensor_file_open(path, &file));
    assert_true(tensor_file_find(file, "s", &tensor));
    assert_int_equal(tensor.count, 1);
    assert_true(tensor_file_find(file, "e", &tensor));
    assert_int_equal(tensor.count, 0);
    tensor_file_close(file);
    unlink(path);
}

static void write_index(const char *text)
{
    char name[160];
    snprintf(name, sizeof name, "%s/model.safetensors.index.json", folder);
    FILE *stream = fopen(name, "w");
    assert_non_null(stream);
    fputs(text, stream);
    fclose(stream);
}

static void test_sharded(void **state)
{
    static const struct {
        const char *index, *words;
    } broken[] = {
        {"{}", "weight_map"},
        {"{\"weight_map\":{\"a\":3}}", "no file for tensor a"},
        {"{\"weight_map\":{\"a\":\"../1.safetensors\"}}", "no name of a file"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "no name of a file"},
        {"{\"weight_map\":{\"a\":\"3.safetensors\"}}", "cannot open"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"c\":\"1.safetensors\"}}", "lists 2 tensors"},
        {"{\"weight_map\":{\"c\":\"1.safetensors\"}}", "holds tensor a"},
    };
    struct tensor_file *file = NULL;
    struct tensor tensor;
    char name[160];

    (void)state;
    unlink(path);
    snprintf(name, sizeof name, "%s/1.safetensors", folder);
    write_file(name, "{" A4 "}", -1, 4);
    snprintf(name, sizeof name, "%s/2.safetensors", folder);
    write_file(name, TENSOR("I32", "[2]", "[0,8]"), -1, 8);
    FILE *stream = fopen(name, "r+b"); /* the other shard's tensor is called b */
    assert_non_null(stream);
    fseek(stream, 10, SEEK_SET);
    fputc('b', stream);
    fclose(stream);
    write_index("{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}");
    assert_ok(tensor_file_open(folder, &file));
    assert_int_equal(tensor_file_count(file), 2);
    assert_true(tensor_file_find(file, "b", &tensor));
    assert_int_equal(tensor.shape[0], 2);
    tensor_file_close(file);
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        write_index(broken[i].index);
        assert_true(open_captured(folder, &file) != STATUS_OK);
        assert_says(broken[i].words);
    }
}

static void test_writer(void **state)
{
    static const struct tensor_entry entries[] = {{"w", 2, {2, 3}, TENSOR_F32},
                                                  {"v", 1, {2}, TENSOR_F32}};
    const float w[] = {1, 2, 3, 4, 5, 6}, v[] = {7, -8};
    struct tensor_file *file = NULL;
    struct tensor tensor;
    float value[6];
    uint64_t length = 0;

    (void)state;
    assert_ok(tensor_writer_create(path, entries, 2));
    assert_ok(tensor_writer_write(path, entries, 2, 1, v));
    assert_ok(tensor_writer_write(path, entries, 2, 0, w));
    assert_ok(tensor_file_open(path, &file));
    assert_true(tensor_file_find(file, "w", &tensor));
    assert_int_equal(tensor.dims, 2);
    assert_ok(tensor_to_float(&tensor, value));
    assert_memory_equal(value, w, sizeof w);
    assert_true(tensor_file_find(file, "v", &tensor));
    assert_ok(tensor_to_float(&tensor, value));
    assert_memory_equal(value, v, sizeof v);
    tensor_file_close(file);
    FILE *stream = fopen(path, "rb");
    assert_non_null(stream);
    assert_int_equal(fread(&length, sizeof length, 1, stream), 1);
    assert_int_equal(length % 8, 0);
    fclose(stream);
    assert_int_equal(truncate(path, 20), 0);
    log_capture(message, sizeof message);
    assert_status(tensor_writer_write(path, entries, 2, 0, w), STATUS_IO);
    log_capture(NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),       cmocka_unit_test(test_element_types),
        cmocka_unit_test(test_broken_files), cmocka_unit_test(test_scalar_and_empty),
        cmocka_unit_test(test_sharded),      cmocka_unit_test(test_writer),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
