#include "worker/request.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

void avl_request_destroy(avl_request_t *request) {
    if (request == NULL)
        return;
    for (int32_t i = 0; i < request->image_count; i++)
        free(request->images[i].pixels);
    free(request->images);
    free(request->token_ids);
    free(request->replay_ids);
    free(request->forced_ids);
    free(request->stop_ids);
    free(request);
}

/* The comparisons are written so that a NaN fails them. */
avl_status_t avl_attention_params_check(const avl_attention_params_t *params) {
    double store = params->visual_store_ratio, compute = params->visual_compute_ratio;
    if (!(store > 0 && store <= 1))
        return avl_fail(AVL_ERR_INVALID,
                        "visual_store_ratio is %g; allowed: more than 0, at most 1", store);
    if (!(compute > 0 && compute <= store))
        return avl_fail(AVL_ERR_INVALID,
                        "visual_compute_ratio is %g; allowed: more than 0, at most "
                        "visual_store_ratio (%g)",
                        compute, store);
    if (params->visual_update_interval < 1)
        return avl_fail(AVL_ERR_INVALID, "visual_update_interval is %d; allowed: at least 1",
                        params->visual_update_interval);
    return AVL_OK;
}

/* The ratio and the product are each rounded once, so a product that is whole on paper is at most a
 * few units in the last place away from it; nothing else is that close unless the ratio has some
 * fifteen digits. */
int32_t avl_ratio_rows(double ratio, int32_t count) {
    double product = ratio * count;
    double whole = nearbyint(product);
    if (fabs(product - whole) > 4 * DBL_EPSILON * whole)
        whole = floor(product);
    if (!(whole > 0))
        return 0;
    return whole >= count ? count : (int32_t)whole;
}
