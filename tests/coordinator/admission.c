/* Who is let in, by what is promised to whom. The groups are this file's. */
#include "coordinator/admission.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"

#define TICKETS 12
#define ANSWER_TOKENS 10
#define S AVL_NS_PER_S

/* ---- what coordinator/groups.c would be: one group ---- */

struct avl_groups {
    int32_t room, places;
};

void avl_groups_view(avl_groups_t *groups, avl_groups_view_t *view_p) {
    memset(view_p, 0, sizeof *view_p);
    view_p->count = view_p->ready = 1;
    view_p->sequences_max = view_p->parallel = groups->room;
    view_p->best.context_rows_max = 4096;
}

static int32_t places_of(const avl_groups_need_t *need) {
    return need->answers > 1 ? need->answers : 1;
}

avl_status_t avl_groups_reserve(avl_groups_t *groups, const avl_groups_need_t *need,
                                uint64_t *generation_p) {
    if (groups->places > 0 && groups->places + places_of(need) > groups->room)
        return avl_fail(AVL_ERR_EXHAUSTED, "no room");
    groups->places += places_of(need);
    *generation_p = 1;
    return AVL_OK;
}

void avl_groups_release(avl_groups_t *groups, uint64_t generation, const avl_groups_need_t *need) {
    assert_int_equal(generation, 1);
    groups->places -= places_of(need);
    assert_true(groups->places >= 0);
}

/* ---- the stage ---- */

typedef struct stage {
    avl_admission_t *admission;
    avl_groups_t groups;
    avl_ticket_t tickets[TICKETS];
    int64_t now_ns;
} stage_t;

/* The group tells of steps of so many milliseconds with one sequence. */
static void tell_work(stage_t *stage, int64_t step_ms) {
    const avl_work_t steps = {10, 10 * step_ms * AVL_NS_PER_MS, 10, 0, 0, 0},
                     reading = {1, (step_ms + 1) * AVL_NS_PER_MS, 1, 10, 0, 0};
    for (int i = 0; i < 60; i++)
        avl_admission_work(stage->admission, &steps);
    avl_admission_work(stage->admission, &reading);
}

static avl_status_t enter_saying(stage_t *stage, int i, int64_t left_ns, avl_asked_t asked) {
    return avl_admission_enter(stage->admission, (uint64_t)i + 1, "", stage->now_ns,
                               left_ns > 0 ? stage->now_ns + left_ns : AVL_DEADLINE_NONE, &asked,
                               &stage->tickets[i]);
}

static avl_status_t enter(stage_t *stage, int i, int64_t left_ns) {
    return enter_saying(stage, i, left_ns, (avl_asked_t){0});
}

static avl_status_t queue_up(stage_t *stage, int i, int32_t tokens_max, int32_t answers,
                             int32_t priority) {
    avl_ticket_t *ticket = &stage->tickets[i];
    ticket->demand = (avl_demand_t){.rows = 10, .tokens_max = tokens_max, .answers = answers};
    ticket->need = (avl_groups_need_t){.rows = 11, .answers = answers};
    return avl_admission_queue(stage->admission, ticket, priority, stage->now_ns);
}

/* Whoever has its turn: its number, or -1. */
static int next(stage_t *stage, avl_status_t *status_p) {
    uint64_t id = 0, generation;
    *status_p = avl_admission_next(stage->admission, stage->now_ns, &id, &generation);
    return (int)id - 1;
}

static void goes_out(stage_t *stage, int expected) {
    avl_status_t status;
    assert_int_equal(next(stage, &status), expected);
    assert_int_equal(status, AVL_OK);
}

/* A deadline in `left_ns`, or 0: none. */
static avl_status_t ask(stage_t *stage, int i, int64_t left_ns) {
    avl_status_t status = enter(stage, i, left_ns);
    return status == AVL_OK ? queue_up(stage, i, 4000, 1, 0) : status;
}

static void answer(stage_t *stage, int i, int32_t tokens) {
    avl_admission_answer(stage->admission, &stage->tickets[i], 0, tokens);
    avl_admission_leave(stage->admission, &stage->tickets[i], 10 + tokens);
}

/* Answers of ANSWER_TOKENS are known, and steps of a second: ten seconds for one. */
static int setup(void **state) {
    stage_t *stage = calloc(1, sizeof *stage);
    const avl_admission_config_t config = {TICKETS, AVL_DEADLINE_NONE, NULL, 0};
    if (stage == NULL || avl_admission_create(&config, &stage->admission) != AVL_OK)
        return -1;
    avl_admission_set_groups(stage->admission, &stage->groups);
    stage->groups.room = 1;
    stage->now_ns = avl_clock_now_ns();
    for (int i = 0; i < AVL_ESTIMATE_ANSWERS; i++) {
        assert_int_equal(ask(stage, 0, 0), AVL_OK);
        goes_out(stage, 0);
        answer(stage, 0, ANSWER_TOKENS);
    }
    tell_work(stage, 1000);
    *state = stage;
    return 0;
}

