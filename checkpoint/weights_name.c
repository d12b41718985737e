/* The layouts:
 *
 *   until 4.51                     from 4.52
 *   language_model.model.*         model.language_model.*
 *   language_model.lm_head.*       lm_head.*
 *   vision_tower.vision_model.*    model.vision_tower.vision_model.*
 *   multi_modal_projector.*        model.multi_modal_projector.*
 *   image_newline                  model.image_newline
 *
 * A newer text model stands without its "model." level, and a vision tower may stand without its
 * "vision_model." level (versions in which the CLIP tower is one module); both are put back. */
#include "checkpoint/weights_name.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

static const char *after(const char *text, const char *prefix) {
    size_t bytes = strlen(prefix);
    return strncmp(text, prefix, bytes) == 0 ? text + bytes : NULL;
}

static bool is_part(const char *text) {
    return after(text, "language_model.") != NULL || after(text, "vision_tower.") != NULL ||
           after(text, "multi_modal_projector.") != NULL || strcmp(text, "image_newline") == 0;
}

avl_status_t avl_weights_name(const char *stored, char **name_p) {
    const char *part = after(stored, "model.");
    if (part == NULL || !is_part(part))
        part = stored;
    const char *prefix = "";
    const char *rest = part;
    const char *inner = after(part, "language_model.");
    const char *tower = after(part, "vision_tower.");
    if (after(part, "lm_head.") != NULL) {
        prefix = "language_model.";
    } else if (inner != NULL && after(inner, "model.") == NULL &&
               after(inner, "lm_head.") == NULL) {
        prefix = "language_model.model.";
        rest = inner;
    } else if (tower != NULL && after(tower, "vision_model.") == NULL) {
        prefix = "vision_tower.vision_model.";
        rest = tower;
    }
    char *name = NULL;
    if (asprintf(&name, "%s%s", prefix, rest) < 0)
        return avl_fail(AVL_ERR_MEMORY, "no memory for the name of a tensor");
    *name_p = name;
    return AVL_OK;
}
