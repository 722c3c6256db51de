/* containerd-shim-firstlight-v1: connects containerd with the shim's server, which runs already.
 *
 *   containerd-shim-firstlight-v1 -namespace NAMESPACE -id ID [OPTION]... start|delete
 *
 * "start" prints where the server listens; everything else containerd asks it by ttrpc. "delete" has
 * the server end what is left of ID, and prints its DeleteResponse. The environment variable
 * FIRSTLIGHT_SHIM names the socket, by default /run/firstlight-shim/socket.
 *
 * containerd executes it twice for each pod and once for each container, so it is C, and static.
 */
#include "common/clock.h"
#include "common/socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEADER = 10, MESSAGE = 4096, SECONDS = 30, REQUEST = 1 };

static const char *const service = "firstlight.shim.Leftovers", *const method = "Delete";

struct text {
	unsigned char bytes[MESSAGE];
	size_t size;
};

static int fail(const char *what, const char *which)
{
	fprintf(stderr, "%s %s: %s\n", what, which, strerror(errno));
	return 1;
}

static int add_varint(struct text *to, uint64_t value)
{
	do {
		if (to->size == sizeof to->bytes)
			return -ENAMETOOLONG;
		to->bytes[to->size++] = (unsigned char)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
		value >>= 7;
	} while (value);
	return 0;
}

/* A field of bytes: https://protobuf.dev/programming-guides/encoding/ */
static int add_field(struct text *to, unsigned number, const void *bytes, size_t size)
{
	if (add_varint(to, number << 3 | 2) || add_varint(to, size) ||
	    to->size + size > sizeof to->bytes)
		return -ENAMETOOLONG;
	memcpy(to->bytes + to->size, bytes, size);
	to->size += size;
	return 0;
}

static int read_varint(const struct text *from, size_t *at, uint64_t *value)
{
	*value = 0;
	for (unsigned shift = 0; shift < 64; shift += 7) {
		if (*at == from->size)
			return -EBADMSG;
		unsigned char byte = from->bytes[(*at)++];
		*value |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80))
			return 0;
	}
	return -EBADMSG;
}

/* The payload of a ttrpc response, or its status. */
static int print_payload(const struct text *response)
{
	for (size_t at = 0; at < response->size;) {
		uint64_t key, size;
		if (read_varint(response, &at, &key) || (key & 7) != 2 ||
		    read_varint(response, &at, &size) || size > response->size - at)
			return -EBADMSG;
		if (key >> 3 == 1 && size)
			return -EREMOTEIO;
		if (key >> 3 == 2 && fwrite(response->bytes + at, 1, size, stdout) != size)
			return -EIO;
		at += size;
	}
	return fflush(stdout) ? -EIO : 0;
}

static int receive_all(int from, void *to, size_t size)
{
	for (size_t have = 0; have < size;) {
		ssize_t part = recv(from, (char *)to + have, size - have, 0);
		if (part < 0 && errno == EINTR)
			continue;
		if (part <= 0)
			return part ? -errno : -ECONNRESET;
		have += (size_t)part;
	}
	return 0;
}

static int delete (const char *path, const char *namespace, const char *id)
{
	struct text asked = {.size = 0}, request = {.size = 0}, response;
	unsigned char header[HEADER] = {0, 0, 0, 0, 0, 0, 0, 1, REQUEST, 0};
	int peer FILE_SCOPE =
		socket_connect(path, SOCK_STREAM, clock_longer(SECONDS * CLOCK_SECOND));
	if (peer < 0)
		return peer;
	int failed = add_field(&asked, 1, id, strlen(id));
	failed = failed ? failed : add_field(&asked, 2, namespace, strlen(namespace));
	failed = failed ? failed : add_field(&request, 1, service, strlen(service));
	failed = failed ? failed : add_field(&request, 2, method, strlen(method));
	failed = failed ? failed : add_field(&request, 3, asked.bytes, asked.size);
	if (failed)
		return failed;
	uint32_t length = htonl((uint32_t)request.size);
	memcpy(header, &length, sizeof length);
	struct iovec parts[] = {{header, HEADER}, {request.bytes, request.size}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	if (sendmsg(peer, &message, MSG_NOSIGNAL) != (ssize_t)(HEADER + request.size))
		return errno ? -errno : -EIO;
	failed = receive_all(peer, header, HEADER);
	memcpy(&length, header, sizeof length);
	response.size = ntohl(length);
	if (!failed && response.size > sizeof response.bytes)
		failed = -EMSGSIZE;
	failed = failed ? failed : receive_all(peer, response.bytes, response.size);
	return failed ? failed : print_payload(&response);
}

/* A containerd.types.RuntimeInfo: a name, and the runtime specification's features as an Any. containerd
 * 2.4 ends at the first recursive read-only mount where a runtime says nothing of them, and at an
 * idmapped one where "linux" is missing. */
static int print_info(void)
{
	static const char
		name[] = "io.containerd.firstlight.v1",
		type[] = "types.containerd.io/opencontainers/runtime-spec/1/features/Features",
		features[] = "{\"ociVersionMin\":\"1.0.0\",\"ociVersionMax\":\"1.2.0\","
			     "\"mountOptions\":[\"rro\"],\"linux\":{}}";
	struct text info = {.size = 0}, any = {.size = 0};
	(void)add_field(&any, 1, type, strlen(type));
	(void)add_field(&any, 2, features, strlen(features));
	(void)add_field(&info, 1, name, strlen(name));
	(void)add_field(&info, 4, any.bytes, any.size);
	if (fwrite(info.bytes, 1, info.size, stdout) != info.size || fflush(stdout))
		return fail("cannot write", "what the runtime can do");
	return 0;
}

int main(int count, char **words)
{
	const char *path = getenv("FIRSTLIGHT_SHIM"), *namespace = "", *id = "", *action = "";
	if (!path || !*path)
		path = "/run/firstlight-shim/socket";
	for (int each = 1; each < count; each++) {
		const char *word = words[each] + (words[each][0] == '-') +
				   (words[each][0] == '-' && words[each][1] == '-');
		if (word == words[each])
			action = word;
		else if (!strcmp(word, "debug") || !strcmp(word, "info") || !strcmp(word, "v"))
			action = strcmp(word, "debug") ? word : action;
		else if (each + 1 < count) {
			if (!strcmp(word, "namespace"))
			namespace = words[each + 1];
			else if (!strcmp(word, "id")) id = words[each + 1];
			each++;
		}
	}
	if (!strcmp(action, "start")) {
		int peer FILE_SCOPE =
			socket_connect(path, SOCK_STREAM, clock_longer(SECONDS * CLOCK_SECOND));
		if (peer < 0) {
			errno = -peer;
			return fail("firstlight's shim server does not listen at", path);
		}
		printf("{\"version\": 3, \"address\": \"unix://%s\", \"protocol\": \"ttrpc\"}",
		       path);
		return fflush(stdout) ? fail("cannot write", "the answer") : 0;
	}
	if (!strcmp(action, "delete")) {
		int failed = delete (path, namespace, id);
		errno = -failed;
		return failed ? fail("cannot have firstlight's shim server delete", id) : 0;
	}
	if (!strcmp(action, "info"))
		return print_info();
	if (!strcmp(action, "v")) {
		puts("containerd-shim-firstlight-v1");
		return 0;
	}
	fprintf(stderr,
		"usage: containerd-shim-firstlight-v1 -namespace NAMESPACE -id ID start|delete\n");
	return 2;
}
