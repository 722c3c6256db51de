/* Whole requests of NETLINK_ROUTE, for programs that are linked with musl and cannot have libmnl. A
 * socket stays with the network namespace that it was opened in, wherever its process moves. Functions
 * return 0 or more, or a negative errno.
 */
#ifndef FIRSTLIGHT_NETLINK_H
#define FIRSTLIGHT_NETLINK_H

/* A socket in the calling thread's network namespace, subscribed to the groups RTMGRP_*. */
int netlink_open(unsigned groups);

/* Sends a message, which asks for an acknowledgement (NLM_F_ACK), and waits for that. */
int netlink_ask(int socket, const void *message);

#endif
