/* firstlight: the CNI plugin that takes a pod's network from the node's pool.
 *
 * On ADD, the node's agent hands over a finished network namespace: link, addresses, routes. It replaces
 * the one at CNI_NETNS. Where that is impossible, the agent makes the link in the existing one.
 * Specification: https://www.cni.dev/docs/spec, 1.1.0, 1.0.0 and 0.4.0.
 *
 * It is C because a pod waits for it: an interpreter takes longer to start than all of its work.
 */
#include "cni/plugin.h"
#include "common/cleanup.h"
#include "common/process.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static void delete_json(cJSON **json)
{
	cJSON_Delete(*json);
}
#define JSON_SCOPE __attribute__((cleanup(delete_json)))

/* Memory for cJSON. What an ordinary call needs is there from the start: mapping and unmapping it
 * costs a tenth of the call. */
enum { ALIGNMENT = 16, ARENA = 32768 };
static _Alignas(ALIGNMENT) char arena[ARENA];

static void *allocate(size_t size)
{
	static size_t used;
	size_t whole = (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
	if (whole < size || whole > ARENA - used)
		return malloc(size);
	used += whole;
	return arena + used - whole;
}

static void release(void *memory)
{
	uintptr_t at = (uintptr_t)memory, first = (uintptr_t)arena;
	if (at < first || at >= first + ARENA)
		free(memory);
}

static int print(cJSON *json)
{
	char *text = cJSON_PrintUnformatted(json);
	if (!text)
		return -ENOMEM;
	size_t length = strlen(text);
	text[length] = '\n'; /* in one write: the reader may leave after the first */
	int bad = process_write_all(STDOUT_FILENO, text, length + 1);
	release(text);
	return bad;
}

static void add_interface(cJSON *to, const char *name, const uint8_t *mac, const char *sandbox,
			  uint32_t mtu)
{
	char text[18];
	cJSON *interface = cJSON_CreateObject();
	snprintf(text, sizeof text, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3],
		 mac[4], mac[5]);
	cJSON_AddStringToObject(interface, "name", name);
	cJSON_AddStringToObject(interface, "mac", text);
	if (mtu)
		cJSON_AddNumberToObject(interface, "mtu", mtu);
	if (sandbox)
		cJSON_AddStringToObject(interface, "sandbox", sandbox);
	cJSON_AddItemToArray(to, interface);
}

static void add_ip(const struct call *call, cJSON *ips, cJSON *routes, int family,
		   const void *address, const void *gateway)
{
	bool is_four = family == AF_INET;
	char text[INET6_ADDRSTRLEN + 4], by[INET6_ADDRSTRLEN];
	cJSON *ip = cJSON_CreateObject(), *route = cJSON_CreateObject();
	inet_ntop(family, address, text, INET6_ADDRSTRLEN);
	inet_ntop(family, gateway, by, sizeof by);
	strcat(text, is_four ? "/32" : "/128");
	if (!strcmp(call->version, "0.4.0"))
		cJSON_AddStringToObject(ip, "version", is_four ? "4" : "6");
	cJSON_AddNumberToObject(ip, "interface", 1);
	cJSON_AddStringToObject(ip, "address", text);
	cJSON_AddStringToObject(ip, "gateway", by);
	cJSON_AddItemToArray(ips, ip);
	cJSON_AddStringToObject(route, "dst", is_four ? "0.0.0.0/0" : "::/0");
	cJSON_AddStringToObject(route, "gw", by);
	cJSON_AddItemToArray(routes, route);
}

