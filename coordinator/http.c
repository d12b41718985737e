#include "coordinator/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <microhttpd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"

#define IDLE_S 5    /* a connection without any traffic ends sooner than an old one */
#define LOOK_MS 500 /* old connections are looked for so often */
#define BACKLOG 64

typedef struct connection {
    int fd; /* -1: a free place */
    int64_t since_ns;
} connection_t;

struct avl_http {
    const avl_http_route_t *routes;
    size_t route_count;
    struct MHD_Daemon *daemon; /* driven by `thread` alone, which spares it locks */
    int poll_fd;               /* the daemon's */
    int wake_fd;               /* eventfd: leave */
    pthread_t thread;
    bool running;
    connection_t connections[AVL_HTTP_CONNECTIONS_MAX];
    char address[300];
};

/* ---- answers ---- */

static enum MHD_Result queue(struct MHD_Connection *connection, avl_http_answer_t *answer) {
    struct MHD_Response *response =
        MHD_create_response_from_buffer(answer->body_bytes, answer->body, MHD_RESPMEM_MUST_FREE);
    if (response == NULL) {
        free(answer->body);
        return MHD_NO;
    }
    enum MHD_Result result = MHD_YES;
    if (MHD_add_response_header(response, "Content-Type", answer->content_type) != MHD_YES ||
        MHD_add_response_header(response, "Connection", "close") != MHD_YES ||
        MHD_add_response_header(response, "Cache-Control", "no-store") != MHD_YES)
        result = MHD_NO;
    if (result == MHD_YES && answer->status == MHD_HTTP_METHOD_NOT_ALLOWED)
        result = MHD_add_response_header(response, "Allow", "GET, HEAD");
    if (result == MHD_YES)
        result = MHD_queue_response(connection, answer->status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result queue_text(struct MHD_Connection *connection, unsigned status,
                                  const char *text) {
    avl_http_answer_t answer = {.status = status, .content_type = "text/plain; charset=utf-8"};
    int bytes = asprintf(&answer.body, "%s\n", text);
    if (bytes < 0)
        return MHD_NO;
    answer.body_bytes = (size_t)bytes;
    return queue(connection, &answer);
}

/* Answers when the headers are there; a body is never read. */
static enum MHD_Result on_request(void *context, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_bytes, void **user) {
    (void)version;
    (void)upload;
    (void)upload_bytes;
    (void)user;
    const avl_http_t *http = context;
    const avl_http_route_t *route = NULL;
    for (size_t i = 0; i < http->route_count && route == NULL; i++)
        if (strcmp(url, http->routes[i].path) == 0)
            route = &http->routes[i];
    if (route == NULL)
        return queue_text(connection, MHD_HTTP_NOT_FOUND, "no such page");
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        return queue_text(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "GET and HEAD only");
    const char *accept = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Accept");
    avl_http_answer_t answer = {.status = MHD_HTTP_OK, .content_type = "text/plain; charset=utf-8"};
    if (route->answer(route->context, accept != NULL ? accept : "", &answer) != AVL_OK) {
        avl_log_warn("%s cannot be answered: %s", route->path, avl_status_detail());
        return queue_text(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, avl_status_detail());
    }
    return queue(connection, &answer);
}

/* ---- connections and their age ---- */

static void on_connection(void *context, struct MHD_Connection *connection, void **user,
                          enum MHD_ConnectionNotificationCode code) {
    avl_http_t *http = context;
    if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
        if (*user != NULL)
            ((connection_t *)*user)->fd = -1;
        *user = NULL;
        return;
    }
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    for (size_t i = 0; info != NULL && i < AVL_HTTP_CONNECTIONS_MAX; i++) {
        if (http->connections[i].fd >= 0)
            continue;
        http->connections[i] = (connection_t){info->connect_fd, avl_clock_now_ns()};
        *user = &http->connections[i];
        return;
    }
}

/* The daemon's own bound is on silence; a client that drips a byte now and then is met by this. */
static void end_old(avl_http_t *http) {
    int64_t limit_ns = avl_clock_now_ns() - AVL_HTTP_CONNECTION_AGE_MAX_S * AVL_NS_PER_S;
    for (size_t i = 0; i < AVL_HTTP_CONNECTIONS_MAX; i++)
        if (http->connections[i].fd >= 0 && http->connections[i].since_ns <= limit_ns)
            shutdown(http->connections[i].fd, SHUT_RDWR); /* the daemon sees the end, and closes */
}

static void *serve(void *context) {
    avl_http_t *http = context;
    struct pollfd fds[2] = {{http->poll_fd, POLLIN, 0}, {http->wake_fd, POLLIN, 0}};
    for (;;) {
        MHD_UNSIGNED_LONG_LONG timeout_ms;
        if (MHD_get_timeout(http->daemon, &timeout_ms) != MHD_YES || timeout_ms > LOOK_MS)
            timeout_ms = LOOK_MS;
        poll(fds, 2, (int)timeout_ms);
        if (fds[1].revents != 0)
            return NULL;
        MHD_run(http->daemon);
        end_old(http);
    }
}

/* ---- life ---- */

/* Splits "HOST:PORT". */
static avl_status_t resolve(const char *address, struct addrinfo **found_p) {
    char host[256];
    const char *colon = strrchr(address, ':');
    if (colon == NULL || colon == address || (size_t)(colon - address) >= sizeof host ||
        colon[1] == '\0' || strlen(colon) > 6 ||
        strspn(colon + 1, "0123456789") != strlen(colon + 1) || atoi(colon + 1) > 65535)
        return avl_fail(AVL_ERR_INVALID, "cannot serve metrics on \"%s\": write HOST:PORT",
                        address);
    snprintf(host, sizeof host, "%.*s", (int)(colon - address), address);
    char *name = host;
    size_t host_bytes = strlen(host);
    if (host[0] == '[' && host[host_bytes - 1] == ']') {
        host[host_bytes - 1] = '\0';
        name++;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    int error = getaddrinfo(name, colon + 1, &hints, found_p);
    if (error != 0)
        return avl_fail(AVL_ERR_INVALID, "cannot serve metrics on %s: %s", address,
                        gai_strerror(error));
    return AVL_OK;
}

/* The address that the socket really has, with the port that the kernel chose. */
static void name_address(avl_http_t *http, int fd) {
    struct sockaddr_storage name;
    socklen_t name_bytes = sizeof name;
    char host[200] = "?", port[16] = "?";
    if (getsockname(fd, (struct sockaddr *)&name, &name_bytes) == 0)
        getnameinfo((struct sockaddr *)&name, name_bytes, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(http->address, sizeof http->address, name.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s",
             host, port);
}

static avl_status_t listen_on(avl_http_t *http, const char *address, int *fd_p) {
    struct addrinfo *found = NULL;
    AVL_TRY(resolve(address, &found));
    int one = 1, cause = 0;
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0)
        cause = errno;
    freeaddrinfo(found);
    if (cause != 0) {
        if (fd >= 0)
            close(fd);
        return avl_fail(AVL_ERR_IO, "cannot serve metrics on %s: %s", address, strerror(cause));
    }
    name_address(http, fd);
    *fd_p = fd;
    return AVL_OK;
}

/* Paths are compared as they are written: none of ours needs an escape. */
static size_t keep_escaped(void *context, struct MHD_Connection *connection, char *text) {
    (void)context;
    (void)connection;
    return strlen(text);
}

static avl_status_t start_daemon(avl_http_t *http, int fd) {
    http->daemon = MHD_start_daemon(
        MHD_USE_EPOLL, 0, NULL, NULL, on_request, http, MHD_OPTION_LISTEN_SOCKET, (MHD_socket)fd,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)AVL_HTTP_CONNECTIONS_MAX,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)(AVL_HTTP_REQUEST_BYTES_MAX + 4096), /* the answer's headers live there, too */
        MHD_OPTION_UNESCAPE_CALLBACK, keep_escaped, NULL, MHD_OPTION_NOTIFY_CONNECTION,
        on_connection, http, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
    if (http->daemon == NULL) {
        close(fd);
        return avl_fail(AVL_ERR_EXHAUSTED, "cannot start the HTTP server: %s", strerror(errno));
    }
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    if (info == NULL)
        return avl_fail(AVL_ERR_INTERNAL, "the HTTP server has no descriptor to wait on");
    http->poll_fd = info->epoll_fd;
    http->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (http->wake_fd < 0)
        return avl_fail(AVL_ERR_IO, "cannot make an eventfd: %s", strerror(errno));
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&http->thread, NULL, serve, http);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        return avl_fail(AVL_ERR_EXHAUSTED, "cannot start a thread: %s", strerror(error));
    http->running = true;
    pthread_setname_np(http->thread, "http");
    return AVL_OK;
}

