/* test_arena.c - what is measured is what is used. */
#include "tests/test.h"

#include "base/arena.h"
#include "base/log.h"

struct layout {
    float *a, *b;
    unsigned char *c;
    void *nothing;
};

static void layout_point(struct arena *arena, struct layout *layout)
{
    layout->a = arena_alloc(arena, 100 * sizeof(float));
    layout->nothing = arena_alloc(arena, 0);
    layout->b = arena_alloc(arena, ARENA_ALIGN);
    layout->c = arena_alloc(arena, 1);
}

static void test_measure_then_point(void **state)
{
    (void)state;
    struct arena arena;
    struct layout layout;

    arena_init_measure(&arena);
    layout_point(&arena, &layout);
    assert_null(layout.a);
    assert_null(layout.c);
    assert_int_equal(arena.used, 512 + 256 + 256);

    size_t size = arena.used;
    assert_ok(arena_create(&arena, size, "the test"));
    layout_point(&arena, &layout);
    assert_int_equal(arena.used, size);
    assert_null(layout.nothing);
    assert_int_equal((uintptr_t)layout.a % ARENA_ALIGN, 0);
    assert_ptr_equal((unsigned char *)layout.a + 512, layout.b);
    assert_ptr_equal((unsigned char *)layout.b + 256, layout.c);
    for (size_t i = 0; i < size; i++) {
        assert_int_equal(arena.base[i], 0);
    }
    arena_destroy(&arena);
    assert_null(arena.base);
    arena_destroy(&arena);
}

static void test_empty_arena_is_bound(void **state)
{
    (void)state;
    struct arena arena;

    assert_ok(arena_create(&arena, 0, "nothing"));
    assert_null(arena_alloc(&arena, 0));
    assert_non_null(arena.base);
    arena_destroy(&arena);
}

static void test_too_much_is_refused(void **state)
{
    (void)state;
    struct arena arena;
    char lines[256];

    log_capture(lines, sizeof lines);
    assert_status(arena_create(&arena, SIZE_MAX - 1, "activations"), STATUS_NOMEM);
    assert_status(arena_create(&arena, SIZE_MAX / 2, "activations"), STATUS_NOMEM);
    log_capture(NULL, 0);
    assert_memory_equal(lines, "activations: cannot allocate", 28);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_measure_then_point),
        cmocka_unit_test(test_empty_arena_is_bound),
        cmocka_unit_test(test_too_much_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
