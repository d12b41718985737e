#include "coordinator/api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "checkpoint/image_layout.h"
#include "coordinator/attention.h"
#include "coordinator/door.h"
#include "coordinator/wire.h"
#include "inputs/image.h"
#include "inputs/preprocess.h"

/* Work for the pool: it owns the payload and one reference, of the request (Generate) or of the
 * call. */
typedef struct job {
    avl_api_t *api;
    avl_payload_t *payload;
    avl_live_request_t *live;
    avl_call_t *call;
} job_t;

static avl_status_t unpack(avl_payload_t *payload, const ProtobufCMessageDescriptor *descriptor,
                           ProtobufCMessage **message_p) {
    const uint8_t *bytes = NULL;
    size_t byte_count = 0;
    if (payload == NULL)
        return avl_fail(AVL_ERR_INVALID, "the call carries no %s", descriptor->short_name);
    AVL_TRY(avl_payload_read(payload, &bytes, &byte_count));
    return avl_wire_unpack(descriptor, bytes, byte_count, message_p);
}

/* ---- Generate ---- */

/* One picture, from file bytes to pixels. */
static avl_status_t prepare_image(const avl_api_t *api, const char *tenant,
                                  const Avl__V1__Image *file, size_t number, int64_t *pixels_left,
                                  avl_prepared_image_t *image_p) {
    avl_image_t image;
    int64_t request_max = api->policy.request_pixels_max;
    bool less = *pixels_left < api->image_pixels_max;
    avl_status_t status = avl_image_decode(file->data.data, file->data.len,
                                           less ? *pixels_left : api->image_pixels_max, &image);
    if (status == AVL_ERR_TOO_LARGE && less)
        return avl_fail(status, "image %zu: the images of a request may have %lld pixels together",
                        number, (long long)request_max);
    if (status != AVL_OK)
        return avl_fail_in(status, "image %zu", number);
    *pixels_left -= (int64_t)image.width * image.height;
    avl_pixels_t pixels;
    status = avl_image_identity_digest(api->identity, tenant, &image, image_p->digest);
    if (status == AVL_OK)
        status = avl_preprocess(api->config, &image, &pixels);
    avl_image_free(&image);
    if (status != AVL_OK)
        return avl_fail_in(status, "image %zu", number);
    image_p->layout = pixels.layout;
    image_p->pixels = pixels.bytes; /* malloc'ed: it changes hands */
    image_p->pixel_bytes = pixels.byte_count;
    return AVL_OK;
}

static avl_status_t prepare_images(const avl_api_t *api, avl_live_request_t *live,
                                   const avl_conversation_t *conversation,
                                   avl_prepared_t *prepared) {
    AVL_TRY(avl_alloc(conversation->image_count, sizeof *prepared->images, "pictures",
                      &prepared->images));
    int64_t begin_ns = avl_clock_now_ns(), pixels_left = api->policy.request_pixels_max;
    for (size_t i = 0; i < conversation->image_count; i++) {
        if (!avl_live_request_wanted(live))
            return avl_fail(AVL_ERR_CANCELLED, "the request has ended");
        avl_live_request_progress(live, AVL__V1__STAGE__STAGE_PREPROCESS, (uint32_t)i,
                                  (uint32_t)conversation->image_count);
        AVL_TRY(prepare_image(api, prepared->tenant, conversation->images[i], i + 1, &pixels_left,
                              &prepared->images[i]));
        prepared->image_count++;
    }
    prepared->preprocess_ns = avl_clock_now_ns() - begin_ns;
    return AVL_OK;
}

/* Rows that a prompt may have: the group's context once it is known, the model's before. */
static int32_t context_rows(const avl_api_t *api) {
    avl_groups_view_t view;
    avl_groups_view(api->groups, &view);
    return view.best.ever_ready ? view.best.context_rows_max
                                : api->config->model.text.positions_max;
}

static int32_t prompt_rows_max(const avl_api_t *api) {
    int32_t context = context_rows(api), most = api->policy.prompt_tokens_max;
    return most > 0 && most < context ? most : context;
}