avl_status_t avl_http_create(const char *address, const avl_http_route_t *routes,
                             size_t route_count, avl_http_t **http_p) {
    avl_http_t *http = NULL;
    AVL_TRY(avl_alloc(1, sizeof *http, "the HTTP server", &http));
    http->routes = routes;
    http->route_count = route_count;
    http->wake_fd = -1;
    for (size_t i = 0; i < AVL_HTTP_CONNECTIONS_MAX; i++)
        http->connections[i].fd = -1;
    int fd = -1;
    avl_status_t status = listen_on(http, address, &fd);
    if (status == AVL_OK)
        status = start_daemon(http, fd);
    if (status != AVL_OK) {
        avl_http_destroy(http);
        return status;
    }
    *http_p = http;
    return AVL_OK;
}

const char *avl_http_address(const avl_http_t *http) {
    return http->address;
}

void avl_http_destroy(avl_http_t *http) {
    if (http == NULL)
        return;
    if (http->running) {
        uint64_t one = 1;
        ssize_t written = write(http->wake_fd, &one, sizeof one);
        (void)written; /* a full counter wakes as well */
        pthread_join(http->thread, NULL);
    }
    if (http->daemon != NULL)
        MHD_stop_daemon(http->daemon); /* closes the listener */
    if (http->wake_fd >= 0)
        close(http->wake_fd);
    free(http);
}
