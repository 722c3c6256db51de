/* Reduces everything that can be read in a network namespace to two numbers, which are equal for two
 * readings if nothing happened there in between.
 *
 * An instance can change little of this (it has no capability, and /proc is read-only), but each trace
 * is possible. Every packet, and many a failed socket call, leaves a counter that cannot be reset, so
 * a used namespace reads as new only if no packet came or went. Counters are the second number, for
 * functions that share them. TCP's metrics come from packets alone and are not listed: see net_wash.c.
 */
#include "../common/cleanup.h"
#include "net.h"
#include "net_quick.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/netconf.h>
#include <linux/netfilter/ipset/ip_set.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/nexthop.h>
#include <linux/rtnetlink.h>
#include <linux/xfrm.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/* Neighbours' ages change by themselves, and a link's carrier comes up a while after it. */
static void add_message(const struct nlmsghdr *message, void *data)
{
	struct net_digests *digests = data;
	const char *body = mnl_nlmsg_get_payload(message);
	size_t size = mnl_nlmsg_get_payload_len(message);
	const struct nlattr *part;
	struct rtmsg route;
	if (message->nlmsg_type == RTM_NEWROUTE && size >= sizeof route) {
		memcpy(&route, body, sizeof route);
		route.rtm_flags &= ~(unsigned)(RTNH_F_LINKDOWN | RTNH_F_DEAD);
		net_add(&digests->state, &route, sizeof route);
		net_add(&digests->state, body + sizeof route, size - sizeof route);
	} else if (message->nlmsg_type == RTM_NEWNEIGH && size >= sizeof(struct ndmsg)) {
		struct ndmsg neighbour;
		memcpy(&neighbour, body, sizeof neighbour);
		if (neighbour.ndm_state & NUD_NOARP)
			return; /* the kernel's own */
		net_add(&digests->state, &neighbour, sizeof neighbour);
		RTNL_ATTRIBUTES(part, message, sizeof neighbour)
		if (mnl_attr_get_type(part) != NDA_CACHEINFO &&
		    mnl_attr_get_type(part) != NDA_PROBES)
			net_add(&digests->state, part, part->nla_len);
	} else if (message->nlmsg_type == RTM_NEWLINK && size >= sizeof(struct ifinfomsg)) {
		net_add(&digests->state, body, sizeof(struct ifinfomsg));
		RTNL_ATTRIBUTES(part, message, sizeof(struct ifinfomsg))
		net_add(mnl_attr_get_type(part) == IFLA_STATS ||
					mnl_attr_get_type(part) == IFLA_STATS64
				? &digests->counters
				: &digests->state,
			part, part->nla_len);
	} else {
		net_add(&digests->state, body, size);
	}
}

/* What the kernel was built without cannot have been used. */
static int optional(int error)
{
	return error == -EOPNOTSUPP || error == -EPROTONOSUPPORT || error == -EINVAL ||
			       error == -EAFNOSUPPORT || error == -ENOENT
		       ? 0
		       : error;
}

static int dump(struct rtnl *netlink, uint16_t type, const void *head, size_t size,
		struct net_digests *digests)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct nlmsghdr *message = rtnl_message(buffer, type, NLM_F_DUMP);
	memcpy(mnl_nlmsg_put_extra_header(message, size), head, size);
	return rtnl_ask(netlink, message, add_message, digests);
}

static int dump_route(struct net_digests *digests)
{
	struct rtnl netlink RTNL_SCOPE = {0};
	struct ifinfomsg link = {0};
	struct ifaddrmsg address = {0};
	struct rtmsg route = {0};
	struct ndmsg neighbour = {0}, proxy = {.ndm_flags = NTF_PROXY};
	struct tcmsg discipline = {0};
	struct nhmsg next_hop = {0};
	struct netconfmsg settings = {0};
	const struct {
		uint16_t type;
		bool optional;
		const void *head;
		size_t size;
	} dumps[] = {
		{RTM_GETLINK, false, &link, sizeof link},
		{RTM_GETADDR, false, &address, sizeof address},
		{RTM_GETROUTE, false, &route, sizeof route}, /* with its exceptions: path MTUs */
		{RTM_GETRULE, false, &route, sizeof route},
		{RTM_GETNEIGH, false, &neighbour, sizeof neighbour},
		{RTM_GETNEIGH, false, &proxy, sizeof proxy},
		{RTM_GETQDISC, true, &discipline, sizeof discipline},
		{RTM_GETNEXTHOP, true, &next_hop, sizeof next_hop},
		{RTM_GETNETCONF, true, &settings, sizeof settings},
	};
	int error = rtnl_open(&netlink, NETLINK_ROUTE);
	for (size_t i = 0; i < sizeof dumps / sizeof *dumps && !error; i++) {
		error = dump(&netlink, dumps[i].type, dumps[i].head, dumps[i].size, digests);
		if (dumps[i].optional)
			error = optional(error);
	}
	return error;
}

