/* Prints the addresses that the C library's resolver finds for each name given. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    int failed = 0;
    for (int i = 1; i < argc; i++) {
        struct addrinfo hints, *found;
        memset(&hints, 0, sizeof hints);
        hints.ai_socktype = SOCK_STREAM;
        int error = getaddrinfo(argv[i], NULL, &hints, &found);
        if (error) {
            fprintf(stderr, "%s: %s\n", argv[i], gai_strerror(error));
            failed = 1;
            continue;
        }
        for (struct addrinfo *each = found; each; each = each->ai_next) {
            char text[INET6_ADDRSTRLEN];
            void *address = each->ai_family == AF_INET
                                ? (void *)&((struct sockaddr_in *)each->ai_addr)->sin_addr
                                : (void *)&((struct sockaddr_in6 *)each->ai_addr)->sin6_addr;
            puts(inet_ntop(each->ai_family, address, text, sizeof text));
        }
        freeaddrinfo(found);
    }
    return failed;
}
