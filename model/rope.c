/* model/rope.c: frequencies as in modeling_rope_utils.py of transformers:
 * _compute_default_rope_parameters, _compute_linear_scaling_rope_parameters,
 * _compute_dynamic_ntk_parameters, _compute_llama3_parameters.
 *
 * Frequencies and angles are rounded to f32 where the reference rounds them: at position 4000 an
 * angle that was computed more exactly is off by 1e-4 and more.
 *
 * Dynamic scaling: once a sequence is longer than max_position_embeddings, each call takes the base
 * that its length asks for; keys in the cache keep the rotation they were made with. The reference
 * also keeps the longest length that the process has seen until a short sequence comes; that makes
 * one request's answer depend on another's, and is not repeated here. */
#include "model/rope.h"

#include <math.h>

static void default_frequencies(double base, int head_width, float *frequencies) {
    float base_f32 = (float)base;
    for (int j = 0; j < head_width / 2; j++) {
        float exponent = (float)(2 * j) / (float)head_width;
        frequencies[j] = 1.0f / (float)pow((double)base_f32, (double)exponent);
    }
}

static double dynamic_base(const avl_text_config_t *text, int32_t sequence_rows) {
    int32_t most = text->positions_max;
    if (sequence_rows <= most)
        return text->rope.theta;
    double factor = text->rope.factor, width = text->head_width;
    double stretch = factor * (double)sequence_rows / (double)most - (factor - 1.0);
    return text->rope.theta * pow(stretch, width / (width - 2.0));
}

/* Long waves are divided by the factor, short ones stay, those between are blended. */
static void llama3_frequencies(const avl_rope_config_t *rope, int half, float *frequencies) {
    double context = rope->original_max_position_embeddings;
    double wave_low = context / rope->low_freq_factor, wave_high = context / rope->high_freq_factor;
    for (int j = 0; j < half; j++) {
        double frequency = frequencies[j];
        double wave = 2.0 * M_PI / frequency;
        if (wave > wave_low) {
            frequencies[j] = (float)(frequency / rope->factor);
        } else if (wave >= wave_high) {
            double smooth = (context / wave - rope->low_freq_factor) /
                            (rope->high_freq_factor - rope->low_freq_factor);
            frequencies[j] =
                (float)((1.0 - smooth) * frequency / rope->factor + smooth * frequency);
        }
    }
}

static void set_frequencies(const avl_text_config_t *text, int32_t sequence_rows,
                            float *frequencies) {
    int half = text->head_width / 2;
    const avl_rope_config_t *rope = &text->rope;
    double base =
        rope->scaling == AVL_ROPE_DYNAMIC ? dynamic_base(text, sequence_rows) : rope->theta;
    default_frequencies(base, text->head_width, frequencies);
    if (rope->scaling == AVL_ROPE_LINEAR)
        for (int j = 0; j < half; j++)
            frequencies[j] /= (float)rope->factor;
    else if (rope->scaling == AVL_ROPE_LLAMA3)
        llama3_frequencies(rope, half, frequencies);
}

void avl_rope_tables(const avl_text_config_t *text, const int32_t *positions,
                     const int32_t *sequence_rows, int rows, float *frequencies, float *cosines,
                     float *sines) {
    int half = text->head_width / 2;
    int32_t length_set = -1;
    for (int row = 0; row < rows; row++) {
        int32_t length = sequence_rows ? sequence_rows[row] : positions[row] + 1;
        /* Only the dynamic kind depends on the length, and only beyond the trained one. */
        if (text->rope.scaling != AVL_ROPE_DYNAMIC || length < text->positions_max)
            length = text->positions_max;
        if (length != length_set) {
            set_frequencies(text, length, frequencies);
            length_set = length;
        }
        for (int j = 0; j < half; j++) {
            float angle = frequencies[j] * (float)positions[row];
            sincosf(angle, &sines[(int64_t)row * half + j], &cosines[(int64_t)row * half + j]);
        }
    }
}
