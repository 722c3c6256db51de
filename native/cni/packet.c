/* Sends an attached pod's first packet, from inside its network namespace. */
#include "cni/chain.h"
#include "common/cleanup.h"
#include "common/process.h"
#include "lab/echo.h"

#include <arpa/inet.h>
#include <cJSON.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { SHOWN_PATIENCE_MS = 3000, ADDRESS_MAX = 80 };

/* The first gateway of a family that the result's addresses name, or else its routes. */
static const char *gateway(const cJSON *result, int family)
{
	static const char *const places[][2] = {{"ips", "gateway"}, {"routes", "gw"}};
	unsigned char address[16];
	for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
		const cJSON *entry;
		cJSON_ArrayForEach(entry, cJSON_GetObjectItemCaseSensitive(result, places[i][0]))
		{
			const char *text = cJSON_GetStringValue(
				cJSON_GetObjectItemCaseSensitive(entry, places[i][1]));
			if (text && inet_pton(family, text, address) == 1)
				return text;
		}
	}
	return NULL;
}

/* Where the first packet goes: a gateway of IPv6 where there is none of IPv4. */
static int destination(struct chain *chain, char *text, size_t size, struct error *error)
{
	const char *asked = chain->packet ? chain->packet : "gateway";
	cJSON *result = chain->result ? cJSON_Parse(chain->result) : NULL;
	if (!strcmp(asked, "gateway"))
		asked = gateway(result, AF_INET);
	if (!asked)
		asked = gateway(result, AF_INET6);
	bool local = asked && !strncasecmp(asked, "fe80:", 5);
	if (asked)
		snprintf(text, size, "%s%s%s", asked, local ? "%" : "",
			 local ? chain->interface : "");
	cJSON_Delete(result);
	return asked ? 0
		     : error_set(error, 0, "no first packet: the result of ADD names no gateway");
}

static int ask_inside(struct chain *chain, const char *address, struct error *error)
{
	struct echo echo = {0};
	struct error why = {0};
	int home FILE_SCOPE = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	int there FILE_SCOPE = open(chain->namespace, O_RDONLY | O_CLOEXEC);
	if (home < 0 || there < 0 || setns(there, CLONE_NEWNET))
		return error_set(error, errno, "cannot enter the namespace %s", chain->namespace);
	int patience = chain->until ? ECHO_PATIENCE_MS : SHOWN_PATIENCE_MS;
	int bad = echo_ask(address, patience, &echo, &why);
	if (setns(home, CLONE_NEWNET))
		return error_set(&chain->error, errno, "cannot return from the namespace %s",
				 chain->namespace);
	if (bad)
		return error_set(error, 0, "first packet: %s", why.text);
	chain->packet_start = echo.start;
	chain->packet_end = echo.end;
	return 0;
}

int chain_first_packet(struct chain *chain)
{
	char address[ADDRESS_MAX];
	struct error shown = {0}, *error = chain->until ? &chain->error : &shown;
	if (!chain->packet && !chain->until)
		return 0;
	if (!destination(chain, address, sizeof address, error))
		ask_inside(chain, address, error);
	return -chain->error.code;
}

int chain_fill_gateway(struct chain *chain)
{
	static const char mark[] = "@GATEWAY@";
	char address[ADDRESS_MAX], *text FREE_SCOPE = NULL;
	if (!chain->fill)
		return 0;
	int bad = destination(chain, address, sizeof address, &chain->error);
	if (bad)
		return bad;
	int file FILE_SCOPE = open(chain->fill, O_RDWR | O_CLOEXEC);
	int length = file < 0 ? -errno : process_read_all(file, &text);
	if (length < 0)
		return error_set(&chain->error, -length, "cannot read %s", chain->fill);
	const char *at = strstr(text, mark);
	if (!at)
		return error_set(&chain->error, 0, "%s has no %s", chain->fill, mark);
	const char *rest = at + sizeof mark - 1;
	if (lseek(file, 0, SEEK_SET) || ftruncate(file, 0))
		bad = -errno;
	bad = bad ? bad : process_write_all(file, text, (size_t)(at - text));
	bad = bad ? bad : process_write_all(file, address, strlen(address));
	bad = bad ? bad : process_write_all(file, rest, strlen(rest));
	return bad ? error_set(&chain->error, -bad, "cannot write the gateway into %s", chain->fill)
		   : 0;
}
