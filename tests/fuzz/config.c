/* tests/fuzz/config.c: any bytes as the files of a configuration. The first byte says which of
 * them; the others are minimal. What is accepted must keep the promises of checkpoint/config.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint/config.h"
#include "checkpoint/image_layout.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char *const names[] = {"config.json", "preprocessor_config.json",
                                    "generation_config.json", "processor_config.json"};
static const char *const minimal[] = {"{\"model_type\": \"llava_next\"}",
                                      "{\"size\": 336, \"crop_size\": 336}", "{}", "{}"};

/* One directory for the whole run; its files are written anew each time. */
static char scratch[64];

static void remove_directory(void) {
    char path[128];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", scratch, names[i]);
        remove(path);
    }
    remove(scratch);
}

static void write_file(const char *name, const void *text, size_t bytes) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", scratch, name);
    FILE *file = fopen(path, "wb");
    AVL_ASSERT(file != NULL);
    AVL_ASSERT(fwrite(text, 1, bytes, file) == bytes);
    AVL_ASSERT(fclose(file) == 0);
}

static void check(const avl_config_t *config) {
    const avl_text_config_t *text = &config->model.text;
    const avl_vision_config_t *vision = &config->model.vision;
    AVL_ASSERT(text->hidden_width > 0 && text->mlp_width > 0 && text->vocab_rows > 0);
    AVL_ASSERT(text->query_heads % text->kv_heads == 0 && text->head_width % 2 == 0);
    AVL_ASSERT(vision->hidden_width % vision->heads == 0);
    AVL_ASSERT(vision->patches_per_side * vision->patch_side == vision->image_side);
    AVL_ASSERT(config->generation.eos_count <= AVL_EOS_IDS_MAX);
    for (int i = 0; i < config->model.feature_layer_count; i++)
        AVL_ASSERT(config->model.feature_layers[i] >= 0 &&
                   config->model.feature_layers[i] <= vision->layer_count);
    static const int sides[][2] = {{1, 1}, {640, 480}, {1 << 24, 1}, {1, 1 << 24}, {99, 5000}};
    for (size_t i = 0; i < sizeof sides / sizeof sides[0]; i++) {
        avl_image_layout_t layout;
        AVL_ASSERT(avl_image_layout(config, sides[i][0], sides[i][1], &layout) == AVL_OK);
        AVL_ASSERT(layout.prompt_rows > 0 && layout.tile_count > 0);
        AVL_ASSERT(layout.crop_rows >= 0 && layout.crop_columns >= 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    size_t count = sizeof names / sizeof names[0];
    if (bytes < 1)
        return 0;
    if (scratch[0] == '\0') {
        strcpy(scratch, "/tmp/avl-fuzz-XXXXXX");
        AVL_ASSERT(mkdtemp(scratch) != NULL);
        atexit(remove_directory);
    }
    size_t chosen = data[0] % count;
    for (size_t i = 0; i < count; i++) {
        if (i == chosen)
            write_file(names[i], data + 1, bytes - 1);
        else
            write_file(names[i], minimal[i], strlen(minimal[i]));
    }
    avl_config_t config;
    if (avl_config_load(scratch, &config) == AVL_OK)
        check(&config);
    return 0;
}
