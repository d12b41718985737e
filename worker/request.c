#include "worker/request.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

void avl_request_destroy(avl_request_t *request) {
    if (request == NULL)
        return;
    for (int32_t i = 0; i < request->image_count; i++)
        free(request->images[i].pixels);
    for (int32_t i = 0; i < request->choice_count; i++)
        free(request->choices[i].replay_ids);
    free(request->choices);
    free(request->images);
    free(request->token_ids);
    free(request->replay_ids);
    free(request->forced_ids);
    free(request->stop_ids);
    free(request);
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
