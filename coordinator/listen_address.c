#include "coordinator/listen_address.h"

#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* The core unlinks any socket that stands in its way, a living server's too. */
static avl_status_t check_unix_path(const char *address) {
    const char *path = address + strlen("unix:");
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    if (path[0] == '\0' || strlen(path) >= sizeof name.sun_path)
        return avl_fail(AVL_ERR_INVALID, "cannot listen on %s: a socket's path has 1 to %zu bytes",
                        address, sizeof name.sun_path - 1);
    strcpy(name.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return avl_fail(AVL_ERR_IO, "cannot make a socket: %s", strerror(errno));
    int result = connect(fd, (struct sockaddr *)&name, sizeof name);
    close(fd);
    if (result == 0)
        return avl_fail(AVL_ERR_IO, "cannot listen on %s: another server is listening there",
                        address);
    return AVL_OK;
}

avl_status_t avl_listen_address_check(const char *address) {
    if (strncmp(address, "unix:", 5) == 0)
        return check_unix_path(address);
    const char *colon = strrchr(address, ':');
    if (colon == NULL || colon == address || colon[1] == '\0' ||
        strspn(colon + 1, "0123456789") != strlen(colon + 1) || strtol(colon + 1, NULL, 10) > 65535)
        return avl_fail(
            AVL_ERR_INVALID,
            "cannot listen on \"%s\": write HOST:PORT (a port is 0 to 65535) or unix:PATH",
            address);
    return AVL_OK;
}

avl_status_t avl_listen_address_explain(const char *address) {
    char host[200];
    const char *colon = strrchr(address, ':');
    if (strncmp(address, "unix:", 5) == 0 || colon == NULL ||
        (size_t)(colon - address) >= sizeof host)
        return avl_fail(AVL_ERR_IO, "cannot listen on %s", address);
    size_t host_bytes = (size_t)(colon - address);
    memcpy(host, address, host_bytes);
    host[host_bytes] = '\0';
    char *name = host;
    if (host_bytes > 1 && host[0] == '[' && host[host_bytes - 1] == ']') {
        host[host_bytes - 1] = '\0';
        name++;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    int error = getaddrinfo(name, colon + 1, &hints, &found);
    if (error != 0)
        return avl_fail(AVL_ERR_INVALID, "cannot listen on %s: %s", address, gai_strerror(error));
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int cause = 0;
    if (fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) != 0)
        cause = errno;
    if (fd >= 0)
        close(fd);
    freeaddrinfo(found);
    return avl_fail(AVL_ERR_IO, "cannot listen on %s: %s", address,
                    cause != 0 ? strerror(cause) : "the address is taken");
}