static avl_status_t prepare_prompt(const avl_api_t *api, const char *text,
                                   avl_prepared_t *prepared) {
    avl_image_layout_t *layouts = NULL;
    AVL_TRY(avl_alloc(prepared->image_count, sizeof *layouts, "layouts", &layouts));
    for (size_t i = 0; i < prepared->image_count; i++)
        layouts[i] = prepared->images[i].layout;
    avl_prompt_t prompt;
    avl_status_t status = avl_prompt_build(api->tokenizer, api->config, text, layouts,
                                           prepared->image_count, prompt_rows_max(api), &prompt);
    free(layouts);
    AVL_TRY(status);
    for (int32_t i = 0; i < prompt.image_count; i++) {
        const avl_image_span_t *span = &prompt.images[i];
        prepared->images[i].first_row = span->start;
        prepared->visual_rows += span->rows;
        for (int32_t row = 0; row < span->rows; row++)
            prompt.token_ids[span->start + row] = -1;
    }
    prepared->token_ids = prompt.token_ids;
    prepared->row_count = prompt.row_count;
    prompt.token_ids = NULL;
    avl_prompt_free(&prompt);
    return AVL_OK;
}

static avl_status_t prepare_input(const avl_api_t *api, avl_live_request_t *live,
                                  const Avl__V1__GenerateRequest *request,
                                  avl_prepared_t *prepared) {
    bool raw = request->input_case == AVL__V1__GENERATE_REQUEST__INPUT_RAW_PROMPT;
    int images_max = api->policy.images_max;
    avl_conversation_t conversation;
    AVL_TRY(raw ? avl_raw_prompt_read(request->raw_prompt, images_max, &conversation)
                : avl_conversation_read(request->conversation, images_max, &conversation));
    /* The text first: what is wrong with it is cheaper to find than pictures are to decode. */
    char *rendered = NULL;
    avl_status_t status = AVL_OK;
    if (!raw)
        status = avl_chat_template_render(api->chat_template, conversation.messages,
                                          conversation.message_count, &rendered);
    if (status == AVL_OK)
        status = prepare_images(api, live, &conversation, prepared);
    if (status == AVL_OK)
        status = prepare_prompt(api, raw ? request->raw_prompt->text : rendered, prepared);
    free(rendered);
    avl_conversation_free(&conversation);
    return status;
}

/* The tokens that the answer consists of, if the client says so. */
static avl_status_t prepare_forced(const avl_api_t *api, const Avl__V1__GenerateRequest *request,
                                   avl_prepared_t *prepared) {
    int32_t tokens = avl_tokenizer_id_limit(api->tokenizer);
    int32_t rows = api->config->model.text.vocab_rows, most = api->policy.answer_tokens_max;
    int32_t context = context_rows(api);
    AVL_TRY(avl_forced_read(request, tokens < rows ? tokens : rows,
                            most > 0 && most < context ? most : context, &prepared->forced_ids,
                            &prepared->forced_count));
    if (prepared->forced_count > 0)
        prepared->max_tokens = prepared->forced_count;
    return AVL_OK;
}

static avl_status_t prepare(const avl_api_t *api, avl_live_request_t *live,
                            const Avl__V1__GenerateRequest *request, avl_prepared_t *prepared) {
    AVL_TRY(avl_generate_check(request));
    snprintf(prepared->name, sizeof prepared->name, "%s", request->request_id);
    snprintf(prepared->tenant, sizeof prepared->tenant, "%s", avl_live_request_tenant(live));
    avl_live_request_named(live, prepared->name);
    AVL_TRY(avl_sampling_read(request->sampling, api->policy.generation, &prepared->sampling));
    int32_t choices = 1;
    const Avl__V1__SamplingParameters *sampling = request->sampling;
    AVL_TRY(avl_choice_count_read(request, api->policy.choices_max, &choices));
    AVL_TRY(avl_choices_create(api->tokenizer, sampling != NULL ? sampling->stop : NULL,
                               sampling != NULL ? sampling->n_stop : 0, prepared->sampling.seed,
                               choices, &prepared->choices));
    prepared->choice_count = choices;
    AVL_TRY(avl_attention_read(request->attention, &api->policy.attention, prepared->sampling.seed,
                               &prepared->attention));
    prepared->max_tokens = (int32_t)request->max_tokens;
    int32_t most = api->policy.answer_tokens_max;
    if (most > 0 && (prepared->max_tokens == 0 || prepared->max_tokens > most))
        prepared->max_tokens = most;
    AVL_TRY(prepare_forced(api, request, prepared));
    prepared->priority = request->priority;
    prepared->ignore_eos = request->ignore_eos;
    if (request->progress)
        avl_live_request_want_progress(live);
    return prepare_input(api, live, request, prepared);
}

