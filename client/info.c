/* client/info.c: avl info: the model behind a service and what it accepts. */
#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/status.h"
#include "client/attention_options.h"
#include "client/client.h"
#include "client/info.h"
#include "client/options.h"
#include "client/terminal.h"

#define INFO_TIMEOUT_NS (10 * AVL_NS_PER_S)

static error_t parse_option(int key, char *text, struct argp_state *state) {
    (void)text;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = state->input;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "takes no argument, but got \"%s\"", text);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_child info_children[] = {{&avl_server_argp, 0, NULL, 0}, {0}};

static const struct argp info_argp = {
    .parser = parse_option,
    .children = info_children,
    .doc = "Shows the model behind a service and what it accepts.",
};

static avl_status_t take_info(void *context, const uint8_t *bytes, size_t byte_count) {
    Avl__V1__GetModelInfoResponse **info_p = context;
    if (*info_p != NULL)
        return avl_fail(AVL_ERR_INTERNAL, "the server answered twice");
    *info_p = avl__v1__get_model_info_response__unpack(NULL, byte_count, bytes);
    if (*info_p == NULL)
        return avl_fail(AVL_ERR_INTERNAL,
                        "the server sent a message that is no GetModelInfoResponse");
    return AVL_OK;
}

avl_status_t avl_info_get(avl_rpc_t *rpc, Avl__V1__GetModelInfoResponse **info_p) {
    avl_rpc_request_t *request = NULL;
    AVL_TRY(avl_rpc_request_create(NULL, 0, &request));
    Avl__V1__GetModelInfoResponse *info = NULL;
    avl_status_t status = avl_rpc_call(rpc, "/avl.v1.Inference/GetModelInfo", request,
                                       INFO_TIMEOUT_NS, NULL, take_info, &info);
    avl_rpc_request_destroy(request);
    if (status == AVL_OK && info == NULL)
        status = avl_fail(AVL_ERR_INTERNAL, "the server sent no GetModelInfoResponse");
    if (status != AVL_OK) {
        if (info != NULL)
            avl__v1__get_model_info_response__free_unpacked(info, NULL);
        return status;
    }
    *info_p = info;
    return AVL_OK;
}

/* The service's texts go out through avl_terminal_write. */
static void print_texts(const char *label, const char *first, const char *between,
                        const char *second, const char *after) {
    printf("%-11s ", label);
    avl_terminal_write(stdout, first);
    fputs(between, stdout);
    avl_terminal_write(stdout, second);
    fputs(after, stdout);
}

static void print_info(const Avl__V1__GetModelInfoResponse *info) {
    print_texts("model", info->model, " (", info->family, "), avl ");
    avl_terminal_write(stdout, info->version);
    if (info->ready)
        printf("\nstate       ready, loaded in %.2f s\n", info->load_seconds);
    else
        printf("\nstate       loading, %.0f %%\n", 100 * info->loading_share);
    printf("ranks       %u\n", info->ranks);
    print_texts("runs on", info->device, ", ", info->dtype, "\n");
    print_texts("template", info->chat_template, ", image placeholder ", info->image_placeholder,
                "\n");
    printf("context     %u tokens; a square picture takes %u\n", info->context_tokens_max,
           info->visual_tokens_per_image);
    printf("limits      %u pictures of %" PRIu64 " pixels, %" PRIu64
           " bytes a request; %u decoded together\n",
           info->images_max, info->image_pixels_max, info->message_bytes_max, info->sequences_max);
    if (info->attention_defaults != NULL) {
        printf("attention   ");
        avl_attention_print(info->attention_defaults);
        putchar('\n');
    }
    for (size_t i = 0; i < info->n_attention_presets; i++) {
        const Avl__V1__AttentionPreset *preset = info->attention_presets[i];
        if (preset->parameters == NULL)
            continue;
        fputs(i == 0 ? "presets     " : "            ", stdout);
        avl_terminal_write(stdout, preset->name);
        fputs(": ", stdout);
        avl_attention_print(preset->parameters);
        putchar('\n');
    }
}

int avl_command_info(int argc, char **argv) {
    const char *server = NULL;
    argp_err_exit_status = AVL_EXIT_USAGE;
    char name[] = "avl info";
    argv[0] = name;
    argp_parse(&info_argp, argc, argv, 0, NULL, &server);
    avl_rpc_t *rpc = NULL;
    Avl__V1__GetModelInfoResponse *info = NULL;
    avl_status_t status = avl_rpc_open(server, 1, &rpc);
    if (status == AVL_OK)
        status = avl_info_get(rpc, &info);
    avl_rpc_close(rpc);
    if (status == AVL_OK) {
        print_info(info);
        avl__v1__get_model_info_response__free_unpacked(info, NULL);
        if (fflush(stdout) != 0 || ferror(stdout))
            status = avl_fail(AVL_ERR_IO, "standard output: %s", strerror(errno));
    }
    if (status != AVL_OK) {
        avl_terminal_report("avl info", status, avl_status_detail());
        return AVL_EXIT_FAILED;
    }
    return 0;
}
