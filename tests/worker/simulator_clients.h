/* tests/worker/simulator_clients.h: who asks the scheduler for what in tests/worker/simulator.c:
 * chance, and requests made by it. */
#ifndef AVL_TESTS_WORKER_SIMULATOR_CLIENTS_H
#define AVL_TESTS_WORKER_SIMULATOR_CLIENTS_H

#include "worker/request.h"

#define REQUESTS_MAX 64
#define TOKENS_MAX 96
#define VOCAB 13
#define PAGES_MAX 8192
#define EOS 3
#define SIDE 2         /* of a picture's tile, pixels */
#define PICTURE_ROWS 9 /* of the prompt */

/* For reports: the run and its step. */
extern uint64_t simulator_seed, simulator_step;
extern uint64_t simulator_chance;

/* One answer. Several to one request are neighbours; the request has the name of the first. */
typedef struct client {
    uint64_t id;
    int32_t choice, choice_count; /* of that request; 1: alone */
    int32_t *prompt;
    int32_t rows, picture_count;
    bool tenant;
    int32_t picture_rows[4];
    uint8_t pixels[4][3 * SIDE * SIDE];
    avl_picture_digest_t digests[4];
    avl_attention_params_t attention;
    avl_sampling_params_t sampling;
    int32_t max_tokens, stop_count, stop_ids[3], priority;
    bool ignore_eos;
    int64_t deadline_ns, arrival_ns, due_ns;
    bool hostile;   /* must be refused */
    bool cancelled; /* the simulator asked for it */
    bool admitted, ended;
    uint64_t told;
    int32_t tokens[TOKENS_MAX];
    int32_t token_count;
    uint64_t token_step, end_step;
    int64_t submit_step, bound;
    int32_t reported; /* tokens at the end */
} client_t;

__attribute__((noreturn)) void simulator_give_up(const char *text);
__attribute__((format(printf, 2, 3))) void simulator_expect(bool holds, const char *format, ...);

uint64_t simulator_draw(void);
int32_t simulator_between(int32_t least, int32_t most);
bool simulator_one_in(int32_t count);

uint64_t simulator_told_by_prompt(const client_t *client);
/* `client` is the first of those that belong to one request; the others follow it. */
avl_request_t *simulator_make_request(const client_t *client);
void simulator_make_prompt(client_t *client, int32_t context_rows);
/* A prompt that an earlier client had, or one that begins like it. */
void simulator_ask_again(client_t *client, const client_t *other);
void simulator_make_parameters(client_t *client);
/* Makes it one that must be refused. */
void simulator_spoil(client_t *client, int64_t now_ns);

#endif
