/* The NETLINK_ROUTE requests that give an instance its network.
 *
 * Each is acknowledged by the kernel before it returns: 0, or -1 with errno. A socket speaks to
 * the network namespace that it was opened in, whatever namespace its process is in later.
 */
#ifndef FIRSTLIGHT_NETLINK_H
#define FIRSTLIGHT_NETLINK_H

#include <netinet/in.h>
#include <stdbool.h>

/* A socket in the calling thread's network namespace, subscribed to the groups RTMGRP_*. */
int netlink_open(unsigned groups);

/* The index of a link in the socket's namespace, without taking the rtnl mutex; 0 if none. */
int link_index(int socket, const char *name);

/* A veth pair; its peer is born in the namespace of that descriptor, or here if it is -1. */
int link_add_veth(int socket, const char *name, const char *peer, int peer_namespace);
int link_move(int socket, const char *name, int namespace);
int link_up(int socket, const char *name);
/* Asks for all that the kernel knows of a link; -1 with ENODEV if there is none. */
int link_query(int socket, const char *name);
int link_set_mtu(int socket, const char *name, unsigned mtu);
int link_set_mac(int socket, const char *name, const unsigned char mac[6]);
int link_rename(int socket, const char *name, const char *to);
/* Make it a port of the bridge of that index, and let the bridge send back what came from it. */
int link_set_master(int socket, const char *name, int bridge);
int link_set_hairpin(int socket, const char *name);
int link_delete(int socket, const char *name);

int address_add(int socket, int link, struct in_addr address);
int address_add_prefix(int socket, int link, struct in_addr address, uint8_t prefix);
int address6_add(int socket, int link, const struct in6_addr *address, bool detect_duplicates);

/* To one address, on the link itself. */
int route_add_host(int socket, int link, struct in_addr destination);
/* To everywhere by a gateway that no prefix of ours covers. */
int route_add_default(int socket, int link, struct in_addr gateway);

enum address_state { ADDRESS_PENDING, ADDRESS_USABLE, ADDRESS_DUPLICATE };

/* Read one batch of a subscribed socket's notifications and say what became of the address. */
int address6_state(int socket, const struct in6_addr *address, enum address_state *state);

#endif
