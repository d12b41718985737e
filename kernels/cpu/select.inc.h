/* kernels/cpu/select.inc.h: the best of a list of scores.
 *
 * The keep-th best score is found by halving the range of all numbers, each time counting the
 * scores from the middle on: a vector of scores at a time, with nothing to be written. Most lists
 * need about 20 of at most 32 counts, because a count of exactly `keep` ends the search. One pass
 * in ascending order then takes what lies above and the first of those that equal it. A histogram
 * of digits needs fewer passes, but each goes through memory score by score. */

/* Numbers in ascending order as integers in ascending order, -0 before +0; and back. */
AVL_INLINE int32_t order_of(float number) {
    int32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits ^ ((bits >> 31) & INT32_MAX);
}
AVL_INLINE float number_at(int32_t order) {
    float number;
    order ^= (order >> 31) & INT32_MAX;
    memcpy(&number, &order, sizeof number);
    return number;
}

/* The last vector of a list: behind its end are NaNs, which nothing reaches. */
AVL_INLINE avl_vf_t load_scores(const float *scores, int32_t first, int32_t count) {
    if (first + AVL_LANES <= count)
        return avl_v_load(scores + first);
    avl_vf_t part = avl_v_set(NAN);
    memcpy(&part, scores + first, (size_t)(count - first) * sizeof *scores);
    return part;
}

AVL_INLINE int32_t count_from(const float *scores, int32_t count, avl_vf_t tail, float limit) {
    avl_vi_t found = -(avl_vi_t)(tail >= limit);
    for (int32_t i = 0; i + AVL_LANES <= count; i += AVL_LANES)
        found -= (avl_vi_t)(avl_v_load(scores + i) >= limit);
    return avl_v_count(found);
}

/* The keep-th best score, and how many of those that equal it are to be taken; NaN where numbers
 * are too few. */
static float find_limit(const float *scores, int32_t count, int32_t keep, int32_t *ties_p) {
    avl_vf_t tail = load_scores(scores, count / AVL_LANES * AVL_LANES, count);
    int32_t numbers = count_from(scores, count, tail, -INFINITY);
    *ties_p = keep - numbers;
    if (numbers < keep)
        return NAN;
    int64_t low = order_of(-INFINITY), high = (int64_t)order_of(INFINITY) + 1;
    int32_t above = 0; /* scores from `high` on */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        int32_t found = count_from(scores, count, tail, number_at((int32_t)middle));
        if (found < keep) {
            high = middle;
            above = found;
            continue;
        }
        low = middle;
        if (found == keep)
            break;
    }
    *ties_p = keep - above; /* or more than there are */
    return number_at((int32_t)low);
}

static void take_score(const avl_choose_item_t *item, int32_t taken, int32_t index) {
    if (item->best != NULL)
        item->best[taken] = item->scores[index];
    if (item->indices != NULL)
        item->indices[taken] = index;
    if (item->list != NULL)
        item->list[taken] = item->rows[index];
}

static void choose_best(const avl_choose_item_t *item) {
    int32_t ties, taken = 0;
    if (item->keep == 0)
        return;
    float limit = find_limit(item->scores, item->count, item->keep, &ties);
    int is_nan = limit != limit;
    for (int32_t i = 0; taken < item->keep; i += AVL_LANES) {
        avl_vf_t score = load_scores(item->scores, i, item->count);
        avl_vi_t number = (avl_vi_t)(score == score);
        uint32_t bits = avl_v_bits(is_nan ? number : (avl_vi_t)(score > limit));
        uint32_t equal = avl_v_bits(is_nan ? ~number : (avl_vi_t)(score == limit));
        for (; equal != 0 && ties > 0; equal &= equal - 1, ties--)
            bits |= equal & -equal;
        for (; bits != 0; bits &= bits - 1)
            take_score(item, taken++, i + __builtin_ctz(bits));
    }
}
