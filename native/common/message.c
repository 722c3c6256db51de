#include "common/message.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int message_send(int socket, const void *bytes, size_t size, const int *descriptors, int count)
{
	_Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int[MESSAGE_DESCRIPTORS]))] = {0};
	struct iovec part = {(void *)bytes, size};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	size_t rights = sizeof(int) * (size_t)count;
	if (count > MESSAGE_DESCRIPTORS)
		return -EINVAL;
	if (count > 0) {
		message.msg_control = space;
		message.msg_controllen = (socklen_t)CMSG_SPACE(rights);
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = (socklen_t)CMSG_LEN(rights);
		memcpy(CMSG_DATA(header), descriptors, rights);
	}
	while (sendmsg(socket, &message, MSG_NOSIGNAL) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

int message_is(const char *message, const char *type)
{
	char tag[64];
	int length = snprintf(tag, sizeof tag, "{\"type\":\"%s\"", type);
	return !strncmp(message, tag, (size_t)length);
}

long long message_number(const char *message, const char *key)
{
	char tag[64];
	int length = snprintf(tag, sizeof tag, "\"%s\":", key);
	const char *at = strstr(message, tag);
	return at ? strtoll(at + length, NULL, 10) : 0;
}