/* IPsec's numbers of states and policies in this namespace. */
static int dump_xfrm(struct net_digests *digests)
{
	static const uint16_t counts[] = {XFRM_MSG_GETSADINFO, XFRM_MSG_GETSPDINFO};
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct rtnl netlink RTNL_SCOPE = {0};
	int error = rtnl_open(&netlink, NETLINK_XFRM);
	for (size_t i = 0; i < sizeof counts / sizeof *counts && !error; i++) {
		struct nlmsghdr *message = rtnl_message(buffer, counts[i], NLM_F_ACK);
		memset(mnl_nlmsg_put_extra_header(message, sizeof(uint32_t)), 0xff,
		       sizeof(uint32_t));
		error = rtnl_ask(&netlink, message, add_message, digests);
	}
	return optional(error);
}

static struct nlmsghdr *netfilter_message(void *buffer, int subsystem, int type, uint16_t flags)
{
	struct nlmsghdr *message = rtnl_message(buffer, (uint16_t)(subsystem << 8 | type), flags);
	struct nfgenmsg *head = mnl_nlmsg_put_extra_header(message, sizeof *head);
	head->nfgen_family = AF_UNSPEC;
	head->version = NFNETLINK_V0;
	return message;
}

static void add_generation(const struct nlmsghdr *message, void *data)
{
	struct net_digests *digests = data;
	const struct nlattr *part;
	RTNL_ATTRIBUTES(part, message, sizeof(struct nfgenmsg))
	if (mnl_attr_get_type(part) == NFTA_GEN_ID)
		net_add(&digests->state, part, part->nla_len);
}

/* Every change of rules has a number; sets of ipset are listed. */
static int dump_netfilter(struct net_digests *digests)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct rtnl netlink RTNL_SCOPE = {0};
	int error = optional(rtnl_open(&netlink, NETLINK_NETFILTER));
	if (error || !netlink.socket)
		return error;
	error = optional(
		rtnl_ask(&netlink,
			 netfilter_message(buffer, NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN, NLM_F_ACK),
			 add_generation, digests));
	if (error)
		return error;
	struct nlmsghdr *sets =
		netfilter_message(buffer, NFNL_SUBSYS_IPSET, IPSET_CMD_LIST, NLM_F_DUMP);
	mnl_attr_put_u8(sets, IPSET_ATTR_PROTOCOL, IPSET_PROTOCOL_MIN);
	return optional(rtnl_ask(&netlink, sets, add_message, digests));
}

/* Of "TCP: inuse 0 orphan 0 tw 0 alloc 1 mem 0", the fields that count one namespace and not all.
 * "used" includes our own netlink sockets: see net_sockets. */
static void add_counts(struct net_digests *digests, char *text)
{
	for (char *word, *rest = text; (word = strtok_r(rest, " \n", &rest));)
		if (!strcmp(word, "inuse") || !strcmp(word, "tw")) {
			const char *count = strtok_r(rest, " \n", &rest);
			if (count)
				net_add(&digests->state, count, strlen(count) + 1);
		}
}

/* The number of bound sockets of each protocol; netlink's are our own. */
static void add_protocols(struct net_digests *digests, char *text)
{
	char name[32];
	long sockets;
	for (char *line, *rest = text; (line = strtok_r(rest, "\n", &rest));)
		if (sscanf(line, "%31s %*d %ld", name, &sockets) == 2 && strcmp(name, "NETLINK")) {
			net_add(&digests->state, name, strlen(name));
			net_add(&digests->state, &sockets, sizeof sockets);
		}
}

