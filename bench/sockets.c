/* A client that holds many WebSockets and counts the bytes they receive. Takes commands on standard
   input and answers each with one line:
     open N          opens N more sockets, 64 at a time: seconds, opened, refused
     send TEXT       sends TEXT as a masked frame on each socket
     wait BYTES      counts until all sockets together have received BYTES since the last count:
                     seconds from the first byte to the last, bytes
     lag MILLIS TEXT sends TEXT on the first socket every 2 ms for so long: largest and mean
                     milliseconds until something came back
     quit
   Arguments: host port path [host header]; a host beginning with / is a unix socket, a path beginning
   with @ names a file with one path a line, which the sockets take by turns. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int epoll_fd, count;
static int fds[200000];
static char buffer[1 << 20];
static const char *host, *path, *host_header;
static int port;
static long long received;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int begin(void) {
    int fd, one = 1;
    if (host[0] == '/') {
        struct sockaddr_un to = {.sun_family = AF_UNIX};
        snprintf(to.sun_path, sizeof(to.sun_path), "%s", host);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (connect(fd, (void *)&to, sizeof(to)) != 0) return -1;
    } else {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
        inet_pton(AF_INET, host, &to.sin_addr);
        fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        if (connect(fd, (void *)&to, sizeof(to)) != 0 && errno != EINPROGRESS) return -1;
    }
    struct epoll_event event = {.events = EPOLLOUT, .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    return fd;
}

static FILE *paths;

static const char *next_path(void) {
    static char line[4096];
    if (path[0] != '@') return path;
    if (paths == NULL && (paths = fopen(path + 1, "r")) == NULL) exit(3);
    if (fgets(line, sizeof(line), paths) == NULL) {
        rewind(paths);
        if (fgets(line, sizeof(line), paths) == NULL) exit(3);
    }
    line[strcspn(line, "\n")] = 0;
    return line;
}

static void ask(int fd) {
    char request[8192];
    int size = snprintf(request, sizeof(request),
                        "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Version: 13\r\n"
                        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                        next_path(), host_header);
    if (send(fd, request, (size_t)size, MSG_NOSIGNAL) != size) perror("send");
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event);
}

static void open_more(int wanted) {
    struct epoll_event events[256];
    int open = 0, refused = 0, pending = 0, started = 0;
    double began = now();
    while (open + refused < wanted) {
        while (pending < 64 && started < wanted) {
            if (begin() < 0) refused++; else pending++;
            started++;
        }
        int n = epoll_wait(epoll_fd, events, 256, 5000);
        if (n <= 0) break;
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (events[i].events & EPOLLOUT) { ask(fd); continue; }
            ssize_t got = recv(fd, buffer, sizeof(buffer) - 1, 0);
            pending--;
            if (got > 12 && memcmp(buffer + 9, "101", 3) == 0) { fds[count++] = fd; open++; }
            else { refused++; close(fd); }
        }
    }
    printf("%.6f %d %d\n", now() - began, open, refused);
}

static size_t masked(const char *text, char *out) {
    size_t size = strlen(text), at = 0;
    out[at++] = (char)0x81;
    if (size < 126) out[at++] = (char)(0x80 | size);
    else { out[at++] = (char)0xFE; out[at++] = (char)(size >> 8); out[at++] = (char)size; }
    memset(out + at, 0, 4);
    at += 4;
    memcpy(out + at, text, size);
    return at + size;
}

static void send_all(const char *text) {
    char frame[70000];
    size_t size = masked(text, frame);
    for (int i = 0; i < count; i++)
        if (send(fds[i], frame, size, MSG_NOSIGNAL) != (ssize_t)size) perror("send");
    printf("sent %d\n", count);
}

static void wait_for(long long wanted) {
    struct epoll_event events[512];
    double first = 0, last = 0;
    while (received < wanted) {
        int n = epoll_wait(epoll_fd, events, 512, 10000);
        if (n <= 0) break;
        if (first == 0) first = now();
        for (int i = 0; i < n; i++) {
            ssize_t got = recv(events[i].data.fd, buffer, sizeof(buffer), 0);
            if (got > 0) received += got;
            else if (got == 0 || errno != EAGAIN) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, events[i].data.fd, NULL);
        }
        last = now();
    }
    printf("%.6f %lld\n", last - first, received);
    received = 0;
}

static void lag(int millis, const char *text) {
    char frame[4096];
    size_t size = masked(text, frame);
    double until = now() + millis / 1000.0, worst = 0, sum = 0;
    int rounds = 0;
    fcntl(fds[0], F_SETFL, 0);
    while (now() < until) {
        double began = now();
        if (send(fds[0], frame, size, MSG_NOSIGNAL) < 0) break;
        if (recv(fds[0], buffer, sizeof(buffer), 0) <= 0) break;
        double took = now() - began;
        if (took > worst) worst = took;
        sum += took;
        rounds++;
        usleep(2000);
    }
    printf("%.3f %.3f %d\n", worst * 1000, rounds ? sum / rounds * 1000 : 0, rounds);
}

int main(int argc, char **argv) {
    char line[66000];
    if (argc < 4) return 2;
    host = argv[1];
    port = atoi(argv[2]);
    path = argv[3];
    host_header = argc > 4 ? argv[4] : "localhost";
    epoll_fd = epoll_create1(0);
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof(line), stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, "open ", 5) == 0) open_more(atoi(line + 5));
        else if (strncmp(line, "send ", 5) == 0) send_all(line + 5);
        else if (strncmp(line, "wait ", 5) == 0) wait_for(atoll(line + 5));
        else if (strncmp(line, "lag ", 4) == 0) {
            char *text = strchr(line + 4, ' ');
            lag(atoi(line + 4), text ? text + 1 : "");
        } else if (strcmp(line, "quit") == 0) break;
    }
    return 0;
}
