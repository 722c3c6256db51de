/* Ends the host's tracked connections of addresses before these are reused.
 *
 * The kernel cannot filter a dump by a set of addresses, so one walk of the whole table serves all
 * addresses of a request.
 */
#include "net.h"

#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <string.h>

struct sweep {
	struct rtnl *netlink; /* for deleting: the dump has its own socket */
	const struct net_range *ranges;
	size_t count;
	const uint8_t *gone;
	int error;
};

static struct nlmsghdr *connection_message(void *buffer, uint16_t type, uint16_t flags)
{
	struct nlmsghdr *message =
		rtnl_message(buffer, (uint16_t)(NFNL_SUBSYS_CTNETLINK << 8 | type), flags);
	struct nfgenmsg *head = mnl_nlmsg_put_extra_header(message, sizeof *head);
	head->nfgen_family = AF_INET;
	head->version = NFNETLINK_V0;
	return message;
}

static const struct nlattr *inner(const struct nlattr *nest, uint16_t type)
{
	const struct nlattr *part;
	if (nest)
		RTNL_NESTED(part, nest)
	if (mnl_attr_get_type(part) == type)
		return part;
	return NULL;
}

static bool is_wanted(const struct sweep *sweep, const struct nlattr *tuple, uint16_t end)
{
	const struct nlattr *part = inner(inner(tuple, CTA_TUPLE_IP), end);
	if (!part || mnl_attr_get_payload_len(part) != sizeof(uint32_t))
		return false;
	uint32_t address = ntohl(mnl_attr_get_u32(part));
	for (size_t i = 0; i < sweep->count; i++)
		if (sweep->gone[i] && address >= ntohl(sweep->ranges[i].first.s_addr) &&
		    address <= ntohl(sweep->ranges[i].last.s_addr))
			return true;
	return false;
}

static void end_connection(const struct nlmsghdr *message, void *data)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	const struct nlattr *part, *parts[CTA_MAX + 1] = {0};
	static const uint16_t kept[] = {CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID};
	struct sweep *sweep = data;
	RTNL_ATTRIBUTES(part, message, sizeof(struct nfgenmsg))
	if (mnl_attr_get_type(part) <= CTA_MAX)
		parts[mnl_attr_get_type(part)] = part;
	/* An instance's: one that it began, or whose answers come from it. */
	if (sweep->error || (!is_wanted(sweep, parts[CTA_TUPLE_ORIG], CTA_IP_V4_SRC) &&
			     !is_wanted(sweep, parts[CTA_TUPLE_REPLY], CTA_IP_V4_SRC)))
		return;
	struct nlmsghdr *request = connection_message(buffer, IPCTNL_MSG_CT_DELETE, NLM_F_ACK);
	for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
		if ((part = parts[kept[i]]))
			mnl_attr_put(request, part->nla_type, mnl_attr_get_payload_len(part),
				     mnl_attr_get_payload(part));
	int error = rtnl_ask(sweep->netlink, request, NULL, NULL);
	if (error != -ENOENT) /* it has ended by itself */
		sweep->error = error;
}

int net_forget(struct rtnl *host, const struct net_range *ranges, size_t count, uint8_t *gone,
	       const char **step)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct rtnl dump RTNL_SCOPE = {0}, delete RTNL_SCOPE = {0};
	struct sweep sweep = {&delete, ranges, count, gone, 0};
	int error;
	for (size_t i = 0; i < count; i++) {
		*step = "ask for a link";
		error = ranges[i].index ? rtnl_link_settle(host, ranges[i].index) : -ENODEV;
		if (error && error != -ENODEV)
			return error;
		gone[i] = error == -ENODEV; /* no more of its packets can come */
	}
	*step = "open netfilter";
	if ((error = rtnl_open(&dump, NETLINK_NETFILTER)) ||
	    (error = rtnl_open(&delete, NETLINK_NETFILTER)))
		return error;
	*step = "list connections";
	error = rtnl_ask(&dump, connection_message(buffer, IPCTNL_MSG_CT_GET, NLM_F_DUMP),
			 end_connection, &sweep);
	*step = error ? *step : "end connections";
	return error ? error : sweep.error;
}
