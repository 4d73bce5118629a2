"""What the sockets need of the system."""

from libc.stdint cimport uint32_t

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    enum:
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
        EPOLL_CLOEXEC
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int most, int timeout)

cdef extern from "sys/socket.h" nogil:
    struct sockaddr_storage:
        unsigned short ss_family
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    enum:
        MSG_NOSIGNAL
        MSG_DONTWAIT
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        SHUT_WR
        AF_INET
        AF_INET6
        AF_UNIX
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    int shutdown(int fd, int how)
    int accept4(int fd, void *address, void *size, int flags)
    struct sockaddr:
        pass
    int getpeername(int fd, sockaddr *address, unsigned int *size)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int size)

cdef extern from "netinet/in.h" nogil:
    enum: IPPROTO_TCP
    struct in_addr:
        pass
    struct in6_addr:
        pass
    struct sockaddr_in:
        in_addr sin_addr
    struct sockaddr_in6:
        in6_addr sin6_addr

cdef extern from "netinet/tcp.h" nogil:
    enum:
        TCP_NODELAY
        TCP_NOTSENT_LOWAT

cdef extern from "arpa/inet.h" nogil:
    const char *inet_ntop(int family, const void *source, char *to, unsigned int size)

cdef extern from "unistd.h" nogil:
    int c_close "close"(int fd)


cdef inline void clear(msghdr *message) noexcept:
    cdef char *at = <char *>message
    cdef size_t i
    for i in range(sizeof(msghdr)):
        at[i] = 0
