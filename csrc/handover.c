#define _GNU_SOURCE
#include "handover.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LONGEST 16384 /* bytes of a request; the receiver takes no more either */

static const char START[] = "GET /realtime";

static int names(const char *line, const char *end, const char *name, size_t size)
{
    return (size_t)(end - line) > size && line[size] == ':' && strncasecmp(line, name, size) == 0;
}

static int holds(const char *p, const char *end, const char *word, size_t size)
{
    for (; (size_t)(end - p) >= size; p++)
        if (strncasecmp(p, word, size) == 0)
            return 1;
    return 0;
}

int ichi_opens_socket(const char *head, size_t n)
{
    const size_t start = sizeof(START) - 1;
    const char *end = head + n, *line;
    int found = 0;
    if (n < start + 1 || n > LONGEST || memcmp(head, START, start) != 0
        || (head[start] != '?' && head[start] != ' '))
        return 0;
    if (memmem(head, n, "\r\n\r\n", 4) != end - 4)
        return 0;
    line = memchr(head, '\n', n);
    while (++line < end - 2) {
        const char *next = memchr(line, '\n', (size_t)(end - line));
        if (names(line, next, "content-length", 14) || names(line, next, "transfer-encoding", 17))
            return 0;
        if (names(line, next, "upgrade", 7))
            found = holds(line + 8, next, "websocket", 9);
        line = next;
    }
    return found;
}

#ifdef __linux__

static struct sockaddr_un receiver;
static int channel = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

int ichi_hand_over_to(const char *address)
{
    size_t size = strlen(address);
    if (size >= sizeof(receiver.sun_path))
        return -1;
    receiver.sun_family = AF_UNIX;
    memcpy(receiver.sun_path, address, size + 1);
    return 0;
}

static int reach(void)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&receiver, sizeof(receiver)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static int send_one(int fd, const char *head, size_t n)
{
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct iovec part = {(void *)head, n};
    struct msghdr message = {0};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.space;
    message.msg_controllen = sizeof(control.space);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(int));
    return sendmsg(channel, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)n;
}

int ichi_hand_over(int fd, const char *head, size_t n)
{
    int saved = errno, done = 0;
    if (receiver.sun_family != AF_UNIX)
        return 0;
    pthread_mutex_lock(&lock);
    for (int attempt = 0; attempt < 2 && !done; attempt++) {
        if (channel < 0 && (channel = reach()) < 0)
            break;
        done = send_one(fd, head, n);
        if (!done) {
            if (errno == EAGAIN)
                break;
            close(channel); /* the receiver has ended; another one may be there */
            channel = -1;
        }
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return done;
}

#else

int ichi_hand_over_to(const char *address)
{
    (void)address;
    return -1;
}

int ichi_hand_over(int fd, const char *head, size_t n)
{
    (void)fd, (void)head, (void)n;
    return 0;
}

#endif
