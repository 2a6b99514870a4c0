/* test_json.c - values, order, strictness and places. */
#include "tests/test.h"

#include <string.h>

#include "base/json.h"
#include "base/log.h"

static struct json *parse(const char *text)
{
    struct json *document = NULL;
    assert_ok(json_parse(text, strlen(text), "text", &document));
    return document;
}

static void assert_refused(const char *text, const char *place)
{
    struct json *document = NULL;
    char lines[512];

    log_capture(lines, sizeof lines);
    assert_status(json_parse(text, strlen(text), "text", &document), STATUS_INVALID);
    log_capture(NULL, 0);
    assert_null(document);
    if (strstr(lines, place) == NULL) {
        fail_msg("'%s' lacks '%s'", lines, place);
    }
}

static void test_values(void **state)
{
    (void)state;
    struct json *document = parse("{\"i\": 9007199254740993, \"r\": 0.5, \"b\": true, \"s\": \"x\","
                                  " \"a\": [1, 2, 3], \"n\": null, \"o\": {\"z\": 1, \"a\": 2}}");
    int64_t integer = 0;
    double real = 0;
    bool flag = false;

    assert_true(json_get_int(json_get(document, "i"), &integer));
    assert_true(integer == INT64_C(9007199254740993));
    assert_true(json_get_real(json_get(document, "r"), &real));
    assert_true(real == 0.5);
    assert_true(json_get_real(json_at(json_get(document, "a"), 2), &real));
    assert_true(real == 3);
    assert_true(json_get_bool(json_get(document, "b"), &flag) && flag);
    assert_string_equal(json_get_string(json_get(document, "s")), "x");
    assert_int_equal(json_type(json_get(document, "n")), JSON_NULL);
    assert_int_equal(json_size(json_get(document, "a")), 3);
    assert_int_equal(json_size(document), 7);
    assert_int_equal(json_size(json_get(document, "s")), 0);
    json_free(document);
}

static void test_wrong_types_give_nothing(void **state)
{
    (void)state;
    struct json *document = parse("{\"r\": 1.0, \"a\": [1], \"s\": \"1\"}");
    int64_t integer = 42;
    double real = 42;
    bool flag = true;

    assert_false(json_get_int(json_get(document, "r"), &integer));
    assert_false(json_get_int(json_get(document, "absent"), &integer));
    assert_false(json_get_real(json_get(document, "s"), &real));
    assert_false(json_get_bool(json_get(document, "s"), &flag));
    assert_null(json_get_string(json_get(document, "a")));
    assert_null(json_get_string(NULL));
    assert_null(json_get(json_get(document, "a"), "x"));
    assert_null(json_at(document, 0));
    assert_null(json_at(json_get(document, "a"), 1));
    assert_null(json_get(NULL, "x"));
    assert_int_equal(integer, 42);
    assert_true(real == 42 && flag);
    json_free(document);
    json_free(NULL);
}

static void test_members_in_file_order(void **state)
{
    (void)state;
    struct json *document = parse("{\"zebra\": 0, \"apple\": 1, \"mango\": 2}");
    const char *const names[] = {"zebra", "apple", "mango"};
    const char *key = NULL;

    for (size_t i = 0; i < 3; i++) {
        int64_t value = -1;
        assert_true(json_get_int(json_member(document, i, &key), &value));
        assert_string_equal(key, names[i]);
        assert_int_equal(value, i);
    }
    assert_null(json_member(document, 3, &key));
    json_free(document);
}

static void test_strict(void **state)
{
    (void)state;
    assert_refused("{\"a\": 1,\n \"a\": 2}", "text:2:");
    assert_refused("{\"a\": 1} x", "text:1:");
    assert_refused("{\"a\": \"\xff\"}", "text:1:");
    assert_refused("[1, 2", "text:1:");
    assert_refused("[99999999999999999999]", "text:1:");
    assert_refused("", "text:");
}

static void test_files(void **state)
{
    (void)state;
    struct json *document = NULL;
    char lines[512];

    log_capture(lines, sizeof lines);
    assert_status(json_load("/nonexistent/config.json", &document), STATUS_IO);
    assert_status(json_load("/", &document), STATUS_IO);
    log_capture(NULL, 0);
    assert_non_null(strstr(lines, "/nonexistent/config.json: cannot open"));
    assert_non_null(strstr(lines, "/: cannot read"));
    assert_null(document);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_wrong_types_give_nothing),
        cmocka_unit_test(test_members_in_file_order),
        cmocka_unit_test(test_strict),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
