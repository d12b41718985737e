/* tests/kernels/sample.c: draws against probabilities in double precision, by the definition in
 * kernels/sample.h. A draw is a function of its share, so shares are swept instead of counting:
 * a little behind the border at which a token begins and a little before the one at which it ends,
 * it must come. Where parameters cut, they cut between the sums of two tokens, far from both. */
#include "tests/kernels/fixture.h"

#include "kernels/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH_MAX = 4100, SHARES = 8, PAD = 3 };

/* Of a float's e^x, and of what is cut off of weights. */
static const double border = 1e-5;

typedef struct rule {
    double temperature, top_p, min_p;
    int top_k;
} rule_t;

static avl_sample_item_t item_of(const rule_t *rule, double share) {
    avl_sample_item_t item = {.least = (float)rule->min_p,
                              .top_p = rule->top_p,
                              .top_k = rule->top_k,
                              .forced_id = -1,
                              .tops = -1};
    if (rule->temperature > 0) {
        item.scale = 1 / (float)rule->temperature;
        item.share = (uint64_t)(share * 0x1p64);
    }
    return item;
}

/* ---- the reference ---- */

typedef struct token {
    double logit;
    int id;
} token_t;

static int compare(const void *a, const void *b) {
    const token_t *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id - y->id;
}

/* The tokens in the order of merit. */
static void sort_tokens(const float *logits, int width, token_t *tokens) {
    for (int i = 0; i < width; i++)
        tokens[i] = (token_t){(double)logits[i], i};
    qsort(tokens, (size_t)width, sizeof *tokens, compare);
}

static double weight_of(const token_t *tokens, int i, double temperature) {
    return exp((tokens[i].logit - tokens[0].logit) / temperature);
}

/* What each token's chance is. */
static void chances(const float *logits, int width, const rule_t *rule, double *chance) {
    static token_t tokens[WIDTH_MAX];
    sort_tokens(logits, width, tokens);
    int kept = rule->top_k > 0 && rule->top_k < width ? rule->top_k : width, count = 0;
    double sum = 0, reached = 0;
    for (int i = 0; i < width; i++)
        chance[i] = 0;
    for (int i = 0; i < kept; i++)
        sum += weight_of(tokens, i, rule->temperature);
    for (; count < kept && (rule->top_p >= 1 || reached < rule->top_p * sum); count++)
        reached += weight_of(tokens, count, rule->temperature);
    double left = 0;
    for (int i = 0; i < count; i++) {
        double weight = weight_of(tokens, i, rule->temperature);
        chance[tokens[i].id] = weight >= rule->min_p ? weight : 0;
        left += chance[tokens[i].id];
    }
    for (int i = 0; i < width; i++)
        chance[i] /= left;
}

/* A top_p half-way between the sums of the first `count` and of one less. */
static double between(const float *logits, int width, const rule_t *rule, int count) {
    static token_t tokens[WIDTH_MAX];
    sort_tokens(logits, width, tokens);
    int kept = rule->top_k > 0 && rule->top_k < width ? rule->top_k : width;
    double sum = 0, before = 0;
    for (int i = 0; i < kept; i++)
        sum += weight_of(tokens, i, rule->temperature);
    for (int i = 0; i < count - 1; i++)
        before += weight_of(tokens, i, rule->temperature);
    return (before + weight_of(tokens, count - 1, rule->temperature) / 2) / sum;
}

/* ---- draws ---- */

/* Draws by each item from a copy of the logits. */
static void draw(avl_device_t *device, const float *logits, int width, avl_sample_item_t *items,
                 int count, avl_sample_result_t *results) {
    int stride = width + PAD;
    tensor_t rows = tensor_create(AVL_DTYPE_F32, (int64_t)count * stride);
    for (int i = 0; i < count; i++)
        memcpy((float *)rows.data + i * stride, logits, (size_t)width * sizeof *logits);
    memset(results, 0xee, (size_t)count * sizeof *results);
    avl_sample_args_t args = {rows.data, stride, count, width, items, results};
    expect_status(avl_sample(device, &args), AVL_OK, NULL);
    tensor_check_canaries(&rows);
    tensor_destroy(&rows);
}

