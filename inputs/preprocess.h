/* inputs/preprocess.h: a decoded picture as the tiles its model looks at.
 *
 * Resize (Pillow's resampling, 8-bit, two passes), centre crop, pad and tile as
 * preprocessor_config.json says, equal to the PIL-based processors CLIPImageProcessor and
 * LlavaNextImageProcessor of `transformers`. The result stays 8-bit: rescaling and normalisation
 * are one multiply-add per channel, which the device does while it gathers patches (a quarter of
 * the bytes travels). value = byte * scale[channel] + shift[channel]. */
#ifndef AVL_INPUTS_PREPROCESS_H
#define AVL_INPUTS_PREPROCESS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "checkpoint/config.h"
#include "checkpoint/image_layout.h"
#include "inputs/image.h"

typedef struct avl_pixels {
    avl_image_layout_t layout;
    int side;       /* of a tile: height and width */
    uint8_t *bytes; /* [layout.tile_count, 3, side, side] */
    size_t byte_count;
} avl_pixels_t;

/* Errors: AVL_ERR_INVALID, AVL_ERR_MEMORY; AVL_ERR_UNSUPPORTED when the configured steps do not end
 * in square tiles of the vision tower's side (checked once by avl_preprocess_check at start). */
AVL_MUST_CHECK avl_status_t avl_preprocess(const avl_config_t *config, const avl_image_t *image,
                                           avl_pixels_t *pixels_p);
void avl_pixels_free(avl_pixels_t *pixels);

AVL_MUST_CHECK avl_status_t avl_preprocess_check(const avl_config_t *config);
/* scale[3] and shift[3] of the formula above. */
void avl_preprocess_normalisation(const avl_preprocessor_config_t *config, float scale[3],
                                  float shift[3]);

#endif
