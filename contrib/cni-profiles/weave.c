/* The profile of weave's plugin of 2021: an address from the daemon, a pair made on the host of
 * which one end is moved, and eight switches of namespace. */
#include "http.h"
#include "plugin.h"

#include "link.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/if_ether.h>
#include <netpacket/packet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static const char BRIDGE[] = "weave", MULTICAST[] = "224.0.0.0/4";

struct pod {
	char host[IFNAMSIZ], guest[IFNAMSIZ];
	struct in_addr address, broadcast, gateway;
	uint8_t prefix;
	char network[INET_ADDRSTRLEN + 4];
};

static int ask(const struct call *call, const char *method, char **answer)
{
	int weaver FILE_SCOPE = connect_tcp("weaver", "127.0.0.1", 6784);
	char *path FREE_SCOPE = text_of("/ip/%s", call->container);
	return request(weaver, method, path, "", answer);
}

static void allocate(const struct call *call, struct pod *pod)
{
	char *answer FREE_SCOPE = NULL;
	int status = ask(call, "POST", &answer);
	char *slash = strchr(answer, '/');
	if (status != 200 || !slash)
		cni_fail("unable to allocate IP address: %d: %s", status, answer);
	*slash = 0;
	pod->address = address_of(answer);
	int prefix = atoi(slash + 1);
	if (prefix < 1 || prefix > 32)
		cni_fail("unable to allocate IP address: %s has the prefix %s", answer, slash + 1);
	pod->prefix = (uint8_t)prefix;
	in_addr_t mask = htonl(~0u << (32 - prefix));
	struct in_addr network = {pod->address.s_addr & mask};
	pod->broadcast.s_addr = pod->address.s_addr | ~mask;
	inet_ntop(AF_INET, &network, pod->network, sizeof pod->network);
	size_t length = strlen(pod->network);
	snprintf(pod->network + length, sizeof pod->network - length, "/%d", prefix);
}

/* The address of the bridge, as the plugin finds it: among all that the host has. */
static void find_gateway(struct pod *pod)
{
	struct ifaddrs *all;
	cni_check(getifaddrs(&all), "list the host's addresses");
	for (struct ifaddrs *each = all; each; each = each->ifa_next)
		if (each->ifa_addr && each->ifa_addr->sa_family == AF_INET &&
		    !strcmp(each->ifa_name, BRIDGE))
			pod->gateway = ((struct sockaddr_in *)each->ifa_addr)->sin_addr;
	freeifaddrs(all);
	if (!pod->gateway.s_addr)
		cni_fail("the bridge %s has no address", BRIDGE);
}

static void check_free(const struct call *call)
{
	struct visit visit = enter(call);
	struct rtnl route RTNL_SCOPE = open_route();
	if (!link_query(&route, call->interface))
		cni_fail("%s is in %s already", call->interface, call->namespace);
	leave(&visit);
}

static void leave_checksums(const char *link)
{
	struct ethtool_value value = {.cmd = ETHTOOL_GTXCSUM};
	struct ifreq asked = {.ifr_data = (void *)&value};
	int fd FILE_SCOPE = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	snprintf(asked.ifr_name, IFNAMSIZ, "%s", link);
	cni_check(fd < 0 ? -1 : ioctl(fd, SIOCETHTOOL, &asked), "ask for the checksums of %s",
		  link);
	value = (struct ethtool_value){.cmd = ETHTOOL_STXCSUM};
	cni_check(ioctl(fd, SIOCETHTOOL, &asked), "turn the checksums of %s off", link);
}

static void make_pair(struct rtnl *route, const struct pod *pod)
{
	cni_check(link_query(route, BRIDGE), "find the bridge %s", BRIDGE);
	cni_check(link_add_veth(route, pod->host, pod->guest), "make the pair %s", pod->host);
	cni_check(link_query(route, pod->host), "find %s", pod->host);
	cni_check(link_query(route, BRIDGE), "find the bridge %s", BRIDGE);
	link_query(route, "datapath"); /* there is one where Open vSwitch forwards */
	cni_check(link_set_master(route, pod->host, link_index(BRIDGE)), "make %s a port",
		  pod->host);
	set_sysctl("0", "ipv6/conf/%s/accept_ra", pod->host);
	set_sysctl("0", "ipv6/conf/%s/accept_ra", pod->guest);
	leave_checksums(pod->guest);
}

static bool iptables(char *const arguments[])
{
	char *argv[24] = {"/usr/sbin/iptables"};
	for (size_t i = 0; arguments[i]; i++)
		argv[i + 1] = arguments[i];
	char *output FREE_SCOPE = NULL;
	return !run(argv, "", &output);
}

static void drop_multicast(const struct call *call)
{
	iptables((char *[]){"--version", NULL});
	if (!iptables((char *[]){"-t", "filter", "-A", "INPUT", "-i", (char *)call->interface, "-d",
				 (char *)MULTICAST, "-j", "DROP", "--wait", NULL}))
		cni_fail("iptables cannot drop multicast");
}

static void accept_multicast(const struct call *call, const struct pod *pod)
{
	char *rule[] = {"-t",     "filter",
			"-C",     "INPUT",
			"-i",     (char *)call->interface,
			"-s",     (char *)pod->network,
			"-d",     (char *)MULTICAST,
			"-j",     "ACCEPT",
			"--wait", NULL};
	iptables((char *[]){"--version", NULL});
	if (iptables(rule))
		return;
	rule[2] = "-I";
	if (!iptables(rule))
		cni_fail("iptables cannot accept multicast");
}

