/* Reads the runtime's request from the environment and standard input. */
#include "cni/plugin.h"
#include "common/cleanup.h"
#include "common/clock.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { SECONDS = 30, SECONDS_MAX = 600 };

const char *const call_versions[] = {"0.4.0", "1.0.0", "1.1.0", NULL};

/* Letters and digits, and after the first also _ . - */
static bool is_identifier(const char *text)
{
	if (!isalnum((unsigned char)*text))
		return false;
	while (*text && (isalnum((unsigned char)*text) || strchr("_.-", *text)))
		text++;
	return !*text;
}

static bool is_interface(const char *text)
{
	size_t length = strlen(text);
	if (!length || length >= AGENT_INTERFACE || !strcmp(text, ".") || !strcmp(text, ".."))
		return false;
	for (; *text; text++)
		if (strchr("/:%", *text) || isspace((unsigned char)*text))
			return false; /* the kernel would replace % by a number */
	return true;
}

static int fit(struct call *call, int code, const char *what, const char *text, char *to,
	       size_t size)
{
	if (strlen(text) >= size)
		return CALL_FAIL(call, code, 0, "%s is longer than %zu bytes", what, size - 1);
	strcpy(to, text);
	return 0;
}

/* The pod's names; the rest of CNI_ARGS is for others. */
static int load_args(struct call *call)
{
	struct agent_request *request = &call->request;
	const struct {
		const char *key;
		char *to;
		size_t size;
	} known[] = {
		{"K8S_POD_NAMESPACE", request->pod_namespace, sizeof request->pod_namespace},
		{"K8S_POD_NAME", request->pod, sizeof request->pod},
		{"K8S_POD_UID", request->pod_uid, sizeof request->pod_uid},
	};
	char *rest = getenv("CNI_ARGS"), *pair; /* nothing reads it afterwards */
	while ((pair = strsep(&rest, ";"))) {
		char *value = strchr(pair, '=');
		if (!*pair)
			continue;
		if (!value || value == pair)
			return CALL_FAIL(call, CALL_BAD_ENVIRONMENT, 0,
					 "CNI_ARGS has %s, which is not NAME=VALUE", pair);
		*value++ = 0;
		for (size_t i = 0; i < sizeof known / sizeof *known; i++)
			if (!strcmp(pair, known[i].key) && fit(call, CALL_BAD_ENVIRONMENT, pair,
							       value, known[i].to, known[i].size))
				return -EINVAL;
	}
	return 0;
}

static int load_attachment(struct call *call)
{
	const char *container = getenv("CNI_CONTAINERID"), *interface = getenv("CNI_IFNAME");
	struct agent_attachment *to = &call->request.attachment;
	bool needs_namespace = strcmp(call->command, "DEL");
	call->namespace = getenv("CNI_NETNS");
	if (!container || !is_identifier(container))
		return CALL_FAIL(
			call, CALL_BAD_ENVIRONMENT, 0,
			"CNI_CONTAINERID is not a letter or digit, and more of them or _.-");
	if (!interface || !is_interface(interface))
		return CALL_FAIL(call, CALL_BAD_ENVIRONMENT, 0,
				 "CNI_IFNAME is not 1 to 15 bytes without / : %% and white space");
	if (needs_namespace && (!call->namespace || !*call->namespace))
		return CALL_FAIL(call, CALL_BAD_ENVIRONMENT, 0, "CNI_NETNS is not set");
	strcpy(to->interface, interface);
	int bad = fit(call, CALL_BAD_ENVIRONMENT, "CNI_CONTAINERID", container, to->container,
		      sizeof to->container);
	return bad ? bad : load_args(call);
}

/* A null member counts as absent, as in plugins that decode a structure. */
static void drop_nulls(cJSON *object)
{
	cJSON *member = object->child, *next;
	for (; member; member = next) {
		next = member->next;
		if (cJSON_IsNull(member))
			cJSON_Delete(cJSON_DetachItemViaPointer(object, member));
	}
}