static void job_free(job_t *job) {
    avl_payload_free(job->payload);
    avl_live_request_unref(job->live);
    if (job->call != NULL)
        avl_call_unref(job->call);
    free(job);
}

static void generate(void *argument, avl_job_end_t end) {
    job_t *job = argument;
    if (end == AVL_JOB_CANCEL) {
        avl_live_request_fail(job->live, AVL_ERR_UNAVAILABLE, "the service is shutting down");
        job_free(job);
        return;
    }
    ProtobufCMessage *message = NULL;
    avl_prepared_t prepared;
    memset(&prepared, 0, sizeof prepared);
    avl_status_t status = AVL_OK;
    if (!avl_live_request_wanted(job->live))
        status = avl_fail(AVL_ERR_CANCELLED, "the request has ended");
    else
        status = unpack(job->payload, &avl__v1__generate_request__descriptor, &message);
    avl_payload_free(job->payload);
    job->payload = NULL;
    if (status == AVL_OK)
        status = prepare(job->api, job->live, (Avl__V1__GenerateRequest *)message, &prepared);
    if (message != NULL)
        protobuf_c_message_free_unpacked(message, NULL);
    if (status == AVL_OK) {
        avl_live_request_begin(job->live, &prepared);
    } else {
        avl_live_request_fail(job->live, status, avl_status_detail());
        avl_prepared_free(&prepared);
    }
    job_free(job);
}

static void look_at_portion(void *context, const uint8_t *bytes, size_t byte_count) {
    avl_door_read(context, bytes, byte_count);
}

/* What the call says of itself, before it may cost anything. */
static avl_asked_t look_at(const avl_api_t *api, avl_payload_t *payload) {
    avl_door_t door;
    memset(&door, 0, sizeof door);
    if (payload != NULL)
        avl_payload_peek(payload, look_at_portion, &door);
    return avl_door_asked(&door, api->policy.choices_max, api->policy.answer_tokens_max);
}

static void on_generate(void *context, avl_call_t *call, avl_payload_t *payload) {
    avl_api_t *api = context;
    job_t *job = NULL;
    avl_live_request_t *live = NULL;
    char tenant[AVL_TENANT_BYTES_MAX + 1];
    avl_status_t status = avl_call_metadata(call, AVL_TENANT_METADATA, tenant, sizeof tenant);
    const avl_asked_t asked = look_at(api, payload);
    if (status == AVL_OK)
        status = avl_requests_admit(api->requests, call, tenant, &asked, &live);
    if (status != AVL_OK) {
        if (status == AVL_ERR_EXHAUSTED)
            avl_call_set_retry(call, avl_requests_retry_ns(api->requests));
        avl_service_metrics_failed(api->metrics, avl_rpc_code(status));
        avl_call_finish(call, avl_rpc_code(status), avl_status_detail());
        avl_payload_free(payload);
        return;
    }
    status = avl_alloc(1, sizeof *job, "a job", &job);
    if (status == AVL_OK) {
        *job = (job_t){api, payload, live, NULL};
        status = avl_thread_pool_submit(api->pool, generate, job);
    }
    if (status != AVL_OK) {
        avl_live_request_fail(live, status, avl_status_detail());
        avl_live_request_unref(live);
        avl_payload_free(payload);
        free(job);
    }
}