/* Shares all over, and on both sides of borders. */
static void sweep(avl_device_t *device, const float *logits, int width, const rule_t *rule) {
    static double chance[WIDTH_MAX];
    double shares[SHARES], reached = 0;
    int expected[SHARES], count = 0;
    avl_sample_item_t items[SHARES];
    avl_sample_result_t results[SHARES];
    chances(logits, width, rule, chance);
    int first = random_below(width); /* the borders of some tokens from here on */
    for (int i = 0; i < width && count + 2 <= SHARES; i++) {
        if (chance[i] > 4 * border && (i >= first || i == 0 || reached + chance[i] > 1 - border)) {
            expected[count] = expected[count + 1] = i;
            shares[count++] = reached + border;
            shares[count++] = reached + chance[i] - border;
        }
        reached += chance[i];
    }
    for (int i = 0; i < count; i++)
        items[i] = item_of(rule, shares[i]);
    draw(device, logits, width, items, count, results);
    for (int i = 0; i < count; i++) {
        assert_int_equal(results[i].outcome, AVL_SAMPLE_TOKEN);
        if (results[i].token_id != expected[i])
            fail_msg("width %d, temperature %g, top_k %d, top_p %g, min_p %g, share %.9f: token %d "
                     "instead of %d",
                     width, rule->temperature, rule->top_k, rule->top_p, rule->min_p, shares[i],
                     results[i].token_id, expected[i]);
        assert_memory_equal(&results[i].logit, &logits[expected[i]], sizeof(float));
    }
}

/* Whatever the share, no token comes that is not left. */
static void check_left(avl_device_t *device, const float *logits, int width, const rule_t *rule) {
    static double chance[WIDTH_MAX];
    avl_sample_item_t items[SHARES];
    avl_sample_result_t results[SHARES];
    chances(logits, width, rule, chance);
    for (int i = 0; i < SHARES; i++)
        items[i] = item_of(rule, (double)(random_next() >> 11) * 0x1p-53);
    items[0].share = 0;
    items[1].share = UINT64_MAX;
    draw(device, logits, width, items, SHARES, results);
    for (int i = 0; i < SHARES; i++) {
        assert_in_range(results[i].token_id, 0, width - 1);
        assert_true(chance[results[i].token_id] > 0);
    }
}

/* Logits like a vocabulary's, with many ties, with few values, or wide. */
static void fill(float *logits, int width, int kind) {
    for (int i = 0; i < width; i++) {
        double sum = 0;
        for (int j = 0; j < 6; j++)
            sum += (double)(random_next() >> 11) * 0x1p-53 - 0.5;
        logits[i] = (float)(3 * sum);
        if (kind == 1)
            logits[i] = (float)random_below(4) - 2.0f;
        if (kind == 2)
            logits[i] = random_below(3) ? -INFINITY : floorf(logits[i]);
        if (kind == 3)
            logits[i] = random_below(2) ? 0.0f : -0.0f;
        if (kind == 4)
            logits[i] = random_below(2) ? logits[i] * 1e30f : logits[i] * 1e-30f;
    }
    logits[random_below(width)] = kind == 4 ? 3e38f : 4.0f;
}