/* The key firstlight is the plugin's own: what happened to the namespace, and why. */
static int print_result(struct call *call, const struct agent_answer *answer, const char *filled)
{
	cJSON *result JSON_SCOPE = cJSON_CreateObject();
	const cJSON *dns = cJSON_GetObjectItemCaseSensitive(call->conf, "dns");
	uint32_t mtu = strcmp(call->version, "1.1.0") ? 0 : answer->mtu;
	cJSON_AddStringToObject(result, "cniVersion", call->version);
	cJSON *interfaces = cJSON_AddArrayToObject(result, "interfaces");
	add_interface(interfaces, answer->link, answer->host_mac, NULL, mtu);
	add_interface(interfaces, call->request.attachment.interface, answer->mac, call->namespace,
		      mtu);
	cJSON *ips = cJSON_AddArrayToObject(result, "ips");
	cJSON *routes = cJSON_AddArrayToObject(result, "routes");
	add_ip(call, ips, routes, AF_INET, &answer->address, &answer->gateway);
	if (answer->flags & AGENT_IPV6)
		add_ip(call, ips, routes, AF_INET6, &answer->address6, &answer->gateway6);
	cJSON_AddItemToObject(result, "dns",
			      dns ? cJSON_Duplicate(dns, true) : cJSON_CreateObject());
	cJSON *ours = cJSON_AddObjectToObject(result, "firstlight");
	cJSON_AddStringToObject(ours, "namespace", filled ? "filled" : "replaced");
	if (filled)
		cJSON_AddStringToObject(ours, "because", filled);
	return print(result) ? CALL_FAIL(call, CALL_IO, EIO, "cannot write the result") : 0;
}

static int add(struct call *call)
{
	struct agent_answer answer = {0};
	int given FILE_SCOPE = -1, prepared FILE_SCOPE = -1;
	const char *obstacle;
	bool is_attached;
	int bad = call_enter(call, &given, &obstacle, &is_attached);
	if (bad)
		return bad;
	if (is_attached)
		return CALL_FAIL(call, CALL_ATTACHED, 0, "CNI_NETNS %s already has %s",
				 call->namespace, call->request.attachment.interface);
	if (call->way == CALL_REPLACE && obstacle)
		return CALL_FAIL(call, CALL_NAMESPACE, 0, "CNI_NETNS %s cannot be replaced: %s",
				 call->namespace, obstacle);
	if (call->way == CALL_FILL)
		obstacle = "the configuration says so";
	if (!obstacle) {
		bad = call_agent(call, true, -1, &answer, &prepared);
		bad = bad ? bad : call_carry(call, prepared);
		bad = bad ? bad : call_replace(call, prepared);
		if (!bad)
			return print_result(call, &answer, NULL);
		if (bad != -EOPNOTSUPP || call->error.code)
			return bad;
		obstacle = "the kernel cannot mount it there";
		if (call->way == CALL_REPLACE)
			return CALL_FAIL(call, CALL_NAMESPACE, 0,
					 "CNI_NETNS %s cannot be replaced: %s", call->namespace,
					 obstacle);
	}
	int none FILE_SCOPE = -1;
	call->request.flags = AGENT_FILL;
	bad = call_agent(call, true, given, &answer, &none);
	return bad ? bad : print_result(call, &answer, obstacle);
}

/* Succeeds without the agent, too: it notices that the link is gone, and frees the address. */
static int del(struct call *call)
{
	struct agent_answer answer;
	int none FILE_SCOPE = -1;
	int bad = call_agent(call, false, -1, &answer, &none);
	if (bad == -ENOTCONN && !call->error.code)
		bad = call_delete(call);
	return bad ? bad : call_uncover(call);
}

static bool has_ip(const cJSON *previous, int family, const void *address)
{
	char text[INET6_ADDRSTRLEN];
	const cJSON *ip;
	inet_ntop(family, address, text, sizeof text);
	size_t length = strlen(text);
	cJSON_ArrayForEach(ip, cJSON_GetObjectItemCaseSensitive(previous, "ips"))
	{
		const char *other =
			cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(ip, "address"));
		if (other && !strncmp(other, text, length) && other[length] == '/')
			return true;
	}
	return false;
}

static int check(struct call *call)
{
	struct agent_answer answer;
	const cJSON *previous = cJSON_GetObjectItemCaseSensitive(call->conf, "prevResult");
	int given FILE_SCOPE = -1, none FILE_SCOPE = -1;
	const char *obstacle;
	bool is_attached; /* call_check says it better */
	if (!previous)
		return CALL_FAIL(call, CALL_BAD_CONF, 0, "CHECK needs prevResult");
	int bad = call_enter(call, &given, &obstacle, &is_attached);
	bad = bad ? bad : call_agent(call, true, -1, &answer, &none);
	if (bad)
		return bad;
	if (!has_ip(previous, AF_INET, &answer.address) ||
	    (answer.flags & AGENT_IPV6 && !has_ip(previous, AF_INET6, &answer.address6)))
		return CALL_FAIL(call, CALL_WRONG, 0, "prevResult does not have the pod's address");
	return call_check(call, &answer);
}

