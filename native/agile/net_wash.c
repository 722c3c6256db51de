/* Removes what traffic leaves in a network namespace, except counters: open connections, route
 * exceptions, and TCP's metrics and cookies of addresses. The caller checks the result. */
#include "../common/cleanup.h"
#include "net.h"
#include "net_quick.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/genetlink.h>
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <linux/tcp_metrics.h>
#include <string.h>
#include <sys/socket.h>

struct ending {
	struct rtnl *netlink; /* for ending: the dump has its own socket */
	int error;
};

static struct nlmsghdr *generic_message(void *buffer, uint16_t type, uint8_t command,
					uint8_t version)
{
	struct nlmsghdr *message = rtnl_message(buffer, type, NLM_F_ACK);
	struct genlmsghdr *head = mnl_nlmsg_put_extra_header(message, sizeof *head);
	head->cmd = command;
	head->version = version;
	return message;
}

static void find_family(const struct nlmsghdr *message, void *data)
{
	const struct nlattr *part;
	RTNL_ATTRIBUTES(part, message, sizeof(struct genlmsghdr))
	if (mnl_attr_get_type(part) == CTRL_ATTR_FAMILY_ID)
		*(uint16_t *)data = mnl_attr_get_u16(part);
}

/* All of them: the request names no address. */
static int flush_metrics(void)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct rtnl netlink RTNL_SCOPE = {0};
	uint16_t family = 0;
	int error = rtnl_open(&netlink, NETLINK_GENERIC);
	struct nlmsghdr *find = generic_message(buffer, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1);
	mnl_attr_put_strz(find, CTRL_ATTR_FAMILY_NAME, TCP_METRICS_GENL_NAME);
	if (!error)
		error = rtnl_ask(&netlink, find, find_family, &family);
	return error ? error
		     : rtnl_ask(&netlink,
				generic_message(buffer, family, TCP_METRICS_CMD_DEL,
						TCP_METRICS_GENL_VERSION),
				NULL, NULL);
}

static void *diag_message(struct nlmsghdr *message, size_t size)
{
	void *head = mnl_nlmsg_put_extra_header(message, size);
	memset(head, 0, size);
	return head;
}

static void end_one(const struct nlmsghdr *message, void *data)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct ending *ending = data;
	const struct inet_diag_msg *socket = mnl_nlmsg_get_payload(message);
	if (ending->error || mnl_nlmsg_get_payload_len(message) < sizeof *socket)
		return;
	struct nlmsghdr *request = rtnl_message(buffer, SOCK_DESTROY, NLM_F_ACK);
	struct inet_diag_req_v2 *head = diag_message(request, sizeof *head);
	head->sdiag_family = socket->idiag_family;
	head->sdiag_protocol = IPPROTO_TCP;
	head->idiag_states = ~0U;
	head->id = socket->id;
	int error = rtnl_ask(ending->netlink, request, NULL, NULL);
	if (error != -ENOENT) /* it has ended by itself */
		ending->error = error;
}

/* Mostly those in TIME_WAIT, which would stay for a minute. */
static int end_connections(uint8_t family)
{
	_Alignas(struct nlmsghdr) char buffer[RTNL_BUFFER];
	struct rtnl dump RTNL_SCOPE = {0}, end RTNL_SCOPE = {0};
	struct ending ending = {&end, 0};
	int error = rtnl_open(&dump, NETLINK_SOCK_DIAG);
	if (!error)
		error = rtnl_open(&end, NETLINK_SOCK_DIAG);
	struct nlmsghdr *message = rtnl_message(buffer, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP);
	struct inet_diag_req_v2 *head = diag_message(message, sizeof *head);
	head->sdiag_family = family;
	head->sdiag_protocol = IPPROTO_TCP;
	head->idiag_states = ~0U;
	if (!error)
		error = rtnl_ask(&dump, message, end_one, &ending);
	return error ? error : ending.error;
}

int net_wash(const char **step)
{
	static const uint8_t families[] = {AF_INET, AF_INET6};
	int error = 0;
	*step = "end connections";
	for (size_t i = 0; i < sizeof families && !error; i++)
		error = end_connections(families[i]);
	if (error && error != -ENOENT &&
	    error != -EOPNOTSUPP) /* the kernel has no IPv6, or lacks this */
		return error;
	*step = "forget exceptions of routes";
	if ((error = net_forget_routes()))
		return error;
	*step = "forget TCP's metrics";
	return flush_metrics();
}