static void check_draws(avl_device_t *device, void *context) {
    static const int widths[] = {1, 33, 1025, WIDTH_MAX};
    (void)context;
    static float logits[WIDTH_MAX];
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        for (int kind = 0; kind <= 4; kind++) {
            int width = widths[w];
            fill(logits, width, kind);
            rule_t rules[] = {{0.7, 1, 0, 0},
                              {1.5, 1, 0, 1 + random_below(width)},
                              {2, 1, 0, 1 + random_below(5)},
                              {1, 0, 0, 0},
                              {3, 0, 0, 1 + random_below(width)},
                              {2, 1, 0.3, 0},
                              {2, 0, 0.2, 1 + random_below(width)}};
            for (size_t r = 0; r < sizeof rules / sizeof *rules; r++) {
                if (rules[r].top_p <= 0) { /* cut where the border is clear */
                    int most =
                        rules[r].top_k > 0 && rules[r].top_k < width ? rules[r].top_k : width;
                    rules[r].top_p =
                        between(logits, width, &rules[r], 1 + random_below(most < 40 ? most : 40));
                    if (!(rules[r].top_p > 0 && rules[r].top_p < 1))
                        continue;
                }
                sweep(device, logits, width, &rules[r]);
            }
            check_left(device, logits, width, &rules[kind]);
        }
    }
}

static void draws_by_share(void **unused) {
    (void)unused;
    random_seed(5);
    for_each_device(check_draws, NULL);
}

/* Ties at a border: the lower ids stay, exactly as many as there is room for. */
static void check_ties(avl_device_t *device, void *context) {
    enum { WIDTH = 2500 };
    (void)context;
    static float logits[WIDTH];
    for (int i = 0; i < WIDTH; i++)
        logits[i] = i % 3 == 1 ? 2.0f : i == 1200 ? 3.0f : -1.0f;
    for (int k = 1; k <= 700; k += 233) {
        rule_t rule = {1, 1, 0, k};
        avl_sample_item_t items[2] = {item_of(&rule, 0), item_of(&rule, 0)};
        items[1].share = UINT64_MAX;
        avl_sample_result_t results[2];
        draw(device, logits, WIDTH, items, 2, results);
        /* The best at 1200 and the first k - 1 of 1, 4, 7, ... */
        int last = 1 + 3 * (k - 2);
        assert_int_equal(results[0].token_id, k == 1 ? 1200 : 1);
        assert_int_equal(results[1].token_id, last > 1200 ? last : 1200);
        rule = (rule_t){1, 0, 0, 0};
        items[0].top_k = items[1].top_k = 0;
        items[0].top_p = items[1].top_p = between(logits, WIDTH, &rule, k);
        draw(device, logits, WIDTH, items, 2, results);
        assert_int_equal(results[0].token_id, k == 1 ? 1200 : 1);
        assert_int_equal(results[1].token_id, last > 1200 ? last : 1200);
    }
}

static void breaks_ties_by_id(void **unused) {
    (void)unused;
    for_each_device(check_ties, NULL);
}

/* ---- adjustments, forced tokens, logprobs ---- */

static double logprob(const avl_sample_result_t *result, float logit) {
    return (double)logit - (double)result->best - log((double)result->sum * 0x1p-40);
}

static void check_logprobs(avl_device_t *device, void *context) {
    static const int widths[] = {1, 5, 20, 700, WIDTH_MAX};
    (void)context;
    static float logits[WIDTH_MAX];
    static token_t tokens[WIDTH_MAX];
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        for (int kind = 0; kind <= 3; kind++) {
            int width = widths[w], tops[] = {-1, 0, 1, AVL_SAMPLE_TOPS_MAX};
            fill(logits, width, kind);
            sort_tokens(logits, width, tokens);
            double sum = 0;
            for (int i = 0; i < width; i++)
                sum += weight_of(tokens, i, 1);
            rule_t greedy = {0, 1, 0, 0};
            avl_sample_item_t items[4];
            avl_sample_result_t results[4];
            for (int i = 0; i < 4; i++) {
                items[i] = item_of(&greedy, 0);
                items[i].tops = tops[i];
                items[i].forced_id = i == 2 ? random_below(width) : -1;
            }
            draw(device, logits, width, items, 4, results);
            for (int i = 0; i < 4; i++) {
                int id = i == 2 ? items[i].forced_id : tokens[0].id;
                assert_int_equal(results[i].outcome, AVL_SAMPLE_TOKEN);
                assert_int_equal(results[i].token_id, id);
                assert_memory_equal(&results[i].logit, &logits[id], sizeof(float));
                if (tops[i] >= 0 && logits[id] > -INFINITY)
                    check_close(logprob(&results[i], results[i].logit),
                                (double)logits[id] - tokens[0].logit - log(sum), 1e-5, 0, "logprob",
                                id);
                for (int j = 0; j < tops[i] && j < width; j++) {
                    assert_int_equal(results[i].top_ids[j], tokens[j].id);
                    assert_true((double)results[i].top_logits[j] == tokens[j].logit);
                }
            }
        }
    }
}

