/* A worker without a model: speaks the link protocol, answers with tokens that are a function of
 * (seed, index), and misbehaves as AVL_FAKE says: no-attach     never calls wrong-token   calls
 * with another secret fail          says that loading failed        exit          leaves at once
 *   unknown       also reports requests that nobody sent
 *   bad-token     sends a token id that is none   too-many      sends more tokens than asked for
 *   die-at=N      kills itself before token N of any request, once per flag file AVL_FAKE_FLAG
 *   stuck-at=N    stops its step loop there, once per flag file
 *   poison        kills itself whenever a request has seed 666
 *   slow-load=MS  takes so long to load
 * AVL_FAKE_TOKENS: tokens of an answer (default 20); AVL_FAKE_STEP_MS: between steps (default 2);
 * AVL_FAKE_FINGERPRINT, AVL_FAKE_DTYPE: of the model that it claims to serve;
 * AVL_FAKE_SEQUENCES: requests that it claims to decode side by side (default 16);
 * AVL_FAKE_PICTURE_BYTES: of prepared pictures that it claims to have room for (default 2^30).
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "worker/link.h"

#define LIVE_MAX 64

typedef struct answer {
    avl_request_t *request; /* NULL: free */
    int32_t next;
} answer_t;

static const char *mode = "";
static answer_t answers[LIVE_MAX];
static int tokens_per_answer = 20;

static bool mode_is(const char *name, long *value_p) {
    size_t length = strlen(name);
    if (strncmp(mode, name, length) != 0 || (mode[length] != '\0' && mode[length] != '='))
        return false;
    if (value_p != NULL && mode[length] == '=')
        *value_p = strtol(mode + length + 1, NULL, 10);
    return true;
}

