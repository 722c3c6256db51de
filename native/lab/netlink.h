/* The NETLINK_ROUTE requests that netsetup times, for a program that is linked with musl and cannot
 * have libmnl. A socket stays with the network namespace that it was opened in, wherever its process
 * moves. Each function waits for the kernel's acknowledgement, and returns 0 or a negative errno.
 */
#ifndef FIRSTLIGHT_NETLINK_H
#define FIRSTLIGHT_NETLINK_H

#include <netinet/in.h>
#include <stdbool.h>

/* A socket in the calling thread's network namespace, subscribed to the groups RTMGRP_*. */
int netlink_open(unsigned groups);

/* The index of a link in the socket's namespace, without taking the rtnl mutex. */
int netlink_link_index(int socket, const char *name);

/* A veth pair; its peer is born in the namespace of that descriptor, or here if it is -1. */
int netlink_add_veth(int socket, const char *name, const char *peer, int peer_namespace);
int netlink_move_link(int socket, const char *name, int namespace);
int netlink_set_link_up(int socket, const char *name);
int netlink_delete_link(int socket, const char *name);

int netlink_add_address(int socket, int link, struct in_addr address);
int netlink_add_address6(int socket, int link, const struct in6_addr *address,
			 bool detect_duplicates);

/* To one address, on the link itself. */
int netlink_add_host_route(int socket, int link, struct in_addr destination);
/* To everywhere by a gateway that no prefix of ours covers. */
int netlink_add_default_route(int socket, int link, struct in_addr gateway);

enum netlink_address { NETLINK_PENDING, NETLINK_USABLE, NETLINK_DUPLICATE };

/* Read one batch of a subscribed socket's notifications and say what became of the address. */
int netlink_address6_state(int socket, const struct in6_addr *address, enum netlink_address *state);

#endif
