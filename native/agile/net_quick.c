#include "net_quick.h"
#include "../common/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 2048 }; /* the kernel allocates and clears as much as is asked for of a sysctl */

static int own = -1; /* our directory in /proc, which takes as long to find as a file in it */

int net_quick_open(void)
{
	own = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
	return own < 0 ? -errno : 0;
}

void net_add(uint64_t *digest, const void *bytes, size_t size) /* FNV-1a */
{
	const unsigned char *at = bytes;
	while (size--)
		*digest = (*digest ^ *at++) * 1099511628211ULL;
}

size_t net_read(int directory, const char *name, char *text)
{
	size_t size = 0;
	ssize_t part = 1;
	int file FILE_SCOPE = openat(directory, name, O_RDONLY | O_CLOEXEC);
	while (file >= 0 && part > 0 && size < NET_TEXT_MAX - 1) {
		size_t room = NET_TEXT_MAX - 1 - size;
		part = read(file, text + size, room < PIECE ? room : PIECE);
		if (part > 0)
			size += (size_t)part;
	}
	text[size] = 0;
	return size;
}

int net_sockets(uint64_t *sockets)
{
	char text[64];
	int file FILE_SCOPE = openat(own, "net/sockstat", O_RDONLY | O_CLOEXEC);
	ssize_t size = file < 0 ? -1 : read(file, text, sizeof text - 1);
	if (size < 0)
		return -errno;
	text[size] = 0;
	return sscanf(text, "sockets: used %" SCNu64, sockets) == 1 ? 0 : -EPROTO;
}

/* Counters change with every packet and with most failed calls. What takes a capability to change is
 * not read: no instance has one. */
int net_quick_digest(uint64_t *digest)
{
	static const char *const names[] = {"net/dev", "net/snmp"};
	static char text[NET_TEXT_MAX];
	*digest = NET_EMPTY;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		net_add(digest, text, net_read(own, names[i], text));
	return 0;
}

int net_forget_routes(void)
{
	int file FILE_SCOPE = open("/proc/sys/net/ipv4/route/flush", O_WRONLY | O_CLOEXEC);
	return file >= 0 && write(file, "1", 1) == 1 ? 0 : -errno;
}