static void become_interface(const struct call *call, const struct pod *pod)
{
	struct visit visit = enter(call);
	struct rtnl route RTNL_SCOPE = open_route();
	cni_check(link_query(&route, pod->guest), "find %s", pod->guest);
	cni_check(link_rename(&route, pod->guest, call->interface), "rename %s", pod->guest);
	set_sysctl("5", "ipv4/neigh/%s/base_reachable_time", call->interface);
	set_sysctl("2", "ipv4/neigh/%s/delay_first_probe_time", call->interface);
	set_sysctl("1", "ipv4/neigh/%s/ucast_solicit", call->interface);
	drop_multicast(call);
	leave(&visit);
}

static void announce(const struct call *call, const struct pod *pod)
{
	struct ifreq link = {0};
	struct {
		struct ether_header ethernet;
		struct ether_arp arp;
	} __attribute__((packed)) packet = {
		.ethernet = {.ether_type = htons(ETHERTYPE_ARP)},
		.arp.ea_hdr = {htons(ARPHRD_ETHER), htons(ETHERTYPE_IP), ETH_ALEN, 4,
			       htons(ARPOP_REQUEST)},
	};
	int fd FILE_SCOPE = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ARP));
	snprintf(link.ifr_name, IFNAMSIZ, "%s", call->interface);
	cni_check(fd < 0 ? -1 : ioctl(fd, SIOCGIFHWADDR, &link), "read %s's address",
		  call->interface);
	memset(packet.ethernet.ether_dhost, 0xff, ETH_ALEN);
	memset(packet.arp.arp_tha, 0xff, ETH_ALEN);
	memcpy(packet.ethernet.ether_shost, link.ifr_hwaddr.sa_data, ETH_ALEN);
	memcpy(packet.arp.arp_sha, link.ifr_hwaddr.sa_data, ETH_ALEN);
	memcpy(packet.arp.arp_spa, &pod->address, sizeof pod->address);
	memcpy(packet.arp.arp_tpa, &pod->address, sizeof pod->address);
	struct sockaddr_ll to = {.sll_family = AF_PACKET,
				 .sll_protocol = htons(ETH_P_ARP),
				 .sll_ifindex = (int)if_nametoindex(call->interface)};
	cni_check(sendto(fd, &packet, sizeof packet, 0, (struct sockaddr *)&to, sizeof to) < 0 ? -1
											       : 0,
		  "announce the address");
}

static void configure(const struct call *call, const struct pod *pod)
{
	struct visit visit = enter(call);
	struct rtnl route RTNL_SCOPE = open_route();
	cni_check(link_query(&route, call->interface), "find %s", call->interface);
	cni_check(link_add_address(&route, call->interface, pod->address, pod->prefix),
		  "give %s its address", call->interface);
	accept_multicast(call, pod);
	cni_check(link_up(&route, call->interface), "bring %s up", call->interface);
	nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	announce(call, pod);
	leave(&visit);
}

static void add_route(const struct call *call, const struct pod *pod)
{
	struct visit visit = enter(call);
	struct rtnl route RTNL_SCOPE = open_route();
	cni_check(link_query(&route, call->interface), "find %s", call->interface);
	cni_check(rtnl_route_default(&route, link_index(call->interface), rtnl_ip4(pod->gateway)),
		  "add the default route");
	leave(&visit);
}

static void add(const struct call *call)
{
	char hairpin[8], gateway[INET_ADDRSTRLEN];
	struct pod pod = {0};
	struct rtnl route RTNL_SCOPE = open_route();
	if (!freopen("/dev/null", "w", stderr)) /* iptables says there what it does not find */
		cni_fail("cannot open /dev/null");
	snprintf(pod.host, sizeof pod.host, "vethwepl%.7s", call->container);
	snprintf(pod.guest, sizeof pod.guest, "vethwepg%.7s", call->container);
	allocate(call, &pod);
	cni_check(link_query(&route, BRIDGE), "find the bridge %s", BRIDGE);
	find_gateway(&pod);
	check_free(call);
	make_pair(&route, &pod);
	int namespace FILE_SCOPE = open_namespace(call);
	cni_check(link_query(&route, pod.guest), "find %s", pod.guest);
	cni_check(link_move(&route, pod.guest, namespace), "move %s", pod.guest);
	become_interface(call, &pod);
	cni_check(link_up(&route, pod.host), "bring %s up", pod.host);
	if (!strcmp(conf_string(call, "hairpinMode", hairpin, sizeof hairpin, "true"), "true"))
		cni_check(link_set_hairpin(&route, pod.host), "set hairpin mode of %s", pod.host);
	configure(call, &pod);
	add_route(call, &pod);
	inet_ntop(AF_INET, &pod.gateway, gateway, sizeof gateway);
	say_result(call, pod.host, pod.address, pod.prefix, gateway);
}

static void del(const struct call *call)
{
	char *answer FREE_SCOPE = NULL;
	delete_interface(call);
	int status = ask(call, "DELETE", &answer);
	if (status != 204 && status != 200 && !strstr(answer, "no addresses for"))
		cni_fail("unable to release IP address: %d: %s", status, answer);
}

const struct plugin plugin = {add, del};