/* Left out: files about the whole host, and tables of all namespaces that take long to walk, and
 * whose counts are in others. */
static bool is_left_out(const char *name)
{
	static const char *const names[] = {
		"netlink",   "softnet_stat", "rt_acct",      "rt_cache",
		"arp_cache", "ndisc_cache",  "nf_conntrack", "nf_conntrack_expect",
		"tcp",       "tcp6",         "udp",          "udp6",
		"udplite",   "udplite6"};
	const char *suffix = strrchr(name, '_');
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (!strcmp(name, names[i]))
			return true;
	return name[0] == '.' ||
	       (suffix && (!strcmp(suffix, "_matches") || !strcmp(suffix, "_targets")));
}

/* What counts packets and calls. */
static bool is_counter(const char *name)
{
	static const char *const names[] = {"dev", "snmp", "snmp6", "netstat"};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (!strcmp(name, names[i]))
			return true;
	return false;
}

static void add_file(int directory, const char *name, struct net_digests *digests)
{
	static char text[NET_TEXT_MAX];
	size_t size = net_read(directory, name, text);
	net_add(&digests->state, name, strlen(name) + 1);
	if (!strncmp(name, "sockstat", 8))
		add_counts(digests, text);
	else if (!strcmp(name, "protocols"))
		add_protocols(digests, text);
	else
		net_add(is_counter(name) ? &digests->counters : &digests->state, text, size);
}

static void close_directory(DIR **directory)
{
	if (*directory)
		closedir(*directory);
}

/* Every file of a directory, and of the directories in it. */
static int add_directory(int above, const char *path, bool deep, struct net_digests *digests)
{
	int opened = openat(above, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory __attribute__((cleanup(close_directory))) =
		opened < 0 ? NULL : fdopendir(opened);
	int error = directory ? 0 : -errno;
	if (error)
		descriptor_close(&opened);
	if (error == -ENOENT)
		return 0;
	for (struct dirent *entry; !error && (entry = readdir(directory));) {
		if (is_left_out(entry->d_name))
			continue;
		if (entry->d_type == DT_REG)
			add_file(opened, entry->d_name, digests);
		else if (entry->d_type == DT_DIR && deep)
			error = add_directory(opened, entry->d_name, false, digests);
	}
	return error;
}

static int add_proc_net(struct net_digests *digests)
{
	return add_directory(AT_FDCWD, "/proc/thread-self/net", true, digests);
}

/* Those that matter to a program, and the key that a listening socket may have created. Reading
 * all 600 takes longer than making a namespace, and no instance can write one. */
static int add_sysctls(struct net_digests *digests)
{
	static const char *const names[] = {
		"core/somaxconn",
		"ipv4/ip_forward",
		"ipv4/ip_local_port_range",
		"ipv4/ip_local_reserved_ports",
		"ipv4/ip_unprivileged_port_start",
		"ipv4/ping_group_range",
		"ipv4/tcp_congestion_control",
		"ipv4/tcp_fastopen",
		"ipv4/tcp_fastopen_key",
		"ipv4/tcp_rmem",
		"ipv4/tcp_wmem",
		"ipv6/conf/all/disable_ipv6",
		"ipv6/conf/default/disable_ipv6",
	};
	int directory FILE_SCOPE = open("/proc/sys/net", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (directory < 0)
		return -errno;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		add_file(directory, names[i], digests);
	return 0;
}

int net_digest(struct net_digests *digests, const char **step)
{
	static const struct {
		const char *step;
		int (*add)(struct net_digests *digests);
	} parts[] = {
		{"read /proc/net", add_proc_net},      {"read /proc/sys/net", add_sysctls},
		{"list links and routes", dump_route}, {"list IPsec", dump_xfrm},
		{"list rules", dump_netfilter},
	};
	int error = 0;
	*digests = (struct net_digests){NET_EMPTY, NET_EMPTY};
	for (size_t i = 0; i < sizeof parts / sizeof *parts && !error; i++) {
		*step = parts[i].step;
		error = parts[i].add(digests);
	}
	return error;
}
