#include "bench/synthetic_model.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"

#define HEAD_WIDTH 64
#define PICTURE_SIDE 336
#define PATCH_SIDE 14
#define PATCHES ((PICTURE_SIDE / PATCH_SIDE) * (PICTURE_SIDE / PATCH_SIDE))
#define CHUNK_VALUES 65536

typedef struct writer {
    FILE *header, *data;
    uint64_t offset;
    uint64_t random;
    uint16_t chunk[CHUNK_VALUES];
} writer_t;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static FILE *create(const char *directory, const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "wb");
    if (!file)
        die(path);
    return file;
}

/* Uniform in +-width^-1/2 around `centre`: activations keep their size from layer to layer. */
static void put(writer_t *writer, const char *name, const char *shape, int64_t count, float centre,
                int width) {
    float spread = 1.0f;
    while (spread * spread * (float)width > 1.0f)
        spread *= 0.5f;
    fprintf(writer->header,
            "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
            writer->offset ? "," : "", name, shape, (unsigned long long)writer->offset,
            (unsigned long long)(writer->offset + (uint64_t)count * 2));
    writer->offset += (uint64_t)count * 2;
    while (count > 0) {
        int64_t part = count < CHUNK_VALUES ? count : CHUNK_VALUES;
        for (int64_t index = 0; index < part; index++) {
            writer->random = writer->random * UINT64_C(6364136223846793005) + 1442695040888963407u;
            float unit = (float)(writer->random >> 40) * 0x1p-23f - 1.0f;
            writer->chunk[index] = avl_f32_to_bf16(centre + unit * spread);
        }
        if (fwrite(writer->chunk, 2, (size_t)part, writer->data) != (size_t)part)
            die("weights");
        count -= part;
    }
}

static void put_matrix(writer_t *writer, const char *name, int rows, int columns) {
    char shape[64];
    snprintf(shape, sizeof shape, "%d,%d", rows, columns);
    put(writer, name, shape, (int64_t)rows * columns, 0.0f, columns);
}

static void put_vector(writer_t *writer, const char *name, int count, float centre) {
    char shape[32];
    snprintf(shape, sizeof shape, "%d", count);
    put(writer, name, shape, count, centre, 4096);
}

/* "PREFIX.SUFFIX" in a static buffer. */
static const char *join(const char *prefix, const char *suffix) {
    static char name[256];
    snprintf(name, sizeof name, "%s%s", prefix, suffix);
    return name;
}

static void put_norm(writer_t *writer, const char *prefix, const char *suffix, int width) {
    char name[200];
    snprintf(name, sizeof name, "%s%s", prefix, suffix);
    put_vector(writer, join(name, ".weight"), width, 1.0f);
    put_vector(writer, join(name, ".bias"), width, 0.0f);
}

static void put_biased(writer_t *writer, const char *prefix, const char *suffix, int rows,
                       int columns) {
    char name[200];
    snprintf(name, sizeof name, "%s%s", prefix, suffix);
    put_matrix(writer, join(name, ".weight"), rows, columns);
    put_vector(writer, join(name, ".bias"), rows, 0.0f);
}

static int mlp_width(int hidden) {
    return (hidden * 8 / 3 + 63) / 64 * 64;
}

static void put_vision(writer_t *writer, const avl_synthetic_model_t *model) {
    const char *tower = "vision_tower.vision_model.";
    int width = model->vision_width;
    char shape[64];
    snprintf(shape, sizeof shape, "%d,3,%d,%d", width, PATCH_SIDE, PATCH_SIDE);
    put_vector(writer, join(tower, "embeddings.class_embedding"), width, 0.0f);
    put(writer, join(tower, "embeddings.patch_embedding.weight"), shape,
        (int64_t)width * 3 * PATCH_SIDE * PATCH_SIDE, 0.0f, 3 * PATCH_SIDE * PATCH_SIDE);
    put_matrix(writer, join(tower, "embeddings.position_embedding.weight"), PATCHES + 1, width);
    put_norm(writer, tower, "pre_layrnorm", width);
    for (int layer = 0; layer < model->vision_layers; layer++) {
        char prefix[128];
        snprintf(prefix, sizeof prefix, "%sencoder.layers.%d.", tower, layer);
        put_norm(writer, prefix, "layer_norm1", width);
        put_norm(writer, prefix, "layer_norm2", width);
        put_biased(writer, prefix, "self_attn.q_proj", width, width);
        put_biased(writer, prefix, "self_attn.k_proj", width, width);
        put_biased(writer, prefix, "self_attn.v_proj", width, width);
        put_biased(writer, prefix, "self_attn.out_proj", width, width);
        put_biased(writer, prefix, "mlp.fc1", 4 * width, width);
        put_biased(writer, prefix, "mlp.fc2", width, 4 * width);
    }
    put_biased(writer, "multi_modal_projector.", "linear_1", model->hidden_width, width);
    put_biased(writer, "multi_modal_projector.", "linear_2", model->hidden_width,
               model->hidden_width);
}

