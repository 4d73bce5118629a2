/* Connections that open a WebSocket, given to the process that holds them all as soon as their
 * request has come, before the HTTP server has seen any of it. */
#ifndef ICHI_HANDOVER_H
#define ICHI_HANDOVER_H

#include <stddef.h>

/* Whether these bytes are one whole request, without a body, for a WebSocket of /realtime. What is
 * wrong with it otherwise is for its receiver to say. */
int ichi_opens_socket(const char *head, size_t n);

/* address: of a unix socket of packets, at which the receiver listens. -1 when it is too long. */
int ichi_hand_over_to(const char *address);

/* Sends a connection with its request. 1 when the receiver has it now: then this process's
 * descriptor is only to be closed. 0 when there is no receiver, or it has no room. */
int ichi_hand_over(int fd, const char *head, size_t n);

#endif
