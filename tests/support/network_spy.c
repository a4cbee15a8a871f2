/* Preloaded into a process by tests: appends the name of every network call to the file named by NETWORK_SPY. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void note(const char *what, int family) {
    const char *path = getenv("NETWORK_SPY");
    FILE *log = path && family != AF_UNIX ? fopen(path, "a") : NULL;
    if (log) {
        fprintf(log, "%s family %d\n", what, family);
        fclose(log);
    }
}

int socket(int family, int type, int protocol) {
    note("socket", family);
    return ((int (*)(int, int, int))dlsym(RTLD_NEXT, "socket"))(family, type, protocol);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    note(node ? node : "getaddrinfo", -1);
    return ((int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(
        RTLD_NEXT, "getaddrinfo"))(node, service, hints, result);
}
