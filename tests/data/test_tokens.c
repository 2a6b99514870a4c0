/* test_tokens.c - llm.c files and bytes. */
#include "tests/test.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "data/tokens.h"

static char message[4096];
static char binary[64], text[64];

static int setup(void **state)
{
    (void)state;
    log_set_level(LOG_WARN);
    snprintf(binary, sizeof binary, "test_tokens.%d.bin", (int)getpid());
    snprintf(text, sizeof text, "test_tokens.%d.txt", (int)getpid());
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(binary);
    unlink(text);
    return 0;
}

static void assert_says(const char *words)
{
    if (strstr(message, words) == NULL) {
        fail_msg("'%s' is missing in: %s", words, message);
    }
}

/* `said` tokens in the header, `count` of `width` bytes in the file: 0, 1, 2, ... */
static void write_binary(int magic, int version, int said, int count, size_t width)
{
    int32_t header[256] = {magic, version, said};
    FILE *stream = fopen(binary, "wb");

    assert_non_null(stream);
    fwrite(header, sizeof header, 1, stream);
    for (uint32_t i = 0; i < (uint32_t)count; i++) {
        fwrite(&i, width, 1, stream); /* little-endian: its low bytes */
    }
    fclose(stream);
}

static void write_text(const char *words)
{
    FILE *stream = fopen(text, "wb");
    assert_non_null(stream);
    fputs(words, stream);
    fclose(stream);
}

static status_t open_captured(const char *path, int64_t vocab, struct tokens **out)
{
    message[0] = '\0';
    log_capture(message, sizeof message);
    status_t status = tokens_open(path, vocab, out);
    log_capture(NULL, 0);
    return status;
}

static void test_formats(void **state)
{
    struct tokens *tokens = NULL;
    int32_t read[3];

    (void)state;
    write_binary(TOKENS_U16_MAGIC, TOKENS_U16_VERSION, 100, 100, 2);
    assert_ok(tokens_open(binary, 100, &tokens));
    assert_int_equal(tokens_count(tokens), 100);
    assert_int_equal(tokens_format(tokens), TOKENS_LLMC);
    assert_int_equal(tokens_type(tokens), TOKEN_U16);
    assert_int_equal(tokens_documents(tokens), -1);
    assert_ok(tokens_read(tokens, 97, 3, read));
    assert_int_equal(read[0], 97);
    assert_int_equal(read[2], 99);
    tokens_close(tokens);
    write_binary(TOKENS_U32_MAGIC, TOKENS_U32_VERSION, 70000, 70000, 4);
    assert_ok(tokens_open(binary, 0, &tokens));
    assert_int_equal(tokens_type(tokens), TOKEN_U32);
    assert_ok(tokens_read(tokens, 69998, 2, read));
    assert_int_equal(read[1], 69999);
    tokens_close(tokens);
    write_text("abc\377");
    assert_ok(tokens_open(text, 256, &tokens));
    assert_int_equal(tokens_format(tokens), TOKENS_BYTES);
    assert_ok(tokens_read(tokens, 1, 3, read));
    assert_int_equal(read[0], 'b');
    assert_int_equal(read[2], 255);
    tokens_close(tokens);
}

static void test_refused(void **state)
{
    struct tokens *tokens = NULL;

    (void)state;
    write_binary(TOKENS_U16_MAGIC, TOKENS_U16_VERSION, 100, 100, 2);
    assert_status(open_captured(binary, 99, &tokens), STATUS_INVALID);
    assert_says("token 99 at position 99 is not below the vocabulary's 99");
    write_binary(TOKENS_U16_MAGIC, 2, 100, 100, 2);
    assert_status(open_captured(binary, 0, &tokens), STATUS_INVALID);
    assert_says("version 2");
    write_binary(TOKENS_U16_MAGIC, TOKENS_U16_VERSION, 101, 100, 2);
    assert_status(open_captured(binary, 0, &tokens), STATUS_INVALID);
    assert_says("announces 101 tokens, so 1226 bytes; the file has 1224");
    write_binary(TOKENS_U16_MAGIC, TOKENS_U16_VERSION, -5, 100, 2);
    assert_status(open_captured(binary, 0, &tokens), STATUS_INVALID);
    assert_int_equal(truncate(binary, 6), 0);
    assert_status(open_captured(binary, 0, &tokens), STATUS_INVALID);
    write_binary(7, 7, 100, 100, 2);
    assert_status(open_captured(binary, 256, &tokens), STATUS_INVALID);
    assert_says("muddpipe data encode");
    write_text("abc\377");
    assert_status(open_captured(text, 255, &tokens), STATUS_INVALID);
    assert_says("token 255 at position 3");
    write_text("");
    assert_status(open_captured(text, 256, &tokens), STATUS_INVALID);
    assert_status(open_captured(".", 256, &tokens), STATUS_INVALID);
    assert_status(open_captured("no such file", 256, &tokens), STATUS_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