/* True the first time in the flag file's life. */
static bool first_time(void) {
    const char *flag = getenv("AVL_FAKE_FLAG");
    int fd = flag != NULL ? open(flag, O_CREAT | O_EXCL | O_WRONLY, 0600) : -1;
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static int32_t token_of(uint64_t seed, int32_t index) {
    uint64_t x = seed * 0x9e3779b97f4a7c15u + (uint64_t)index * 0xbf58476d1ce4e5b9u;
    x ^= x >> 31;
    return 300 + (int32_t)(x % 400);
}

static void finish(avl_link_t *link, answer_t *answer, avl_finish_reason_t reason) {
    avl_event_t event;
    memset(&event, 0, sizeof event);
    event.kind = AVL_EVENT_FINISHED;
    event.request_id = answer->request->id;
    event.finish_reason = reason;
    event.completion_tokens = answer->next;
    event.attention.visual_rows_seen = answer->request->row_count;
    event.attention.decode_steps = 1;
    avl_link_send(link, &event);
    avl_request_destroy(answer->request);
    answer->request = NULL;
}

static void misbehave(avl_link_t *link, const answer_t *answer) {
    long at = -1;
    if ((mode_is("die-at", &at) && answer->next == at && first_time()) ||
        (mode_is("poison", NULL) && answer->request->sampling.seed == 666))
        kill(getpid(), SIGKILL);
    if (mode_is("stuck-at", &at) && answer->next == at && first_time())
        avl_clock_sleep_ns(3600 * AVL_NS_PER_S);
    if (mode_is("unknown", NULL)) {
        avl_event_t event;
        memset(&event, 0, sizeof event);
        event.kind = AVL_EVENT_TOKEN;
        event.request_id = 1000000 + answer->request->id;
        event.token_id = 301;
        avl_link_send(link, &event);
    }
}

static void step(avl_link_t *link, answer_t *answer) {
    const avl_request_t *request = answer->request;
    misbehave(link, answer);
    bool too_many = mode_is("too-many", NULL);
    if (answer->next >= request->max_tokens && !too_many) {
        finish(link, answer, AVL_FINISH_LENGTH);
        return;
    }
    if (answer->next >= tokens_per_answer && !too_many) {
        finish(link, answer, AVL_FINISH_STOP);
        return;
    }
    avl_event_t event;
    memset(&event, 0, sizeof event);
    event.kind = AVL_EVENT_TOKEN;
    event.request_id = request->id;
    event.token_id =
        mode_is("bad-token", NULL) ? 1 << 30 : token_of(request->sampling.seed, answer->next);
    answer->next++;
    avl_link_send(link, &event);
}

/* A real worker's state depends on the replayed tokens; here it is enough that they are the right
 * ones. */
static bool replay_is_right(const avl_request_t *request) {
    for (int32_t i = 0; i < request->replay_count; i++)
        if (request->replay_ids[i] != token_of(request->sampling.seed, i))
            return false;
    return true;
}

static void take(avl_link_t *link, avl_request_t *request) {
    for (int i = 0; i < LIVE_MAX; i++) {
        if (answers[i].request != NULL)
            continue;
        answers[i] = (answer_t){request, request->replay_count};
        if (!replay_is_right(request))
            finish(link, &answers[i], AVL_FINISH_ERROR);
        return;
    }
    avl_request_destroy(request);
}

static bool serve(avl_link_t *link, int64_t step_ns) {
    bool draining = false;
    int64_t last_ns = 0; /* the last step, when there was something to do */
    for (;;) {
        bool busy = false;
        for (int i = 0; i < LIVE_MAX; i++)
            busy = busy || answers[i].request != NULL;
        if (draining && !busy)
            return true;
        avl_command_t command;
        avl_link_poll(link, busy ? 0 : AVL_NS_PER_S / 10, &command);
        if (command.kind == AVL_COMMAND_LOST)
            return false;
        if (command.kind == AVL_COMMAND_DRAIN)
            draining = true;
        if (command.kind == AVL_COMMAND_SUBMIT)
            take(link, command.request);
        for (int i = 0; i < LIVE_MAX && command.kind == AVL_COMMAND_CANCEL; i++) {
            if (answers[i].request != NULL && answers[i].request->id == command.request_id)
                finish(link, &answers[i], AVL_FINISH_CANCELLED);
        }
        if (command.kind != AVL_COMMAND_NONE)
            continue;
        int64_t now_ns = avl_clock_now_ns();
        avl_step_work_t work = {.steps = 1, .ns = last_ns != 0 ? now_ns - last_ns : step_ns};
        last_ns = busy ? now_ns : 0;
        for (int i = 0; i < LIVE_MAX; i++) {
            if (answers[i].request == NULL)
                continue;
            work.decode_rows++;
            work.prompt_rows += answers[i].next == answers[i].request->replay_count;
            step(link, &answers[i]);
        }
        if (busy) {
            avl_link_work(link, &work);
            avl_clock_sleep_ns(step_ns);
        }
    }
}

static const char *argument(int argc, char **argv, const char *name) {
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return argv[i + 1];
    return "";
}

static int64_t number(const char *variable, int64_t otherwise) {
    const char *text = getenv(variable);
    return text != NULL ? strtoll(text, NULL, 10) : otherwise;
}

static int run(avl_link_t *link) {
    long load_ms = 0;
    (void)mode_is("slow-load", &load_ms);
    for (int i = 0; i < 10 && load_ms > 0; i++) {
        avl_link_loading(link, i / 10.0);
        avl_clock_sleep_ns(load_ms * AVL_NS_PER_MS / 10);
    }
    if (mode_is("fail", NULL)) {
        avl_link_failed(link, AVL_ERR_DATA, "tensor 17 is made of cheese");
        return 4;
    }
    int32_t sequences = (int32_t)number("AVL_FAKE_SEQUENCES", 16);
    avl_capacity_t capacity = {
        1,         "fake", "f32",   2048,
        sequences, 100000, 1000000, number("AVL_FAKE_PICTURE_BYTES", 1 << 30),
        ""};
    const char *fingerprint = getenv("AVL_FAKE_FINGERPRINT"), *dtype = getenv("AVL_FAKE_DTYPE");
    if (fingerprint != NULL)
        snprintf(capacity.fingerprint, sizeof capacity.fingerprint, "%s", fingerprint);
    if (dtype != NULL)
        snprintf(capacity.dtype, sizeof capacity.dtype, "%s", dtype);
    avl_link_ready(link, &capacity);
    return serve(link, number("AVL_FAKE_STEP_MS", 2) * AVL_NS_PER_MS) ? 0 : 5;
}

int main(int argc, char **argv) {
    avl_log_begin("fake-worker", AVL_LOG_INFO, 0);
    mode = getenv("AVL_FAKE") != NULL ? getenv("AVL_FAKE") : "";
    tokens_per_answer = (int)number("AVL_FAKE_TOKENS", 20);
    const char *token = getenv("AVL_GROUP_TOKEN") != NULL ? getenv("AVL_GROUP_TOKEN") : "";
    if (mode_is("exit", NULL))
        return 3;
    if (mode_is("no-attach", NULL))
        avl_clock_sleep_ns(3600 * AVL_NS_PER_S);
    avl_link_t *link = NULL;
    if (avl_link_open(argument(argc, argv, "--coordinator"),
                      mode_is("wrong-token", NULL) ? "guessed" : token, 10 * AVL_NS_PER_S,
                      &link) != AVL_OK) {
        avl_log_error("%s", avl_status_detail());
        return 2;
    }
    int result = run(link);
    avl_link_close(link);
    for (int i = 0; i < LIVE_MAX; i++)
        avl_request_destroy(answers[i].request);
    return result;
}
