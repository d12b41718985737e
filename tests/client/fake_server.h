/* tests/client/fake_server.h: a service that behaves as a test wishes, well or badly. It runs on a
 * thread of its own and fails the program (abort) only when gRPC itself does. */
#ifndef AVL_TESTS_CLIENT_FAKE_SERVER_H
#define AVL_TESTS_CLIENT_FAKE_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/inference.pb-c.h"

typedef enum fake_ending {
    FAKE_FINISHED,      /* as a service should */
    FAKE_FINISHED_BARE, /* `finished` without any of its parts */
    FAKE_FINISHED_NAN,  /* numbers that JSON has no place for */
    FAKE_FINISHED_TWICE,
    FAKE_UNFINISHED, /* status OK without `finished` */
    FAKE_STATUS,     /* the status of the behaviour */
    FAKE_GARBAGE,    /* a message that is no protobuf */
    FAKE_HUGE,       /* a message beyond what a client may accept */
    FAKE_STALL,      /* nothing more, for ever */
    FAKE_ENDLESS,    /* text without end */
} fake_ending_t;

typedef struct fake_behaviour {
    int tokens;       /* of each answer */
    const char *text; /* of each token; NULL: "w " */
    int first_delay_ms, token_delay_ms;
    bool progress; /* of every stage, before the first token, when asked for */
    fake_ending_t ending;
    int status; /* a gRPC status code */
    const char *status_text;
    int refuse_every; /* every n-th request gets RESOURCE_EXHAUSTED at once; 0: none */
    bool bare_info;   /* GetModelInfo answers with status OK and no message */
    bool one_more;    /* than the tokens that were forced */
    /* As the service does it: a prefill filter is told in the report, and INVALID beside a request
     * to measure mass; the preset "no-such" is INVALID. */
    bool checks_attention;
    int invalid_at; /* the n-th request is INVALID; 0: none */
    bool dense, logprobs, filters,
        measure_mass; /* of the request: set by the server. Token n is token n always */
} fake_behaviour_t;

typedef struct fake_counts {
    int requests;      /* of Generate */
    int cancelled;     /* given up by the client, or past their deadline */
    int with_deadline; /* requests that had one */
    int together_most; /* under way at once */
    int connections;   /* that requests came over */
} fake_counts_t;

typedef struct fake_server fake_server_t;

/* Listens on a free port of 127.0.0.1. */
fake_server_t *fake_server_start(void);
void fake_server_stop(fake_server_t *server);
const char *fake_server_address(const fake_server_t *server);
/* For requests from now on; the texts are borrowed. Counts begin at zero. */
void fake_server_behave(fake_server_t *server, const fake_behaviour_t *behaviour);
fake_counts_t fake_server_counts(fake_server_t *server);
/* The last GenerateRequest, which the caller frees; NULL when there was none. */
Avl__V1__GenerateRequest *fake_server_take_request(fake_server_t *server);

#endif
