#include "common/netlink.h"

#include "common/cleanup.h"

#include <linux/rtnetlink.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

int netlink_open(unsigned groups)
{
	int opened FILE_SCOPE = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	struct sockaddr_nl local = {.nl_family = AF_NETLINK, .nl_groups = groups};
	if (opened < 0 || bind(opened, (struct sockaddr *)&local, sizeof local))
		return -errno;
	return descriptor_take(&opened);
}

int netlink_ask(int socket, const void *message)
{
	struct nlmsghdr header;
	struct {
		struct nlmsghdr header;
		struct nlmsgerr outcome;
		char rest[2048];
	} answer;
	ssize_t size;
	memcpy(&header, message, sizeof header);
	if (send(socket, message, header.nlmsg_len, 0) < 0)
		return -errno;
	do
		size = recv(socket, &answer, sizeof answer, 0);
	while (size < 0 && errno == EINTR);
	if (size < 0)
		return -errno;
	bool is_answer = size >= (ssize_t)NLMSG_LENGTH(sizeof answer.outcome) &&
			 answer.header.nlmsg_type == NLMSG_ERROR;
	return is_answer ? answer.outcome.error : -EPROTO;
}