/* A member that is a string; NULL if it is not there. */
static int text_member(struct call *call, const char *key, const char **text)
{
	const cJSON *member = cJSON_GetObjectItemCaseSensitive(call->conf, key);
	*text = cJSON_GetStringValue(member);
	if (member && !*text)
		return CALL_FAIL(call, CALL_BAD_CONF, 0, "%s is not a string", key);
	return 0;
}

static int load_version(struct call *call)
{
	const char *version;
	if (text_member(call, "cniVersion", &version))
		return -EINVAL;
	for (size_t i = 0; version && call_versions[i]; i++)
		if (!strcmp(version, call_versions[i]))
			call->version = version;
	if (call->version || !strcmp(call->command, "VERSION"))
		return 0;
	return CALL_FAIL(call, CALL_BAD_VERSION, 0,
			 "cniVersion %s is not supported: use 0.4.0, 1.0.0 or 1.1.0",
			 version ? version : "is missing, and none");
}

static int load_way(struct call *call)
{
	static const char *const WAYS[] = {
		[CALL_AUTO] = "auto", [CALL_REPLACE] = "replace", [CALL_FILL] = "fill"};
	const char *way;
	if (text_member(call, "namespace", &way))
		return -EINVAL;
	if (!way)
		return 0;
	for (size_t i = 0; i < sizeof WAYS / sizeof *WAYS; i++)
		if (!strcmp(way, WAYS[i])) {
			call->way = (enum call_way)i;
			return 0;
		}
	return CALL_FAIL(call, CALL_BAD_CONF, 0, "namespace is %s: use auto, replace or fill", way);
}

/* Whether a member is empty: absent, null, "", [] or {}. */
static bool is_empty(const cJSON *member)
{
	return !member || cJSON_IsNull(member) ||
	       (cJSON_IsString(member) && !*member->valuestring) ||
	       ((cJSON_IsArray(member) || cJSON_IsObject(member)) && !member->child);
}

/* A member that is an object; NULL if it is not there. */
static int object_member(struct call *call, const char *key, const cJSON **object)
{
	*object = cJSON_GetObjectItemCaseSensitive(call->conf, key);
	if (*object && !cJSON_IsObject(*object))
		return CALL_FAIL(call, CALL_BAD_CONF, 0, "%s is not an object", key);
	return 0;
}

/* What goes into the result unchanged, and is then read by the runtime. */
static int check_dns(struct call *call, const cJSON *dns)
{
	const cJSON *member, *each;
	cJSON_ArrayForEach(member, dns)
	{
		bool is_text = !strcmp(member->string, "domain");
		if (!is_text && strcmp(member->string, "nameservers") &&
		    strcmp(member->string, "search") && strcmp(member->string, "options"))
			continue;
		if (cJSON_IsNull(member) || (is_text && cJSON_IsString(member)))
			continue;
		bool is_wrong = is_text || !cJSON_IsArray(member);
		cJSON_ArrayForEach(each, member) is_wrong |= !cJSON_IsString(each);
		if (is_wrong)
			return CALL_FAIL(call, CALL_BAD_CONF, 0, "dns.%s is not %s", member->string,
					 is_text ? "a string" : "a list of strings");
	}
	return 0;
}

/* A caller that requests an address must not get another one. */
static int refuse_wishes(struct call *call, const cJSON *wishes)
{
	static const char *const WISHES[] = {"ips", "mac"};
	for (size_t i = 0; i < sizeof WISHES / sizeof *WISHES; i++)
		if (!is_empty(cJSON_GetObjectItemCaseSensitive(wishes, WISHES[i])))
			return CALL_FAIL(
				call, CALL_BAD_CONF, 0,
				"runtimeConfig.%s: addresses are the agent's; leave out the "
				"capability %s",
				WISHES[i], WISHES[i]);
	return 0;
}

