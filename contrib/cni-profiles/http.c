#include "http.h"

#include "plugin.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { HEAD_MAX = 16384, BODY_MAX = 1 << 20 };

int connect_tcp(const char *who, const char *address, uint16_t port)
{
	struct sockaddr_in to = {
		.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = address_of(address)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
		refuse("cannot reach %s on %s:%d: %s", who, address, port, strerror(errno));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	return fd;
}

int connect_unix(const char *who, const char *path)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	snprintf(to.sun_path, sizeof to.sun_path, "%s", path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
		refuse("cannot reach %s on %s: %s", who, path, strerror(errno));
	return fd;
}

static size_t receive(int fd, char *to, size_t size)
{
	ssize_t n;
	do
		n = read(fd, to, size);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		refuse("the answer ended early: %s", n ? strerror(errno) : "the daemon hung up");
	return (size_t)n;
}

int request(int fd, const char *method, const char *path, const char *body, char **answer)
{
	char head[HEAD_MAX + 1] = "", *end = NULL;
	size_t used = 0;
	scoped_text asked = text_of(
		"%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
		"Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
		method, path, strlen(body), body);
	must(write_all(fd, asked, strlen(asked)), "ask %s %s", method, path);
	while (!end && used < HEAD_MAX) {
		used += receive(fd, head + used, HEAD_MAX - used);
		head[used] = 0;
		end = strstr(head, "\r\n\r\n");
	}
	const char *length = end ? strcasestr(head, "\r\nContent-Length:") : NULL;
	size_t whole = length && length < end ? strtoul(strchr(length, ':') + 1, NULL, 10) : 0;
	size_t got = end ? used - (size_t)(end + 4 - head) : 0;
	if (!end || whole > BODY_MAX || got > whole || !(*answer = malloc(whole + 1)))
		refuse("the answer to %s %s cannot be read", method, path);
	memcpy(*answer, end + 4, got);
	while (got < whole)
		got += receive(fd, *answer + got, whole - got);
	(*answer)[got] = 0;
	return strncmp(head, "HTTP/1.1 ", 9) ? 0 : atoi(head + 9);
}
