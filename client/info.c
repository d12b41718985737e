/* client/info.c: avl info: the model behind a service and what it accepts. */
#include <argp.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/status.h"
#include "client/client.h"
#include "client/rpc.h"
#include "proto/inference.pb-c.h"

#define INFO_TIMEOUT_NS (10 * AVL_NS_PER_S)

static const struct argp_option info_option_list[] = {
    {"server", 's', "ADDRESS", 0,
     "HOST:PORT or unix:PATH of the service (default: $AVL_SERVER, else " AVL_DEFAULT_SERVER ")",
     0},
    {0},
};

static error_t parse_option(int key, char *text, struct argp_state *state) {
    const char **server = state->input;
    if (key != 's')
        return ARGP_ERR_UNKNOWN;
    *server = text;
    return 0;
}

static const struct argp info_argp = {
    .options = info_option_list,
    .parser = parse_option,
    .doc = "Shows the model behind a service and what it accepts.",
};

static avl_status_t print_info(void *context, const uint8_t *bytes, size_t byte_count) {
    (void)context;
    Avl__V1__GetModelInfoResponse *info =
        avl__v1__get_model_info_response__unpack(NULL, byte_count, bytes);
    if (info == NULL)
        return avl_fail(AVL_ERR_INTERNAL,
                        "the server sent a message that is no GetModelInfoResponse");
    printf("model       %s (%s), avl %s\n", info->model, info->family, info->version);
    if (info->ready)
        printf("state       ready, loaded in %.2f s\n", info->load_seconds);
    else
        printf("state       loading, %.0f %%\n", 100 * info->loading_share);
    printf("runs on     %u rank%s, %s, %s\n", info->ranks, info->ranks == 1 ? "" : "s",
           info->device, info->dtype);
    printf("template    %s, image placeholder %s\n", info->chat_template, info->image_placeholder);
    printf("context     %u tokens; a square picture takes %u\n", info->context_tokens_max,
           info->visual_tokens_per_image);
    printf("limits      %u pictures of %" PRIu64 " pixels, %" PRIu64
           " bytes a request; %u decoded together\n",
           info->images_max, info->image_pixels_max, info->message_bytes_max, info->sequences_max);
    const Avl__V1__AttentionParameters *attention = info->attention_defaults;
    if (attention != NULL && attention->dense)
        printf("attention   dense\n");
    else if (attention != NULL)
        printf("attention   A-VL: store %g, compute %g, interval %u\n",
               attention->visual_store_ratio, attention->visual_compute_ratio,
               attention->visual_update_interval);
    avl__v1__get_model_info_response__free_unpacked(info, NULL);
    return AVL_OK;
}

int avl_command_info(int argc, char **argv) {
    const char *from_environment = getenv("AVL_SERVER");
    const char *server = from_environment != NULL ? from_environment : AVL_DEFAULT_SERVER;
    argp_err_exit_status = AVL_EXIT_USAGE;
    char name[] = "avl info";
    argv[0] = name;
    argp_parse(&info_argp, argc, argv, 0, NULL, &server);
    avl_rpc_t *rpc = NULL;
    avl_status_t status = avl_rpc_open(server, &rpc);
    if (status == AVL_OK)
        status = avl_rpc_call(rpc, "/avl.v1.Inference/GetModelInfo", NULL, 0, INFO_TIMEOUT_NS, NULL,
                              print_info, NULL);
    avl_rpc_close(rpc);
    if (status != AVL_OK) {
        fprintf(stderr, "avl info: %s: %s\n", avl_status_name(status), avl_status_detail());
        return AVL_EXIT_FAILED;
    }
    return 0;
}