static int load_conf(struct call *call)
{
	const cJSON *seconds = cJSON_GetObjectItemCaseSensitive(call->conf, "seconds");
	const cJSON *dns, *previous, *ipam, *wishes;
	const char *name, *socket;
	double wait = seconds ? cJSON_GetNumberValue(seconds) : SECONDS;
	if (text_member(call, "name", &name) || text_member(call, "socket", &socket) ||
	    load_way(call) || object_member(call, "dns", &dns) || check_dns(call, dns) ||
	    object_member(call, "prevResult", &previous) || object_member(call, "ipam", &ipam) ||
	    object_member(call, "runtimeConfig", &wishes))
		return -EINVAL;
	if (!name || !is_identifier(name))
		return CALL_FAIL(call, CALL_BAD_CONF, 0,
				 "name is not a letter or digit, and more of them or _.-");
	socket = socket ? socket : "/run/firstlight-agile/pods/socket";
	if (*socket != '/')
		return CALL_FAIL(call, CALL_BAD_CONF, 0, "socket %s is not an absolute path",
				 socket);
	if (!(wait > 0 && wait <= SECONDS_MAX))
		return CALL_FAIL(call, CALL_BAD_CONF, 0, "seconds is not a number up to %d",
				 SECONDS_MAX);
	if (!is_empty(ipam))
		return CALL_FAIL(call, CALL_BAD_CONF, 0,
				 "ipam is not used: addresses are the agent's; leave it out");
	if (!strcmp(call->command, "ADD") && refuse_wishes(call, wishes))
		return -EINVAL;
	if (previous && !strcmp(call->command, "ADD"))
		return CALL_FAIL(call, CALL_BAD_CONF, 0,
				 "it is not the first plugin of its list: put it first");
	call->deadline = clock_now() + (int64_t)(wait * 1e9);
	int bad = fit(call, CALL_BAD_CONF, "socket", socket, call->socket, sizeof call->socket);
	return bad ? bad
		   : fit(call, CALL_BAD_CONF, "name", name, call->request.network,
			 sizeof call->request.network);
}

static int read_conf(struct call *call)
{
	enum { CONF_MAX = 1 << 20 };
	static char text[CONF_MAX + 1]; /* memory that is not used is not mapped */
	size_t length = 0;
	ssize_t n;
	while ((n = read(STDIN_FILENO, text + length, CONF_MAX - length)) != 0) {
		if (n < 0 && errno != EINTR)
			return CALL_FAIL(call, CALL_IO, errno, "cannot read the configuration");
		length += n > 0 ? (size_t)n : 0;
	}
	if (length == CONF_MAX)
		return CALL_FAIL(call, CALL_IO, EFBIG, "cannot read the configuration");
	if (strlen(text) == length)
		call->conf = cJSON_ParseWithLengthOpts(text, length + 1, NULL, true);
	if (!cJSON_IsObject(call->conf))
		return CALL_FAIL(call, CALL_BAD_JSON, 0, "the configuration is not a JSON object");
	drop_nulls(call->conf);
	return 0;
}

int call_load(struct call *call)
{
	static const struct {
		const char *command;
		enum agent_verb verb;
		bool attachment;
	} COMMANDS[] = {
		{"ADD", AGENT_ADD, true},        {"DEL", AGENT_DEL, true},
		{"CHECK", AGENT_CHECK, true},    {"GC", AGENT_GC, false},
		{"STATUS", AGENT_STATUS, false}, {"VERSION", 0, false},
	};
	bool attachment = false;
	const char *command = getenv("CNI_COMMAND");
	for (size_t i = 0; command && i < sizeof COMMANDS / sizeof *COMMANDS; i++)
		if (!strcmp(command, COMMANDS[i].command)) {
			call->command = COMMANDS[i].command;
			call->request.verb = COMMANDS[i].verb;
			attachment = COMMANDS[i].attachment;
		}
	call->request.magic = AGENT_MAGIC;
	if (!call->command)
		return CALL_FAIL(call, CALL_BAD_ENVIRONMENT, 0,
				 "CNI_COMMAND is %s: ADD, DEL, CHECK, GC, STATUS or VERSION",
				 command ? command : "not set");
	int bad = read_conf(call);
	bad = bad ? bad : load_version(call);
	if (bad || !strcmp(call->command, "VERSION"))
		return bad;
	bad = attachment ? load_attachment(call) : 0;
	return bad ? bad : load_conf(call);
}
