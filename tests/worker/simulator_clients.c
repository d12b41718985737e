#include "tests/worker/simulator_clients.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tests/worker/engine_double.h"

uint64_t simulator_seed, simulator_step, simulator_chance;

__attribute__((noreturn)) void simulator_give_up(const char *text) {
    fprintf(stderr, "simulator: seed %llu, step %llu: %s\n", (unsigned long long)simulator_seed,
            (unsigned long long)simulator_step, text);
    exit(1);
}

__attribute__((format(printf, 2, 3))) void simulator_expect(bool holds, const char *format, ...) {
    if (holds)
        return;
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    simulator_give_up(text);
}

uint64_t simulator_draw(void) {
    uint64_t value = simulator_chance += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ (value >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ (value >> 27)) * UINT64_C(0x94d049bb133111eb);
    return value ^ (value >> 31);
}

int32_t simulator_between(int32_t least, int32_t most) {
    return least + (int32_t)(simulator_draw() % (uint64_t)(most - least + 1));
}

bool simulator_one_in(int32_t count) {
    return simulator_between(1, count) == 1;
}

uint64_t simulator_told_by_prompt(const client_t *client) {
    uint64_t told = engine_double_start();
    int32_t visual = 0;
    for (int32_t i = 0; i < client->rows; i++) {
        told = engine_double_token(told, client->prompt[i]);
        if (client->prompt[i] >= 0)
            continue;
        const uint8_t *pixels = client->pixels[visual / PICTURE_ROWS];
        told ^= engine_double_feature(pixels, sizeof client->pixels[0], visual % PICTURE_ROWS);
        visual++;
    }
    return told;
}

/* Those that have not ended. */
static void add_choices(avl_request_t *request, const client_t *first) {
    request->replay_count = 0;
    request->choices = calloc((size_t)first->choice_count, sizeof *request->choices);
    simulator_expect(request->choices != NULL, "no memory");
    for (int32_t i = 0; i < first->choice_count; i++) {
        const client_t *client = first + i;
        if (client->ended)
            continue;
        size_t bytes = (size_t)client->token_count * sizeof(int32_t);
        avl_request_choice_t *choice = &request->choices[request->choice_count++];
        *choice = (avl_request_choice_t){i, client->sampling.seed, malloc(bytes + 1),
                                         client->token_count};
        simulator_expect(choice->replay_ids != NULL, "no memory");
        memcpy(choice->replay_ids, client->tokens, bytes);
    }
}

avl_request_t *simulator_make_request(const client_t *client) {
    avl_request_t *request = calloc(1, sizeof *request);
    simulator_expect(request != NULL, "no memory");
    size_t rows = (size_t)client->rows, pictures = (size_t)client->picture_count;
    size_t tokens = (size_t)client->token_count;
    request->id = client->id;
    request->token_ids = malloc((rows + 1) * sizeof(int32_t));
    request->images = calloc(pictures + 1, sizeof *request->images);
    request->replay_ids = malloc((tokens + 1) * sizeof(int32_t));
    request->stop_ids = malloc(sizeof client->stop_ids);
    simulator_expect(request->stop_ids != NULL, "no memory");
    memcpy(request->stop_ids, client->stop_ids, sizeof client->stop_ids);
    request->stop_count = client->stop_count;
    request->priority = client->priority;
    simulator_expect(request->token_ids != NULL && request->images != NULL &&
                         request->replay_ids != NULL,
                     "no memory");
    memcpy(request->token_ids, client->prompt, rows * sizeof(int32_t));
    memcpy(request->replay_ids, client->tokens, tokens * sizeof(int32_t));
    request->row_count = client->rows;
    request->tenant[0] = client->tenant ? 't' : '\0';
    request->replay_count = client->token_count;
    request->image_count = client->picture_count;
    for (int32_t i = 0; i < client->picture_count; i++) {
        avl_request_image_t *image = &request->images[i];
        image->layout = (avl_image_layout_t){.image_width = 5 + i,
                                             .image_height = 7,
                                             .tile_count = 1,
                                             .base_rows = PICTURE_ROWS,
                                             .prompt_rows = PICTURE_ROWS};
        image->digest = client->digests[i];
        image->first_row = client->picture_rows[i];
        image->pixel_bytes = sizeof client->pixels[i];
        image->pixels = malloc(image->pixel_bytes);
        simulator_expect(image->pixels != NULL, "no memory");
        memcpy(image->pixels, client->pixels[i], image->pixel_bytes);
    }
    if (client->choice_count > 1)
        add_choices(request, client);
    request->attention = client->attention;
    request->sampling = client->sampling;
    request->max_tokens = client->max_tokens;
    request->ignore_eos = client->ignore_eos;
    request->deadline_ns = client->deadline_ns;
    request->arrival_ns = client->arrival_ns;
    return request;
}