static int teardown(void **state) {
    stage_t *stage = *state;
    for (int i = 0; i < TICKETS; i++)
        avl_admission_leave(stage->admission, &stage->tickets[i], 0);
    assert_int_equal(stage->groups.places, 0);
    avl_admission_destroy(stage->admission);
    free(stage);
    return 0;
}

/* ---- tests ---- */

/* One that came alone, and will just be in time, was promised nothing: others may slow it down. */
static void test_no_promise(void **state) {
    stage_t *stage = *state;
    stage->groups.room = 4;
    assert_int_equal(ask(stage, 0, 11 * S), AVL_OK);
    goes_out(stage, 0);
    assert_int_equal(ask(stage, 1, 0), AVL_OK);
    goes_out(stage, 1);
    assert_int_equal(ask(stage, 2, 500 * S), AVL_OK);
    goes_out(stage, 2);
    assert_false(stage->tickets[0].promised);
    assert_true(stage->tickets[2].promised);
}

/* One that was promised its answer is a reason to refuse others. */
static void test_promise(void **state) {
    stage_t *stage = *state;
    stage->groups.room = 4;
    assert_int_equal(ask(stage, 0, 0), AVL_OK);
    goes_out(stage, 0);
    assert_int_equal(ask(stage, 1, 30 * S), AVL_OK);
    goes_out(stage, 1);
    assert_int_equal(ask(stage, 2, 40 * S), AVL_ERR_EXHAUSTED);
    assert_non_null(strstr(avl_status_detail(), "would miss their deadlines"));
}

/* Of four places two are taken, one by a request that is promised and cannot wait. */
static void fill_half(stage_t *stage) {
    stage->groups.room = 4;
    assert_int_equal(ask(stage, 0, 0), AVL_OK);
    goes_out(stage, 0);
    assert_int_equal(ask(stage, 1, 30 * S), AVL_OK);
    goes_out(stage, 1);
}

/* Who can wait is let in, and held back as long as somebody would be late for it. */
static void test_held_back(void **state) {
    stage_t *stage = *state;
    avl_status_t status;
    fill_half(stage);
    for (int i = 2; i < 4; i++) {
        assert_int_equal(ask(stage, i, i == 2 ? 0 : 600 * S), AVL_OK);
        next(stage, &status);
        assert_int_equal(status, AVL_ERR_EXHAUSTED);
    }
    assert_int_equal(stage->groups.places, 2);
    answer(stage, 1, ANSWER_TOKENS);
    avl_status_t first, second;
    assert_int_equal(next(stage, &first) + next(stage, &second), 2 + 3);
    assert_int_equal(first, AVL_OK);
    assert_int_equal(second, AVL_OK);
}

/* But not for ever. */
static void test_held_back_at_most(void **state) {
    stage_t *stage = *state;
    avl_status_t status;
    fill_half(stage);
    assert_int_equal(ask(stage, 2, 0), AVL_OK);
    next(stage, &status);
    assert_int_equal(status, AVL_ERR_EXHAUSTED);
    stage->tickets[1].deadline_ns += 60 * S; /* still in danger then */
    stage->now_ns += 31 * S;
    goes_out(stage, 2);
}

/* It is broken as well when the request is given up before its deadline. */
static void test_given_up(void **state) {
    stage_t *stage = *state;
    assert_int_equal(ask(stage, 0, 0), AVL_OK);
    goes_out(stage, 0);
    assert_int_equal(ask(stage, 1, 60 * S), AVL_OK);
    assert_int_equal(ask(stage, 2, 0), AVL_OK);
    double margin = avl_admission_margin(stage->admission);
    tell_work(stage, 100000); /* suddenly a hundred times slower */
    avl_status_t status;
    assert_int_equal(next(stage, &status), 1);
    assert_int_equal(status, AVL_ERR_DEADLINE);
    avl_admission_leave(stage->admission, &stage->tickets[1], 10);
    assert_true(avl_admission_margin(stage->admission) > margin + 0.01);
    /* The others were promised nothing. */
    margin = avl_admission_margin(stage->admission);
    answer(stage, 0, ANSWER_TOKENS);
    goes_out(stage, 2);
    answer(stage, 2, ANSWER_TOKENS);
    assert_false(avl_admission_margin(stage->admission) < margin);
}

