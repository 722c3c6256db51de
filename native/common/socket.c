#include "common/socket.h"

#include "common/clock.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

void rights_close(struct rights *rights)
{
	for (int i = 0; i < rights->count; i++)
		descriptor_close(&rights->descriptors[i]);
	rights->count = 0;
}

_Static_assert(SOCKET_MAX == sizeof((struct sockaddr_un *)0)->sun_path - 1, "of a path");

int socket_send(int socket, const void *bytes, size_t size, const int *descriptors, int count)
{
	_Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int[RIGHTS_MAX]))] = {0};
	struct iovec part = {(void *)bytes, size};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	size_t rights = sizeof(int) * (size_t)count;
	if (count > RIGHTS_MAX)
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

/* All descriptors that arrived, also those beyond the maximum: padding may hold one more. */
static void take_rights(struct msghdr *message, struct rights *rights, int *beyond)
{
	struct cmsghdr *header = CMSG_FIRSTHDR(message); /* the kernel puts all into one */
	if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
		return;
	size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	for (size_t i = 0; i < count; i++) {
		int descriptor;
		memcpy(&descriptor, CMSG_DATA(header) + i * sizeof(int), sizeof descriptor);
		if (rights->count < RIGHTS_MAX) {
			rights->descriptors[rights->count++] = descriptor;
		} else {
			close(descriptor);
			*beyond = 1;
		}
	}
}

ssize_t socket_receive(int socket, void *to, size_t size, int flags, struct rights *rights)
{
	_Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int[RIGHTS_MAX]))];
	struct iovec part = {to, size};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = space,
				 .msg_controllen = sizeof space};
	ssize_t got;
	int beyond = 0;
	rights->count = 0;
	do
		got = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return -errno;
	take_rights(&message, rights, &beyond);
	if (beyond || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
		rights_close(rights);
		return -EMSGSIZE;
	}
	return got;
}

int socket_listen(const char *path, int type, int backlog)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener FILE_SCOPE = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	if (strlen(path) >= sizeof address.sun_path)
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, strlen(path) + 1);
	if (listener < 0 || (unlink(path) && errno != ENOENT))
		return -errno;
	mode_t before = umask(0177);
	int failed = bind(listener, (struct sockaddr *)&address, sizeof address) ? -errno : 0;
	umask(before);
	if (failed || listen(listener, backlog))
		return failed ? failed : -errno;
	return descriptor_take(&listener);
}

int socket_connect(const char *path, int type, int64_t patience)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval wait = {patience / CLOCK_SECOND, patience % CLOCK_SECOND / 1000};
	if (strlen(path) >= sizeof address.sun_path)
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, strlen(path) + 1);
	int connection FILE_SCOPE = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	if (connection < 0 || setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait) ||
	    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) ||
	    connect(connection, (struct sockaddr *)&address, sizeof address))
		return -errno;
	return descriptor_take(&connection);
}