void simulator_make_prompt(client_t *client, int32_t context_rows) {
    int32_t rows = 0, capacity = context_rows + 4 * PICTURE_ROWS + 8;
    client->prompt = malloc((size_t)capacity * sizeof(int32_t));
    simulator_expect(client->prompt != NULL, "no memory");
    client->picture_count = simulator_one_in(2) ? simulator_between(1, 4) : 0;
    int32_t text = simulator_between(1, simulator_one_in(4) ? context_rows / 2 : 12);
    for (int32_t i = 0; i < client->picture_count; i++) {
        int32_t part = simulator_between(0, text);
        for (int32_t j = 0; j < part; j++)
            client->prompt[rows++] = simulator_between(0, VOCAB - 1);
        text -= part;
        if (rows + PICTURE_ROWS + text >= context_rows) {
            client->picture_count = i;
            break;
        }
        client->picture_rows[i] = rows;
        for (int32_t j = 0; j < PICTURE_ROWS; j++)
            client->prompt[rows++] = -1;
        /* Half of all pictures are a few that come again and again. */
        uint8_t name = simulator_one_in(2) ? (uint8_t)simulator_between(1, 6) : 0;
        for (size_t j = 0; j < sizeof client->pixels[i]; j++)
            client->pixels[i][j] = name != 0 ? (uint8_t)(name + j) : (uint8_t)simulator_draw();
        memset(&client->digests[i], name, sizeof client->digests[i]);
    }
    while (text-- > 0 || rows == 0)
        client->prompt[rows++] = simulator_between(0, VOCAB - 1);
    client->rows = rows;
}

/* A prompt that an earlier client had, or one that begins like it. */
void simulator_ask_again(client_t *client, const client_t *other) {
    if (other->hostile)
        return;
    int32_t *prompt = malloc(((size_t)other->rows + 1) * sizeof *prompt);
    simulator_expect(prompt != NULL, "no memory");
    memcpy(prompt, other->prompt, (size_t)other->rows * sizeof *prompt);
    free(client->prompt);
    client->prompt = prompt;
    client->rows = other->rows;
    client->picture_count = other->picture_count;
    memcpy(client->picture_rows, other->picture_rows, sizeof other->picture_rows);
    memcpy(client->pixels, other->pixels, sizeof other->pixels);
    memcpy(client->digests, other->digests, sizeof other->digests);
    if (simulator_one_in(2) && prompt[client->rows - 1] >= 0)
        prompt[client->rows - 1] = (prompt[client->rows - 1] + 1) % VOCAB;
}

void simulator_make_parameters(client_t *client) {
    static const avl_attention_params_t attentions[] = {
        AVL_ATTENTION(1, 1, 1), AVL_ATTENTION(.5, .3, 3), AVL_ATTENTION(.3, .1, 2),
        AVL_ATTENTION(.05, .02, 5), AVL_ATTENTION(1, .25, 4)};
    client->attention = attentions[simulator_between(0, 4)];
    if (simulator_one_in(4))
        client->attention.visual_selection = AVL_VISUAL_COVERAGE;
    client->sampling = (avl_sampling_params_t){.top_p = 1};
    if (simulator_one_in(2))
        client->sampling = (avl_sampling_params_t){.temperature = .5 + simulator_between(0, 3),
                                                   .top_p = simulator_one_in(2) ? 1 : .8,
                                                   .top_k = simulator_one_in(2) ? 0 : 5,
                                                   .seed = simulator_draw()};
    if (simulator_one_in(3)) {
        client->sampling.min_p = simulator_between(0, 9) * .1;
        client->sampling.repetition_penalty = simulator_between(2, 20) * .1;
        client->sampling.presence_penalty = simulator_between(-5, 5) * .1;
        client->sampling.frequency_penalty = simulator_between(-5, 5) * .1;
        client->sampling.min_tokens = simulator_between(0, 20);
        client->sampling.logprob_count = simulator_between(0, 4);
        client->stop_count = simulator_between(0, 3);
        for (int32_t i = 0; i < client->stop_count; i++)
            client->stop_ids[i] = simulator_between(0, VOCAB - 1);
    }
    if (simulator_one_in(3))
        client->priority = simulator_between(-2, 2);
    client->max_tokens = simulator_between(1, simulator_one_in(3) ? TOKENS_MAX : 12);
    client->ignore_eos = simulator_one_in(2);
}

void simulator_spoil(client_t *client, int64_t now_ns) {
    client->hostile = true;
    switch (simulator_between(0, 6)) {
    case 5:
        client->priority = AVL_PRIORITY_MOST + 1;
        break;
    case 6:
        client->stop_count = 1;
        client->stop_ids[0] = VOCAB;
        break;
    case 0:
        client->prompt[simulator_between(0, client->rows - 1)] = VOCAB;
        break;
    case 1:
        client->max_tokens = 0;
        break;
    case 2:
        client->sampling.top_p = 0;
        break;
    case 3:
        client->attention.visual_store_ratio = 2;
        break;
    case 4:
        client->deadline_ns = now_ns;
        break;
    }
}
