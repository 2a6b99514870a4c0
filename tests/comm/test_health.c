/* test_health.c - the liveness thread without MPI: real processes die, notes come from the test. */
#include "tests/test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/trace.h"
#include "comm/health/health.h"
#include "comm/transport.h"

struct scene { /* rank 0 of 3; the others are children that sleep */
    struct group group;
    struct health *health;
    pid_t child, other; /* ranks 1 and 2 */
    int from;           /* who says `note` */
    pthread_mutex_t mutex;
    struct health_note note; /* one for rank 0 to receive */
    bool has_note;
    int beats, told; /* notes that rank 0 sent */
};

static const struct group_class no_class = {0};

static void line_send(void *arg, int rank, const struct health_note *note)
{
    struct scene *scene = arg;

    (void)rank;
    pthread_mutex_lock(&scene->mutex);
    scene->beats += note->word == HEALTH_BEAT;
    scene->told += note->word == HEALTH_LOST;
    pthread_mutex_unlock(&scene->mutex);
}

static bool line_receive(void *arg, int *out_rank, struct health_note *out)
{
    struct scene *scene = arg;

    pthread_mutex_lock(&scene->mutex);
    bool has = scene->has_note;
    scene->has_note = false;
    *out = scene->note;
    *out_rank = scene->from;
    pthread_mutex_unlock(&scene->mutex);
    return has;
}

static bool line_idle(void *arg)
{
    (void)arg;
    return true;
}

static void say_from(struct scene *scene, int from, struct health_note note)
{
    pthread_mutex_lock(&scene->mutex);
    scene->from = from;
    scene->note = note;
    scene->has_note = true;
    pthread_mutex_unlock(&scene->mutex);
}

static void say(struct scene *scene, struct health_note note)
{
    say_from(scene, 1, note);
}

static pid_t start_child(void)
{
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        pause();
        _exit(0);
    }
    return child;
}

static void begin(struct scene *scene, double heartbeat_s)
{
    struct group_options options = {.heartbeat_s = heartbeat_s};
    struct health_line line = {scene, line_send, line_receive, line_idle};

    memset(scene, 0, sizeof *scene);
    pthread_mutex_init(&scene->mutex, NULL);
    scene->child = start_child();
    scene->other = start_child();
    group_init(&scene->group, &no_class, 0, 3, &options, NULL);
    struct health_peer peers[3] = {
        {getpid(), true, {-1, -1}}, {scene->child, true, {-1, -1}}, {scene->other, true, {-1, -1}}};
    assert_ok(health_start(&scene->group, peers, &line, &scene->health));
}

static void end(struct scene *scene)
{
    kill(scene->child, SIGKILL);
    waitpid(scene->child, NULL, 0);
    kill(scene->other, SIGKILL);
    waitpid(scene->other, NULL, 0);
    health_stop(scene->health);
    group_fini(&scene->group);
    pthread_mutex_destroy(&scene->mutex);
}

/* True if the group fails within `ms`. */
static bool fails_within(struct scene *scene, int ms)
{
    int64_t until = trace_now() + ms * INT64_C(1000000);

    while (!scene->group.shared->failed && trace_now() < until) {
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    return scene->group.shared->failed;
}

static void test_death(void **state)
{
    struct scene scene;

    (void)state;
    begin(&scene, 30);
    assert_false(fails_within(&scene, 120));
    kill(scene.child, SIGKILL);
    assert_true(fails_within(&scene, 1000));
    assert_string_equal(scene.group.shared->reason, "rank 1 died (killed?)");
    assert_true(scene.group.shared->told);
    end(&scene);
}

static void test_silence(void **state)
{
    struct scene scene;

    (void)state;
    begin(&scene, 0.8);
    for (int i = 0; i < 6; i++) { /* beats for longer than the limit */
        say_from(&scene, 2, (struct health_note){HEALTH_BEAT, 0, 0});
        assert_false(fails_within(&scene, 200));
    }
    assert_true(fails_within(&scene, 3000));
    assert_non_null(strstr(scene.group.shared->reason, "rank 2 has not answered for 0.8 s"));
    assert_true(scene.beats >= 8);
    end(&scene);
}

static void test_notes(void **state)
{
    struct scene scene;

    (void)state;
    begin(&scene, 30);
    say(&scene, (struct health_note){HEALTH_LOST, 1, CAUSE_GAVE_UP});
    kill(scene.child, SIGKILL); /* what it said counts, not that it then ended */
    assert_true(fails_within(&scene, 1000));
    assert_non_null(strstr(scene.group.shared->reason, "rank 1 gave up"));
    end(&scene);

    begin(&scene, 30);
    say(&scene, (struct health_note){HEALTH_LOST, 1, CAUSE_TERMINATED});
    assert_false(fails_within(&scene, 200)); /* the signal may be on its way to us */
    assert_true(fails_within(&scene, 2000));
    assert_string_equal(scene.group.shared->reason, "rank 1 was ended by SIGTERM");
    end(&scene);
}

/* An end may be seen before the note that explains it. */
static void test_late_notes(void **state)
{
    struct scene scene;

    (void)state;
    begin(&scene, 30);
    kill(scene.child, SIGKILL);
    assert_false(fails_within(&scene, 100));
    say(&scene, (struct health_note){HEALTH_LOST, 2, CAUSE_GAVE_UP});
    assert_true(fails_within(&scene, 1000));
    assert_non_null(strstr(scene.group.shared->reason, "rank 2 gave up"));
    end(&scene);

    begin(&scene, 30); /* rank 2 ends because SIGTERM ended rank 1, and says so */
    kill(scene.other, SIGKILL);
    assert_false(fails_within(&scene, 100));
    say_from(&scene, 2, (struct health_note){HEALTH_LOST, 1, CAUSE_TERMINATED});
    assert_true(fails_within(&scene, 1000));
    assert_string_equal(scene.group.shared->reason, "rank 1 was ended by SIGTERM");
    end(&scene);

    begin(&scene, 30); /* rank 2 gets SIGTERM because rank 1 died */
    kill(scene.child, SIGKILL);
    assert_false(fails_within(&scene, 100));
    say_from(&scene, 2, (struct health_note){HEALTH_LOST, 2, CAUSE_TERMINATED});
    assert_true(fails_within(&scene, 1000));
    assert_string_equal(scene.group.shared->reason, "rank 1 died (killed?)");
    end(&scene);
}

/* Who leaves because SIGTERM ended another is not the one to blame. */
static void test_bystander(void **state)
{
    struct scene scene;

    (void)state;
    begin(&scene, 30);
    say(&scene, (struct health_note){HEALTH_LOST, 1, CAUSE_TERMINATED});
    assert_false(fails_within(&scene, 100));
    kill(scene.other, SIGKILL);
    assert_true(fails_within(&scene, 2000));
    assert_string_equal(scene.group.shared->reason, "rank 1 was ended by SIGTERM");
    end(&scene);
}

static void test_goodbye(void **state)
{
    struct scene scene;

    (void)state;
    begin(&scene, 30);
    health_leave(scene.health);
    kill(scene.child, SIGKILL);
    assert_false(fails_within(&scene, 300));
    end(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_death),     cmocka_unit_test(test_silence),
        cmocka_unit_test(test_notes),     cmocka_unit_test(test_late_notes),
        cmocka_unit_test(test_bystander), cmocka_unit_test(test_goodbye),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