static void put_decoder(writer_t *writer, const avl_synthetic_model_t *model) {
    int hidden = model->hidden_width, mlp = mlp_width(hidden);
    int kv_width = model->kv_heads * HEAD_WIDTH;
    put_matrix(writer, "language_model.model.embed_tokens.weight", model->vocab_rows, hidden);
    for (int layer = 0; layer < model->layer_count; layer++) {
        char prefix[128];
        snprintf(prefix, sizeof prefix, "language_model.model.layers.%d.", layer);
        put_vector(writer, join(prefix, "input_layernorm.weight"), hidden, 1.0f);
        put_vector(writer, join(prefix, "post_attention_layernorm.weight"), hidden, 1.0f);
        put_matrix(writer, join(prefix, "self_attn.q_proj.weight"), hidden, hidden);
        put_matrix(writer, join(prefix, "self_attn.k_proj.weight"), kv_width, hidden);
        put_matrix(writer, join(prefix, "self_attn.v_proj.weight"), kv_width, hidden);
        put_matrix(writer, join(prefix, "self_attn.o_proj.weight"), hidden, hidden);
        put_matrix(writer, join(prefix, "mlp.gate_proj.weight"), mlp, hidden);
        put_matrix(writer, join(prefix, "mlp.up_proj.weight"), mlp, hidden);
        put_matrix(writer, join(prefix, "mlp.down_proj.weight"), hidden, mlp);
    }
    put_vector(writer, "language_model.model.norm.weight", hidden, 1.0f);
    put_matrix(writer, "language_model.lm_head.weight", model->vocab_rows, hidden);
}

static void write_configs(const char *directory, const avl_synthetic_model_t *model) {
    FILE *file = create(directory, "config.json");
    fprintf(file,
            "{\"model_type\":\"llava\",\"torch_dtype\":\"bfloat16\",\"image_token_index\":%d,"
            "\"vision_feature_layer\":-1,\"text_config\":{\"model_type\":\"llama\","
            "\"hidden_size\":%d,\"intermediate_size\":%d,\"num_hidden_layers\":%d,"
            "\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"vocab_size\":%d,"
            "\"max_position_embeddings\":8192},\"vision_config\":{\"model_type\":"
            "\"clip_vision_model\",\"hidden_size\":%d,\"intermediate_size\":%d,"
            "\"num_hidden_layers\":%d,\"num_attention_heads\":%d,\"image_size\":%d,"
            "\"patch_size\":%d}}\n",
            model->vocab_rows - 1, model->hidden_width, mlp_width(model->hidden_width),
            model->layer_count, model->hidden_width / HEAD_WIDTH, model->kv_heads,
            model->vocab_rows, model->vision_width, 4 * model->vision_width, model->vision_layers,
            model->vision_width / HEAD_WIDTH, PICTURE_SIDE, PATCH_SIDE);
    if (fclose(file) != 0)
        die("config.json");
    file = create(directory, "preprocessor_config.json");
    fprintf(file,
            "{\"image_processor_type\":\"CLIPImageProcessor\",\"size\":{\"shortest_edge\":%d},"
            "\"crop_size\":{\"height\":%d,\"width\":%d}}\n",
            PICTURE_SIDE, PICTURE_SIDE, PICTURE_SIDE);
    if (fclose(file) != 0)
        die("preprocessor_config.json");
}

static void append(FILE *target, FILE *source) {
    static char buffer[1 << 16];
    rewind(source);
    for (size_t count; (count = fread(buffer, 1, sizeof buffer, source)) > 0;)
        if (fwrite(buffer, 1, count, target) != count)
            die("weights");
}

void avl_synthetic_model_write(const char *directory, const avl_synthetic_model_t *model) {
    char *header = NULL;
    size_t header_bytes = 0;
    static writer_t writer;
    writer = (writer_t){.random = 1};
    writer.header = open_memstream(&header, &header_bytes);
    writer.data = tmpfile();
    if (!writer.header || !writer.data)
        die("weights");
    fputc('{', writer.header);
    put_vision(&writer, model);
    put_decoder(&writer, model);
    fputc('}', writer.header);
    fflush(writer.header);
    for (size_t pad = (8 - header_bytes % 8) % 8; pad > 0; pad--)
        fputc(' ', writer.header);
    fclose(writer.header);
    FILE *file = create(directory, "model.safetensors");
    uint64_t length = header_bytes;
    if (fwrite(&length, 8, 1, file) != 1 || fwrite(header, 1, header_bytes, file) != header_bytes)
        die("weights");
    append(file, writer.data);
    if (fclose(file) != 0)
        die("weights");
    fclose(writer.data);
    free(header);
    write_configs(directory, model);
}
