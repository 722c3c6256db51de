#include "http.h"

#include "common/http.h"
#include "common/socket.h"
#include "plugin.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEAD_MAX = 16384, BODY_MAX = 1 << 20 };

int connect_tcp(const char *who, const char *address, uint16_t port)
{
	struct sockaddr_in to = {
		.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = address_of(address)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
		cni_fail("cannot reach %s on %s:%d: %s", who, address, port, strerror(errno));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	return fd;
}

int connect_unix(const char *who, const char *path)
{
	int fd = socket_connect(path, SOCK_STREAM, 0);
	if (fd < 0)
		cni_fail("cannot reach %s on %s: %s", who, path, strerror(-fd));
	return fd;
}

static size_t receive(int fd, char *to, size_t size)
{
	ssize_t n;
	do
		n = read(fd, to, size);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		cni_fail("the answer ended early: %s", n ? strerror(errno) : "the daemon hung up");
	return (size_t)n;
}

int request(int fd, const char *method, const char *path, const char *body, char **answer)
{
	char head[HEAD_MAX + 1], asked[HEAD_MAX];
	struct http_answer got = {0};
	size_t used = 0;
	int size = http_request(asked, sizeof asked, method, path, body);
	if (size < 0)
		cni_fail("the request %s %s is too long", method, path);
	cni_check(process_write_all(fd, asked, (size_t)size), "ask %s %s", method, path);
	do {
		used += receive(fd, head + used, HEAD_MAX - used);
		head[used] = 0;
	} while (!http_parse(head, &got) && used < HEAD_MAX);
	size_t here = got.body ? used - (size_t)(got.body - head) : 0;
	if (!got.body || got.size > BODY_MAX || here > got.size ||
	    !(*answer = malloc(got.size + 1)))
		cni_fail("the answer to %s %s cannot be read", method, path);
	memcpy(*answer, got.body, here);
	while (here < got.size)
		here += receive(fd, *answer + here, got.size - here);
	(*answer)[here] = 0;
	return got.status;
}
