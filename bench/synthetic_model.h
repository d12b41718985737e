/* bench/synthetic_model.h: a LLaVA-shaped model directory of random bf16 weights, of any size, to
 * measure with. */
#ifndef AVL_BENCH_SYNTHETIC_MODEL_H
#define AVL_BENCH_SYNTHETIC_MODEL_H

/* Widths of the decoder; MLPs are as LLaMA's (8/3) and CLIP's (4), heads 64 wide, picture 336 with
 * patches of 14. */
typedef struct avl_synthetic_model {
    int hidden_width, layer_count, kv_heads, vocab_rows;
    int vision_width, vision_layers;
} avl_synthetic_model_t;

/* Writes config.json, preprocessor_config.json and model.safetensors into `directory`. Ends the
 * program on an I/O failure. */
void avl_synthetic_model_write(const char *directory, const avl_synthetic_model_t *model);

#endif