/* Answers that are over make room, and what is left is what the others have left. */
static void test_answers_end_one_by_one(void **state) {
    stage_t *stage = *state;
    stage->groups.room = 4;
    assert_int_equal(enter(stage, 0, 0), AVL_OK);
    assert_int_equal(queue_up(stage, 0, 4000, 4, 0), AVL_OK);
    goes_out(stage, 0);
    assert_int_equal(ask(stage, 1, 0), AVL_OK);
    avl_status_t status;
    next(stage, &status);
    assert_int_equal(status, AVL_ERR_EXHAUSTED);
    for (int i = 0; i < 4 * 5; i++)
        avl_admission_token(stage->admission, &stage->tickets[0]);
    for (int32_t left = 3; left > 0; left--) {
        avl_admission_choice_over(stage->admission, &stage->tickets[0], 5);
        assert_int_equal(stage->groups.places, left);
        assert_int_equal(stage->tickets[0].tokens, 5 * left);
    }
    goes_out(stage, 1);
    /* The last one's place is given back with the request. */
    avl_admission_choice_over(stage->admission, &stage->tickets[0], 5);
    assert_int_equal(stage->groups.places, 2);
    assert_int_equal(avl_admission_return(stage->admission, &stage->tickets[0], false), AVL_OK);
    assert_int_equal(stage->groups.places, 1);
    goes_out(stage, 0);
    assert_int_equal(stage->groups.places, 2);
    answer(stage, 0, 10);
    assert_int_equal(stage->groups.places, 1);
}

/* Most answers are cut, and a few end early: the others are not taken for short ones. */
static void test_cut_answers(void **state) {
    (void)state;
    const avl_demand_t cut = {.rows = 10, .tokens_max = 256}, open = {.tokens_max = 4000};
    avl_estimate_t estimate;
    memset(&estimate, 0, sizeof estimate);
    for (int i = 0; i < 400; i++)
        avl_estimate_answer(&estimate, &cut, 0, i % 20 == 0 ? 5 : 256);
    assert_in_range(avl_estimate_tokens(&estimate, &open), 200, 260);
    assert_in_range(avl_estimate_tokens_most(&estimate, &open), 256, 400);
    /* A cut below what answers get as a rule tells nothing. */
    memset(&estimate, 0, sizeof estimate);
    const avl_demand_t brief = {.rows = 10, .tokens_max = 3};
    for (int i = 0; i < 400; i++)
        avl_estimate_answer(&estimate, i % 2 == 0 ? &brief : &cut, 0, i % 2 == 0 ? 3 : 100);
    assert_int_equal(avl_estimate_tokens(&estimate, &open), 100);
}

/* The door judges a call by what it says of itself, not by the others. */
static void test_door(void **state) {
    stage_t *stage = *state;
    stage->groups.room = 4;
    assert_int_equal(ask(stage, 0, 0), AVL_OK);
    goes_out(stage, 0);
    const avl_asked_t brief = {.tokens_max = 2}, all = {.tokens_max = 100, .all_tokens = true};
    assert_int_equal(enter(stage, 1, 8 * S), AVL_ERR_DEADLINE); /* ten seconds alone */
    assert_int_equal(enter_saying(stage, 1, 8 * S, brief), AVL_OK);
    assert_int_equal(queue_up(stage, 1, 2, 1, 0), AVL_OK);
    avl_admission_leave(stage->admission, &stage->tickets[1], 0);
    assert_int_equal(enter_saying(stage, 2, 90 * S, all), AVL_ERR_DEADLINE);
    assert_int_equal(enter_saying(stage, 2, 90 * S, (avl_asked_t){.tokens_max = 100}), AVL_OK);
}

/* Whoever goes before those that wait, or are prepared, need not wait for them. */
static void test_door_priorities(void **state) {
    stage_t *stage = *state;
    for (int i = 0; i < 5; i++)
        assert_int_equal(ask(stage, i, 0), AVL_OK);
    goes_out(stage, 0);
    for (int i = 5; i < 8; i++)
        assert_int_equal(enter_saying(stage, i, 0, (avl_asked_t){.priority = i - 6}), AVL_OK);
    /* Ten seconds for the one at work, and ten for each that goes before. */
    assert_int_equal(enter(stage, 8, 60 * S), AVL_ERR_EXHAUSTED);
    assert_int_equal(enter_saying(stage, 8, 60 * S, (avl_asked_t){.priority = 100}), AVL_OK);
    assert_int_equal(queue_up(stage, 8, 4000, 1, 100), AVL_OK);
    assert_int_equal(enter_saying(stage, 9, 60 * S, (avl_asked_t){.priority = 1}),
                     AVL_ERR_EXHAUSTED);
    avl_admission_leave(stage->admission, &stage->tickets[8], 0);
    avl_admission_leave(stage->admission, &stage->tickets[7], 0);
    assert_int_equal(enter_saying(stage, 9, 60 * S, (avl_asked_t){.priority = 1}), AVL_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_no_promise, setup, teardown),
        cmocka_unit_test_setup_teardown(test_promise, setup, teardown),
        cmocka_unit_test_setup_teardown(test_held_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_held_back_at_most, setup, teardown),
        cmocka_unit_test_setup_teardown(test_given_up, setup, teardown),
        cmocka_unit_test_setup_teardown(test_answers_end_one_by_one, setup, teardown),
        cmocka_unit_test(test_cut_answers),
        cmocka_unit_test_setup_teardown(test_door, setup, teardown),
        cmocka_unit_test_setup_teardown(test_door_priorities, setup, teardown),
    };
    return cmocka_run_group_tests_name("coordinator admission", tests, NULL, NULL);
}