static int list_attachments(struct call *call, const cJSON *known, int to)
{
	const cJSON *each;
	cJSON_ArrayForEach(each, known)
	{
		struct agent_attachment record = {0};
		const char *container =
			cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(each, "containerID"));
		const char *interface =
			cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(each, "ifname"));
		if (!container || strlen(container) >= sizeof record.container || !interface ||
		    strlen(interface) >= sizeof record.interface)
			return CALL_FAIL(call, CALL_BAD_CONF, 0,
					 "an attachment is not a containerID and an ifname");
		strcpy(record.container, container);
		strcpy(record.interface, interface);
		if (write(to, &record, sizeof record) != sizeof record)
			return CALL_FAIL(call, CALL_IO, errno, "cannot list the attachments");
	}
	return 0;
}

/* Without a list, as cnitool calls it, only what has ended is collected. */
static int collect(struct call *call)
{
	struct agent_answer answer;
	int list FILE_SCOPE = -1, none FILE_SCOPE = -1;
	const cJSON *known =
		cJSON_GetObjectItemCaseSensitive(call->conf, "cni.dev/valid-attachments");
	if (!known)
		known = cJSON_GetObjectItemCaseSensitive(call->conf, "cni.dev/attachments");
	if (known && !cJSON_IsNull(known)) {
		if (!cJSON_IsArray(known))
			return CALL_FAIL(call, CALL_BAD_CONF, 0,
					 "cni.dev/valid-attachments is not a list");
		list = memfd_create("attachments", MFD_CLOEXEC);
		if (list < 0)
			return CALL_FAIL(call, CALL_IO, errno, "cannot list the attachments");
		int bad = list_attachments(call, known, list);
		if (bad)
			return bad;
	}
	return call_agent(call, true, list, &answer, &none);
}

static int status(struct call *call)
{
	struct agent_answer answer;
	int none FILE_SCOPE = -1;
	int bad = call_agent(call, false, -1, &answer, &none);
	if (bad == -ENOTCONN && !call->error.code)
		return CALL_FAIL(
			call, CALL_UNAVAILABLE, 0,
			"firstlight's agent does not listen at %s: is its DaemonSet running?",
			call->socket);
	return bad;
}

static int version(struct call *call)
{
	cJSON *result JSON_SCOPE = cJSON_CreateObject();
	const cJSON *asked = cJSON_GetObjectItemCaseSensitive(call->conf, "cniVersion");
	int count = 0;
	while (call_versions[count])
		count++;
	cJSON_AddStringToObject(result, "cniVersion",
				cJSON_IsString(asked) ? asked->valuestring
						      : call_versions[count - 1]);
	cJSON_AddItemToObject(result, "supportedVersions",
			      cJSON_CreateStringArray(call_versions, count));
	return print(result) ? CALL_FAIL(call, CALL_IO, EIO, "cannot write the result") : 0;
}

static void print_error(const struct call *call)
{
	cJSON *error JSON_SCOPE = cJSON_CreateObject();
	cJSON_AddStringToObject(error, "cniVersion", call->version ? call->version : "1.0.0");
	cJSON_AddNumberToObject(error, "code", call->code);
	cJSON_AddStringToObject(error, "msg", call->error.text);
	(void)print(error); /* the exit status says it, too */
}

int main(void)
{
	static struct call call;
	static const struct {
		const char *command;
		int (*run)(struct call *call);
	} COMMANDS[] = {
		{"ADD", add},    {"DEL", del},       {"CHECK", check},
		{"GC", collect}, {"STATUS", status}, {"VERSION", version},
	};
	cJSON_InitHooks(&(cJSON_Hooks){allocate, release});
	int bad = call_load(&call);
	for (size_t i = 0; !bad && i < sizeof COMMANDS / sizeof *COMMANDS; i++)
		if (!strcmp(call.command, COMMANDS[i].command))
			bad = COMMANDS[i].run(&call);
	if (bad)
		print_error(&call);
	cJSON_Delete(call.conf);
	return bad ? 1 : 0;
}
