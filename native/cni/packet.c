#include "lab/echo.h"
#include "chain.h"
#include "json.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SHOWN_PATIENCE_MS = 3000, ADDRESS_MAX = 80 };

/* A member of a result's object, if it is an address of that family. */
static bool take(const char *object, const char *key, int family, char *text, size_t size)
{
	unsigned char address[16];
	const char *member = json_member(object, key);
	return member && inet_pton(family, json_text(member, text, size), address) == 1;
}

/* The first gateway of the result's addresses, or of its routes, of a family. */
static bool gateway(const char *result, int family, char *text, size_t size)
{
	static const char *const places[][2] = {{"ips", "gateway"}, {"routes", "gw"}};
	for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
		const char *all = json_member(result, places[i][0]), *one = NULL;
		while (all && (one = json_next(all, one)))
			if (take(one, places[i][1], family, text, size))
				return true;
	}
	return false;
}

/* Where the first packet goes: a gateway of IPv6 where there is none of IPv4. */
static bool destination(const struct request *request, char *text, size_t size)
{
	char found[ADDRESS_MAX] = "";
	const char *asked = request->packet ? request->packet : "gateway";
	if (strcmp(asked, "gateway"))
		snprintf(found, sizeof found, "%s", asked);
	else if (!request->result || (!gateway(request->result, AF_INET, found, sizeof found) &&
				      !gateway(request->result, AF_INET6, found, sizeof found)))
		return false;
	bool local = !strncasecmp(found, "fe80:", 5);
	snprintf(text, size, "%s%s%s", found, local ? "%" : "", local ? request->interface : "");
	return true;
}

static int no_gateway(void)
{
	return fail("no first packet: the result of ADD names no gateway");
}

/* Returns -1 with ``error`` where that is the start's failure. */
static int ask(struct request *request, const char *address)
{
	struct echo echo;
	scoped_fd home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	scoped_fd there = open(request->namespace, O_RDONLY | O_CLOEXEC);
	if (home < 0 || there < 0 || setns(there, CLONE_NEWNET))
		return request->until ? fail("cannot enter the namespace %s: %s", request->namespace,
					     strerror(errno)) : 0;
	int bad = echo_ask(address, request->until ? ECHO_PATIENCE_MS : SHOWN_PATIENCE_MS, &echo);
	if (setns(home, CLONE_NEWNET))
		return fail("cannot return from the namespace %s: %s", request->namespace,
			    strerror(errno));
	if (bad)
		return request->until ? fail("first packet: %s", echo.error) : 0;
	request->packet_start = echo.start;
	request->packet_end = echo.end;
	return 0;
}

int first_packet(struct request *request)
{
	char address[ADDRESS_MAX];
	if (!request->packet && !request->until)
		return 0;
	if (!destination(request, address, sizeof address))
		return request->until ? no_gateway() : 0;
	return ask(request, address);
}

int fill_destination(const struct request *request)
{
	static const char mark[] = "@GATEWAY@";
	char address[ADDRESS_MAX];
	if (!request->fill)
		return 0;
	if (!destination(request, address, sizeof address))
		return no_gateway();
	scoped_fd file = open(request->fill, O_RDWR | O_CLOEXEC);
	scoped_text text = file < 0 ? NULL : read_all(file);
	if (!text)
		return fail("cannot read %s: %s", request->fill, strerror(errno));
	char *at = strstr(text, mark);
	if (!at)
		return fail("%s has no %s", request->fill, mark);
	const char *rest = at + sizeof mark - 1;
	if (lseek(file, 0, SEEK_SET) || ftruncate(file, 0) ||
	    write_all(file, text, (size_t)(at - text)) ||
	    write_all(file, address, strlen(address)) || write_all(file, rest, strlen(rest)))
		return fail("cannot write the gateway into %s: %s", request->fill, strerror(errno));
	return 0;
}
