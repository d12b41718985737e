/* checkpoint/config_generation.c: generation_config.json, with config.json's ids behind it.
 *
 * An id that generation_config.json omits is taken from config.json and then from its text part.
 * `transformers` does so only when the whole file is missing, and would never stop for a file
 * without eos_token_id; a service must. */
#include <limits.h>

#include "checkpoint/config_read.h"

/* One id or a list of them. */
static avl_status_t read_eos(const avl_json_node_t *node, avl_generation_config_t *config) {
    int64_t id = 0;
    if (!json_is_array(node->value)) {
        AVL_TRY(avl_json_int(node, 0, INT_MAX, &id));
        config->eos_ids[0] = (int)id;
        config->eos_count = 1;
        return AVL_OK;
    }
    size_t count = avl_json_count(node);
    if (count < 1 || count > AVL_EOS_IDS_MAX) {
        return avl_json_fail(node, AVL_ERR_DATA, "%zu ids; between 1 and %d are possible", count,
                             AVL_EOS_IDS_MAX);
    }
    for (size_t i = 0; i < count; i++) {
        avl_json_node_t element = avl_json_element(node, i);
        AVL_TRY(avl_json_int(&element, 0, INT_MAX, &id));
        config->eos_ids[i] = (int)id;
    }
    config->eos_count = (int)count;
    return AVL_OK;
}

static avl_status_t read_sampling(const avl_json_node_t *generation,
                                  avl_generation_config_t *config) {
    double temperature = 1.0;
    double top_p = 1.0;
    AVL_TRY(avl_json_get_bool(generation, "do_sample", false, &config->sample));
    AVL_TRY(avl_json_get_double(generation, "temperature", 0.0, 1e6, 1.0, &temperature));
    AVL_TRY(avl_json_get_double(generation, "top_p", 0.0, 1.0, 1.0, &top_p));
    AVL_TRY(avl_json_get_int(generation, "top_k", 0, INT_MAX, 50, &config->top_k));
    config->temperature = (float)temperature;
    config->top_p = (float)top_p;
    return AVL_OK;
}

avl_status_t avl_config_read_generation(const avl_json_node_t *generation,
                                        const avl_json_node_t *root,
                                        avl_generation_config_t *generation_p) {
    avl_generation_config_t config = {
        .bos_id = -1, .pad_id = -1, .temperature = 1.0f, .top_p = 1.0f, .top_k = 50};
    if (generation != NULL) {
        AVL_TRY(avl_json_expect_object(generation));
        AVL_TRY(read_sampling(generation, &config));
    }
    avl_json_node_t text = avl_json_member(root, "text_config");
    const avl_json_node_t *places[] = {generation, root, &text};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        if (places[i] == NULL)
            continue;
        avl_json_node_t eos = avl_json_member(places[i], "eos_token_id");
        if (config.eos_count == 0 && avl_json_present(&eos))
            AVL_TRY(read_eos(&eos, &config));
        if (config.bos_id < 0) {
            AVL_TRY(avl_json_get_int(places[i], "bos_token_id", -1, INT_MAX, -1, &config.bos_id));
        }
        if (config.pad_id < 0) {
            /* -1 stands for "none" in old LLaMA files. */
            AVL_TRY(avl_json_get_int(places[i], "pad_token_id", -1, INT_MAX, -1, &config.pad_id));
        }
    }
    /* What LlamaConfig and MistralConfig say without a key; a null there means that there is none.
     */
    avl_json_node_t eos = avl_json_member(&text, "eos_token_id");
    if (config.eos_count == 0 && !avl_json_is_null(&eos)) {
        config.eos_ids[0] = 2;
        config.eos_count = 1;
    }
    avl_json_node_t bos = avl_json_member(&text, "bos_token_id");
    if (config.bos_id < 0 && !avl_json_is_null(&bos))
        config.bos_id = 1;
    *generation_p = config;
    return AVL_OK;
}
