#include "lab/echo.h"

#include "common/cleanup.h"
#include "common/clock.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { AGAIN_MS = 100, SOON_MS = 1, PACKET_MAX = 1500 };
static const int64_t MS = CLOCK_SECOND / 1000;

union peer {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

/* ICMP's and ICMPv6's are alike but for the types. */
struct message {
	uint8_t type, code;
	uint16_t checksum, id, sequence;
};

struct asker {
	union peer to;
	int fd;
	bool is_raw, is_sent;
	struct message request;
	int wrong; /* the last errno of a send or of its answer */
};

static void free_links(struct ifaddrs **links)
{
	if (*links)
		freeifaddrs(*links);
}

static bool is_v6(const struct asker *asker)
{
	return asker->to.any.sa_family == AF_INET6;
}

static socklen_t size_of(const struct asker *asker)
{
	return is_v6(asker) ? sizeof asker->to.v6 : sizeof asker->to.v4;
}

static bool same(const union peer *a, const struct sockaddr *other)
{
	const union peer *b = (const union peer *)other;
	if (!b || a->any.sa_family != b->any.sa_family)
		return false;
	return a->any.sa_family == AF_INET6
		       ? !memcmp(&a->v6.sin6_addr, &b->v6.sin6_addr, sizeof a->v6.sin6_addr)
		       : a->v4.sin_addr.s_addr == b->v4.sin_addr.s_addr;
}

static int parse(const char *address, union peer *to)
{
	char text[64];
	snprintf(text, sizeof text, "%.*s", (int)strcspn(address, " "), address);
	char *scope = strchr(text, '%');
	if (scope)
		*scope++ = 0;
	memset(to, 0, sizeof *to);
	to->any.sa_family = strchr(text, ':') ? AF_INET6 : AF_INET;
	if (to->any.sa_family == AF_INET)
		return inet_pton(AF_INET, text, &to->v4.sin_addr) == 1 ? 0 : -EINVAL;
	to->v6.sin6_scope_id = scope ? if_nametoindex(scope) : 0;
	return inet_pton(AF_INET6, text, &to->v6.sin6_addr) == 1 ? 0 : -EINVAL;
}

static uint16_t checksum(const struct message *message)
{
	uint16_t words[sizeof *message / sizeof(uint16_t)];
	uint32_t sum = 0;
	memcpy(words, message, sizeof words);
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		sum += words[i];
	sum = (sum >> 16) + (sum & 0xffff);
	return (uint16_t) ~(sum + (sum >> 16));
}

/* Where not everybody may send (ping_group_range), CAP_NET_RAW may. */
static int open_socket(struct asker *asker)
{
	int family = asker->to.any.sa_family,
	    protocol = is_v6(asker) ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
	int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);
	if (fd < 0 && (errno == EACCES || errno == EPERM)) {
		fd = socket(family, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);
		asker->is_raw = true;
	}
	asker->request.type = is_v6(asker) ? 128 : 8;
	asker->request.id = htons((uint16_t)getpid());
	asker->request.checksum = is_v6(asker) ? 0 : checksum(&asker->request);
	return fd;
}

/* While an address is being probed for duplicates, or its link comes up, nothing can be sent from it;
 * the next try is soon. Returns when it is due. */
static int64_t send_request(struct asker *asker)
{
	if (connect(asker->fd, &asker->to.any, size_of(asker)) ||
	    send(asker->fd, &asker->request, sizeof asker->request, 0) < 0) {
		asker->wrong = errno;
		return clock_now() + SOON_MS * MS;
	}
	asker->is_sent = true;
	return clock_now() + AGAIN_MS * MS;
}

/* A raw socket receives everything that its peer sends, IPv4 packets with their header. */
static bool is_answer(const struct asker *asker, const unsigned char *packet, size_t size)
{
	struct message answer;
	size_t header = asker->is_raw && !is_v6(asker) ? (size_t)(packet[0] & 15) * 4 : 0;
	if (size < header + sizeof answer)
		return false;
	memcpy(&answer, packet + header, sizeof answer);
	return answer.type == (is_v6(asker) ? 129 : 0) &&
	       (!asker->is_raw || answer.id == asker->request.id);
}

static bool is_answered(struct asker *asker, int64_t until)
{
	unsigned char packet[PACKET_MAX];
	struct pollfd ready = {.fd = asker->fd, .events = POLLIN};
	int64_t left = until - clock_now();
	if (left > 0 && poll(&ready, 1, (int)((left + MS - 1) / MS)) <= 0)
		return false;
	ssize_t size = recv(asker->fd, packet, sizeof packet, 0);
	if (size < 0 && errno != EAGAIN && errno != EINTR)
		asker->wrong = errno;
	return size > 0 && is_answer(asker, packet, (size_t)size);
}

static const char *interface_of(const union peer *own, struct ifaddrs *links)
{
	for (struct ifaddrs *link = links; link; link = link->ifa_next)
		if (same(own, link->ifa_addr))
			return link->ifa_name;
	return "an interface without a name";
}

static int explain(const struct asker *asker, const char *address, int patience_ms,
		   struct error *error)
{
	struct ifaddrs *links __attribute__((cleanup(free_links))) = NULL;
	union peer own;
	socklen_t length = sizeof own;
	int width = (int)strcspn(address, " "), seconds = patience_ms / 1000;
	if (!asker->is_sent || getsockname(asker->fd, &own.any, &length) || getifaddrs(&links))
		return error_set(error, asker->wrong, "nothing could be sent to %.*s in %d s",
				 width, address, seconds);
	return error_set(error, asker->wrong, "%.*s did not answer on %s in %d s", width, address,
			 interface_of(&own, links), seconds);
}

static bool is_own(const struct asker *asker)
{
	union peer own;
	socklen_t length = sizeof own;
	return !getsockname(asker->fd, &own.any, &length) && same(&asker->to, &own.any);
}

int echo_ask(const char *address, int patience_ms, struct echo *echo, struct error *error)
{
	struct asker asker = {.fd = -1};
	if (parse(address, &asker.to))
		return error_set(error, 0, "%.64s is not an address", address);
	echo->start = clock_now();
	int fd FILE_SCOPE = asker.fd = open_socket(&asker);
	if (fd < 0)
		return error_set(error, errno, "cannot make a socket for ICMP");
	int64_t next = 0, until = echo->start + patience_ms * MS;
	while (clock_now() < until) {
		if (clock_now() >= next)
			next = send_request(&asker);
		if (!is_answered(&asker, next < until ? next : until))
			continue;
		echo->end = clock_now();
		if (!is_own(&asker))
			return 0;
		return error_set(error, 0, "%.64s is the instance's own address", address);
	}
	return explain(&asker, address, patience_ms, error);
}
