/* The profile of cilium's plugin of 2024: four requests to the agent, a pair made on the host of
 * which one end is moved and renamed; the last request waits for the endpoint's eBPF programs. */
#include "http.h"
#include "plugin.h"

#include "link.h"

#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static const char SOCKET[] = "/var/run/cilium/cilium.sock";

/* A member of an answer by its path, as text. */
static char *member(const char *answer, const char *const path[], char *to, size_t size)
{
	const char *value = json_end(answer) ? answer : NULL;
	for (size_t i = 0; value && path[i]; i++)
		value = json_member(value, path[i]);
	if (!value)
		cni_fail("the agent's answer has no %s", path[0]);
	return json_text(value, to, size);
}

static char *ask(int agent, const char *method, const char *path, const char *body)
{
	char *answer;
	int status = request(agent, method, path, body, &answer);
	if (status != 200 && status != 201 && status != 404)
		cni_fail("the agent answered %s %s with %d: %s", method, path, status, answer);
	return answer;
}

static void mac_of(const char *link, char *to, size_t size)
{
	struct ifreq asked = {0};
	int fd FILE_SCOPE = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	snprintf(asked.ifr_name, sizeof asked.ifr_name, "%s", link);
	cni_check(fd < 0 ? -1 : ioctl(fd, SIOCGIFHWADDR, &asked), "read %s's address", link);
	const unsigned char *mac = (unsigned char *)asked.ifr_hwaddr.sa_data;
	snprintf(to, size, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4],
		 mac[5]);
}

static void make_pair(const struct call *call, struct rtnl *route, const char *host,
		      const char *guest, unsigned mtu)
{
	cni_check(link_add_veth(route, host, guest), "make the pair %s", host);
	cni_check(link_query(route, host), "find %s", host);
	set_sysctl("0", "ipv4/conf/%s/rp_filter", host);
	cni_check(link_query(route, guest), "find %s", guest);
	cni_check(link_set_mtu(route, guest, mtu), "set the MTU of %s", guest);
	cni_check(link_query(route, host), "find %s", host);
	cni_check(link_set_mtu(route, host, mtu), "set the MTU of %s", host);
	cni_check(link_up(route, host), "bring %s up", host);
	int namespace FILE_SCOPE = open_namespace(call);
	cni_check(link_move(route, guest, namespace), "move %s", guest);
	struct visit visit = enter(call);
	struct rtnl there RTNL_SCOPE = open_route();
	cni_check(link_query(&there, guest), "find %s", guest);
	cni_check(link_rename(&there, guest, call->interface), "rename %s", guest);
	leave(&visit);
}

static void configure(const struct call *call, struct in_addr address, struct in_addr gateway,
		      char *mac, size_t size)
{
	struct visit visit = enter(call);
	struct rtnl route RTNL_SCOPE = open_route();
	cni_check(link_query(&route, call->interface), "find %s", call->interface);
	cni_check(link_up(&route, call->interface), "bring %s up", call->interface);
	int index = link_index(call->interface);
	cni_check(link_add_address(&route, call->interface, address, 32), "give %s its address",
		  call->interface);
	cni_check(rtnl_route_host(&route, index, rtnl_ip4(gateway), NULL),
		  "add the gateway's route");
	cni_check(rtnl_route_default(&route, index, rtnl_ip4(gateway)), "add the default route");
	mac_of(call->interface, mac, size);
	leave(&visit);
}

static void check_free(const struct call *call)
{
	struct visit visit = enter(call);
	struct rtnl route RTNL_SCOPE = open_route();
	if (!link_query(&route, call->interface))
		cni_fail("%s is in %s already", call->interface, call->namespace);
	leave(&visit);
}

static void add(const struct call *call)
{
	char host[IFNAMSIZ], guest[IFNAMSIZ], address[64], gateway[64], mtu[16], mac[24],
		host_mac[24];
	snprintf(host, sizeof host, "lxc%.12s", call->container);
	snprintf(guest, sizeof guest, "tmp%.5s", call->container);
	int agent FILE_SCOPE = connect_unix("the agent", SOCKET);
	char *node FREE_SCOPE = ask(agent, "GET", "/v1/config", "");
	char *again FREE_SCOPE = ask(agent, "GET", "/v1/config", "");
	member(node, (const char *[]){"status", "deviceMTU", NULL}, mtu, sizeof mtu);
	member(again, (const char *[]){"status", "addressing", "ipv4", "ip", NULL}, gateway,
	       sizeof gateway);
	check_free(call);
	char *given FREE_SCOPE = ask(agent, "POST", "/v1/ipam?owner=default", "");
	member(given, (const char *[]){"address", "ipv4", NULL}, address, sizeof address);
	struct rtnl route RTNL_SCOPE = open_route();
	make_pair(call, &route, host, guest, (unsigned)atoi(mtu));
	configure(call, address_of(address), address_of(gateway), mac, sizeof mac);
	mac_of(host, host_mac, sizeof host_mac);
	char *endpoint FREE_SCOPE = text_of(
		"{\"addressing\":{\"ipv4\":\"%s\",\"ipv4-pool-name\":\"default\"},\"container-id\":"
		"\"%s\",\"container-interface-name\":\"%s\",\"datapath-configuration\":{},\"host-mac\":"
		"\"%s\",\"interface-index\":%d,\"interface-name\":\"%s\",\"mac\":\"%s\",\"state\":"
		"\"waiting-for-identity\",\"sync-build-endpoint\":true}",
		address, call->container, call->interface, host_mac, link_index(host), host, mac);
	char *done FREE_SCOPE = ask(agent, "PUT", "/v1/endpoint/cilium-local:0", endpoint);
	say_result(call, host, address_of(address), 32, gateway);
}

static void del(const struct call *call)
{
	int agent FILE_SCOPE = connect_unix("the agent", SOCKET);
	char *node FREE_SCOPE = ask(agent, "GET", "/v1/config", "");
	char *body FREE_SCOPE = text_of("{\"container-id\":\"%s\"}", call->container);
	char *gone FREE_SCOPE = ask(agent, "DELETE", "/v1/endpoint", body);
	delete_interface(call);
}

const struct plugin plugin = {add, del};
