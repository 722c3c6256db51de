/* What the two methods of netsetup share: one request's state, and the functions of its steps.
 *
 * A step's function returns 0, or a negative errno with the reason in setup->error.
 */
#ifndef FIRSTLIGHT_NETSETUP_H
#define FIRSTLIGHT_NETSETUP_H

#include "common/error.h"

#include <net/if.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <sys/types.h>

#define NETSETUP_NAMED "/run/netns/"

struct setup {
	const char *name;
	const char *mounts; /* a mount namespace to enter first, or NULL */
	bool by_ip;
	int in_place, no_ipv6, by_descriptor, no_dad, mount_ns;
	struct in_addr address, gateway;
	struct in6_addr address6;
	bool has_address6;
	char address_text[INET_ADDRSTRLEN], gateway_text[INET_ADDRSTRLEN];

	char host[IFNAMSIZ], container[IFNAMSIZ], path[sizeof NETSETUP_NAMED + IFNAMSIZ];
	int host_socket;
	int socket, news, namespace; /* the container's */
	int complaints; /* where ip's standard error goes */
	int stop; /* readable once a signal asks to end */
	pid_t child; /* the process of mount.ns */
	int held; /* while this is open, it stays */
	bool linked, named; /* made, and so to be taken down */
	const char *step;
	struct error error;
};

/* Executes ip with these arguments; after a ";" come those of the next time. */
int netsetup_ip(struct setup *setup, const char *commands);

int netsetup_netlink_netns(struct setup *setup);
int netsetup_netlink_veth(struct setup *setup);
int netsetup_netlink_move(struct setup *setup);
int netsetup_netlink_host_up(struct setup *setup);
int netsetup_netlink_container_up(struct setup *setup);
int netsetup_netlink_address(struct setup *setup);
int netsetup_netlink_address6(struct setup *setup);
int netsetup_netlink_route(struct setup *setup);
void netsetup_netlink_take_down(struct setup *setup);

#endif