static void tells_logprobs(void **unused) {
    (void)unused;
    random_seed(6);
    for_each_device(check_logprobs, NULL);
}

/* Lists of all lengths, on rows that have others beside them; logprobs are of the logits as they
 * were. */
static void check_adjustments(avl_device_t *device, void *context) {
    enum { WIDTH = 1500, ROWS = 5 };
    static const int counts[ROWS] = {0, 1, 30, 1100, WIDTH};
    (void)context;
    static float logits[WIDTH], expected[ROWS][WIDTH];
    static avl_sample_adjustment_t lists[ROWS][WIDTH];
    avl_sample_item_t items[ROWS];
    avl_sample_result_t results[ROWS];
    fill(logits, WIDTH, 0);
    rule_t greedy = {0, 1, 0, 0};
    for (int row = 0; row < ROWS; row++) {
        memcpy(expected[row], logits, sizeof logits);
        for (int i = 0; i < counts[row]; i++) {
            int id = (i * 7 + 3) % WIDTH; /* each once */
            float factor = i % 2 ? 1.0f : 1.7f;
            float subtract = i % 3 ? (float)random_below(9) / 4 - 1 : 0;
            subtract = i % 11 == 5 ? INFINITY : subtract;
            lists[row][i] = (avl_sample_adjustment_t){id, factor, subtract};
            float *logit = &expected[row][id];
            *logit = *logit > 0 ? *logit / factor : *logit * factor;
            *logit -= subtract;
        }
        items[row] = item_of(&greedy, 0);
        items[row].adjustments = lists[row];
        items[row].adjustment_count = counts[row];
        items[row].tops = row % 2 ? 3 : -1;
    }
    static token_t tokens[WIDTH], before[WIDTH];
    sort_tokens(logits, WIDTH, before);
    draw(device, logits, WIDTH, items, ROWS, results);
    for (int row = 0; row < ROWS; row++) {
        sort_tokens(expected[row], WIDTH, tokens);
        assert_int_equal(results[row].token_id, tokens[0].id);
        assert_memory_equal(&results[row].logit, &logits[tokens[0].id], sizeof(float));
        for (int j = 0; j < items[row].tops; j++)
            assert_int_equal(results[row].top_ids[j], before[j].id);
    }
    rule_t warm = {0.8, 1, 0, 40};
    sweep(device, expected[3], WIDTH, &warm);
}

static void adjusts_logits(void **unused) {
    (void)unused;
    random_seed(7);
    for_each_device(check_adjustments, NULL);
}

/* ---- what is no number, and what is no request ---- */

static void expect_outcome(avl_device_t *device, const float *logits, int width,
                           avl_sample_item_t item, int outcome, int token_id) {
    avl_sample_result_t result;
    draw(device, logits, width, &item, 1, &result);
    assert_int_equal(result.outcome, outcome);
    if (token_id >= 0) {
        assert_int_equal(result.token_id, token_id);
        assert_memory_equal(&result.logit, &logits[token_id], sizeof(float));
    }
}

