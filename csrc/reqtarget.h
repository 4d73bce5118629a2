/* Request targets with bytes that clients send as they are (`->>`, quotes) and that the HTTP server
 * refuses before anybody sees the request, or, with a hash, cuts off: percent-encoded on their way
 * in. */
#ifndef ICHI_REQTARGET_H
#define ICHI_REQTARGET_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    ICHI_BLIND = 0, /* where requests begin is not known: nothing is touched any more */
    ICHI_HEAD = 1,  /* the next byte is the first of a request */
    ICHI_BODY = 2,  /* `body` bytes of a request are still to come */
    ICHI_FRESH = 3, /* as ICHI_HEAD, and no request has come yet */
    ICHI_GONE = 4   /* another process has the connection: for this one it has ended */
};

typedef struct {
    int64_t body;
    int mode;
    uint16_t port; /* of the client, 0 when it has none */
} ichi_stream;

/* n bytes have come into buf, which has room for `room`. Gives the number of bytes that are there
 * now. Only a request that begins with these bytes and whose line and headers are all there is
 * touched: its target, values of its headers (reqvalues.h), and a header for its body where that is
 * kept (reqbody.h). Whatever leaves a
 * doubt about where the next one begins makes the stream blind. */
ssize_t ichi_stream_feed(ichi_stream *stream, char *buf, ssize_t n, size_t room);

/* Has what the library whose path holds `name` receives from the connections that it accepts pass
 * through the above, once those that open WebSockets have been handed over (handover.h). 1 when that
 * is so now, 0 where it cannot be done. */
int ichi_stream_install(const char *name);

/* The first descriptor from `from` on by which a connection from this port of a client was accepted
 * last, -1 when there is none. It may be closed, or be something else by now. */
int ichi_stream_find(uint16_t port, int from);

#endif