static void on_generate_closed(void *context, avl_call_t *call, bool cancelled) {
    (void)context;
    (void)cancelled; /* a request that has ended does not mind */
    avl_live_request_t *live = avl_call_user(call);
    if (live != NULL) {
        avl_call_set_user(call, NULL);
        avl_live_request_closed(live);
    }
}

/* ---- Tokenize ---- */

static size_t count_placeholders(const char *text, const char *placeholder) {
    size_t count = 0;
    if (placeholder == NULL || placeholder[0] == '\0')
        return 0;
    for (const char *at = text; (at = strstr(at, placeholder)) != NULL; at += strlen(placeholder))
        count++;
    return count;
}

/* The prompt as Generate would see it, every picture being one row. */
static avl_status_t tokenize_text(const avl_api_t *api, const char *text, size_t image_count,
                                  avl_prompt_t *prompt_p) {
    avl_image_layout_t *layouts = NULL;
    AVL_TRY(avl_alloc(image_count, sizeof *layouts, "layouts", &layouts));
    for (size_t i = 0; i < image_count; i++)
        layouts[i] = (avl_image_layout_t){.image_width = 1, .image_height = 1, .prompt_rows = 1};
    avl_status_t status = avl_prompt_build(api->tokenizer, api->config, text, layouts, image_count,
                                           INT32_MAX, prompt_p);
    free(layouts);
    return status;
}

static avl_status_t tokenize_request(const avl_api_t *api, const Avl__V1__TokenizeRequest *request,
                                     avl_prompt_t *prompt_p) {
    if (request->input_case == AVL__V1__TOKENIZE_REQUEST__INPUT_TEXT) {
        const char *placeholder =
            avl_tokenizer_token(api->tokenizer, api->config->model.image_token_id);
        return tokenize_text(api, request->text, count_placeholders(request->text, placeholder),
                             prompt_p);
    }
    if (request->input_case != AVL__V1__TOKENIZE_REQUEST__INPUT_CONVERSATION)
        return avl_fail(AVL_ERR_INVALID, "the request has no input: give conversation or text");
    avl_conversation_t conversation;
    AVL_TRY(avl_conversation_read(request->conversation, api->policy.images_max, &conversation));
    char *text = NULL;
    avl_status_t status = avl_chat_template_render(api->chat_template, conversation.messages,
                                                   conversation.message_count, &text);
    if (status == AVL_OK)
        status = tokenize_text(api, text, conversation.image_count, prompt_p);
    free(text);
    avl_conversation_free(&conversation);
    return status;
}

static void tokenize(void *argument, avl_job_end_t end) {
    job_t *job = argument;
    if (end == AVL_JOB_CANCEL) {
        avl_call_finish(job->call, AVL_RPC_UNAVAILABLE, "the service is shutting down");
        job_free(job);
        return;
    }
    ProtobufCMessage *message = NULL;
    avl_prompt_t prompt;
    avl_status_t status = unpack(job->payload, &avl__v1__tokenize_request__descriptor, &message);
    if (status == AVL_OK)
        status = tokenize_request(job->api, (Avl__V1__TokenizeRequest *)message, &prompt);
    if (message != NULL)
        protobuf_c_message_free_unpacked(message, NULL);
    if (status == AVL_OK) {
        Avl__V1__TokenizeResponse response;
        avl__v1__tokenize_response__init(&response);
        response.n_token_ids = (size_t)prompt.row_count;
        response.token_ids = prompt.token_ids;
        status = avl_call_send(job->call, &response.base);
        avl_prompt_free(&prompt);
    }
    avl_call_finish(job->call, avl_rpc_code(status), status == AVL_OK ? "" : avl_status_detail());
    job_free(job);
}

static void on_tokenize(void *context, avl_call_t *call, avl_payload_t *payload) {
    avl_api_t *api = context;
    job_t *job = NULL;
    avl_status_t status = avl_alloc(1, sizeof *job, "a job", &job);
    if (status == AVL_OK) {
        avl_call_ref(call);
        *job = (job_t){api, payload, NULL, call};
        status = avl_thread_pool_submit(api->pool, tokenize, job);
    }
    if (status != AVL_OK) {
        avl_call_finish(call, avl_rpc_code(status), avl_status_detail());
        if (job != NULL)
            job_free(job);
        else
            avl_payload_free(payload);
    }
}