static void check_hostile(avl_device_t *device, void *context) {
    enum { WIDTH = 1100 };
    (void)context;
    static float logits[WIDTH];
    avl_sample_adjustment_t bans[] = {{.token_id = 900, .factor = 1, .subtract = INFINITY}};
    for (int kind = 0; kind < 5; kind++) {
        rule_t rule = {kind % 2 ? 1.0 : 0.0, kind > 2 ? 0.5 : 1, 0, kind == 3 ? 7 : 0};
        avl_sample_item_t item = item_of(&rule, 0.5), banned;
        item.tops = kind == 4 ? 5 : -1;
        banned = item;
        banned.adjustments = bans;
        banned.adjustment_count = 1;
        fill(logits, WIDTH, 0);
        logits[900] = kind % 2 ? NAN : INFINITY;
        expect_outcome(device, logits, WIDTH, item, AVL_SAMPLE_STRANGE, 900);
        /* Nobody looks at one that is banned, unless logprobs are wanted. */
        expect_outcome(device, logits, WIDTH, banned,
                       item.tops < 0 ? AVL_SAMPLE_TOKEN : AVL_SAMPLE_STRANGE,
                       item.tops < 0 ? -1 : 900);
        logits[30] = -NAN;
        expect_outcome(device, logits, WIDTH, item, AVL_SAMPLE_STRANGE, 30);
        banned.adjustment_count = 0;
        banned.forced_id = 5;
        expect_outcome(device, logits, WIDTH, banned, AVL_SAMPLE_STRANGE, 30);
        banned.forced_id = -1;
        banned.adjustment_count = 1;
        for (int i = 0; i < WIDTH; i++)
            logits[i] = -INFINITY;
        expect_outcome(device, logits, WIDTH, item, AVL_SAMPLE_NOTHING, -1);
        logits[900] = 2;
        expect_outcome(device, logits, WIDTH, item, AVL_SAMPLE_TOKEN, 900);
        expect_outcome(device, logits, WIDTH, banned, AVL_SAMPLE_NOTHING, -1);
        logits[7] = -3e38f;
        expect_outcome(device, logits, WIDTH, banned, AVL_SAMPLE_TOKEN, 7);
    }
}

static void refuses_what_is_no_number(void **unused) {
    (void)unused;
    random_seed(8);
    for_each_device(check_hostile, NULL);
}

static void refuses_nonsense(void **unused) {
    (void)unused;
    avl_device_t *device = open_best(1);
    float logits[8] = {0};
    rule_t greedy = {0, 1, 0, 0};
    avl_sample_result_t result;
    avl_sample_adjustment_t list = {.token_id = 8, .factor = 1};
    avl_sample_item_t good = item_of(&greedy, 0), items[10];
    for (int i = 0; i < 10; i++)
        items[i] = good;
    items[0].forced_id = 8;
    items[1].tops = AVL_SAMPLE_TOPS_MAX + 1;
    items[2].top_p = 0;
    items[3].scale = NAN;
    items[4].least = 2;
    items[5].top_k = -1;
    items[6].adjustment_count = 1; /* NULL */
    items[7].adjustment_count = 1;
    items[7].adjustments = &list;
    items[8].adjustment_count = -1;
    items[9].scale = INFINITY;
    for (int i = 0; i < 10; i++)
        expect_status(avl_sample(device, &(avl_sample_args_t){logits, 8, 1, 8, &items[i], &result}),
                      AVL_ERR_SHAPE, "sample");
    expect_status(avl_sample(device, &(avl_sample_args_t){logits, 8, 1, 0, &good, &result}),
                  AVL_ERR_SHAPE, "width 0");
    expect_status(avl_sample(device, &(avl_sample_args_t){logits, 8, 1, 8, NULL, &result}),
                  AVL_ERR_SHAPE, "items");
    expect_status(avl_sample(device, &(avl_sample_args_t){NULL, 8, 0, 8, NULL, NULL}), AVL_OK,
                  NULL);
    avl_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_by_share),
        cmocka_unit_test(breaks_ties_by_id),
        cmocka_unit_test(tells_logprobs),
        cmocka_unit_test(adjusts_logits),
        cmocka_unit_test(refuses_what_is_no_number),
        cmocka_unit_test(refuses_nonsense),
    };
    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