/* ---- GetModelInfo ---- */

static char *shared(const char *text) {
    union {
        const char *constant;
        char *variable;
    } pointer = {.constant = text != NULL ? text : ""}; /* packing only reads it */
    return pointer.variable;
}

#define PRESETS_MAX 16

typedef struct preset_message {
    Avl__V1__AttentionParameters parameters;
    Avl__V1__AttentionPreset preset;
} preset_message_t;

static void fill_presets(preset_message_t *messages, Avl__V1__AttentionPreset **list) {
    AVL_ASSERT(avl_attention_preset_count <= PRESETS_MAX);
    for (size_t i = 0; i < avl_attention_preset_count; i++) {
        preset_message_t *message = &messages[i];
        avl_attention_write(&avl_attention_presets[i].params, &message->parameters);
        avl__v1__attention_preset__init(&message->preset);
        message->preset.name = shared(avl_attention_presets[i].name);
        message->preset.parameters = &message->parameters;
        list[i] = &message->preset;
    }
}

static void on_info(void *context, avl_call_t *call, avl_payload_t *payload) {
    avl_api_t *api = context;
    avl_payload_free(payload); /* the request has no fields */
    avl_groups_view_t groups;
    avl_groups_view(api->groups, &groups);
    avl_worker_group_view_t view = groups.best;
    Avl__V1__AttentionParameters attention;
    avl_attention_write(&api->policy.attention, &attention);
    Avl__V1__GetModelInfoResponse info;
    avl__v1__get_model_info_response__init(&info);
    info.model = shared(api->model_name);
    info.family = shared(api->config->model.family == AVL_FAMILY_LLAVA ? "llava" : "llava_next");
    info.version = shared(AVL_VERSION);
    info.ready = view.state == AVL_WORKER_GROUP_READY;
    info.loading_share = view.loading_share;
    info.context_tokens_max = (uint32_t)context_rows(api);
    avl_image_layout_t layout;
    int side = api->config->model.vision.image_side;
    if (avl_image_layout(api->config, side, side, &layout) == AVL_OK)
        info.visual_tokens_per_image = (uint32_t)layout.prompt_rows;
    info.image_placeholder =
        shared(avl_tokenizer_token(api->tokenizer, api->config->model.image_token_id));
    info.chat_template = shared(avl_chat_template_name(api->chat_template));
    info.ranks = (uint32_t)view.ranks;
    info.device = view.device;
    info.dtype = view.dtype;
    info.sequences_max = (uint32_t)(groups.ready > 0 ? groups.sequences_max : view.sequences_max);
    info.message_bytes_max = (uint64_t)api->message_bytes_max;
    info.image_pixels_max = (uint64_t)api->image_pixels_max;
    info.images_max = (uint32_t)api->policy.images_max;
    info.choices_max = (uint32_t)api->policy.choices_max;
    info.attention_defaults = &attention;
    info.load_seconds = (double)view.load_ns / 1e9;
    preset_message_t presets[PRESETS_MAX];
    Avl__V1__AttentionPreset *list[PRESETS_MAX];
    fill_presets(presets, list);
    info.n_attention_presets = avl_attention_preset_count;
    info.attention_presets = list;
    avl_status_t status = avl_call_send(call, &info.base);
    avl_call_finish(call, avl_rpc_code(status), status == AVL_OK ? "" : avl_status_detail());
}

void avl_api_methods(avl_api_t *api, avl_method_t methods[AVL_API_METHODS]) {
    methods[0] = (avl_method_t){.path = "/avl.v1.Inference/Generate",
                                .context = api,
                                .begin = on_generate,
                                .close = on_generate_closed};
    methods[1] =
        (avl_method_t){.path = "/avl.v1.Inference/Tokenize", .context = api, .begin = on_tokenize};
    methods[2] =
        (avl_method_t){.path = "/avl.v1.Inference/GetModelInfo", .context = api, .begin = on_info};
}
