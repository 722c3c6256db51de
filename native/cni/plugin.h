/* One call of the CNI plugin: the runtime's request, and its result.
 *
 * Functions return 0, or a negative errno with the reason in the call.
 */
#ifndef FIRSTLIGHT_PLUGIN_H
#define FIRSTLIGHT_PLUGIN_H

#include "cni/agent.h"
#include "common/error.h"

#include <cJSON.h>
#include <stdbool.h>
#include <stdint.h>

/* https://www.cni.dev/docs/spec/#error; from 100 on, the plugin's own. */
enum call_code {
	CALL_BAD_VERSION = 1,
	CALL_UNKNOWN_CONTAINER = 3,
	CALL_BAD_ENVIRONMENT = 4,
	CALL_IO = 5,
	CALL_BAD_JSON = 6,
	CALL_BAD_CONF = 7,
	CALL_TRY_AGAIN = 11,
	CALL_UNAVAILABLE = 50,
	CALL_NAMESPACE = 100, /* cannot be replaced, or entered */
	CALL_ATTACHED = 101, /* the interface is there already */
	CALL_WRONG = 102, /* CHECK: it has changed since it was made */
};

enum call_way { CALL_AUTO, CALL_REPLACE, CALL_FILL };

struct call {
	const char *command, *namespace; /* CNI_COMMAND, CNI_NETNS */
	cJSON *conf;
	const char *version; /* of the configuration, if it is one of ours */
	char socket[108];
	enum call_way way; /* what ADD does with the namespace */
	int64_t deadline; /* of the agent's answer */
	struct agent_request request;
	int code;
	struct error error;
};

/* Records the first failure: the specification's code, and what error_set takes. */
#define CALL_FAIL(call, number, ...) \
	(!(call)->error.code ? (call)->code = (number) : 0, error_set(&(call)->error, __VA_ARGS__))

/* Environment and configuration, checked. */
int call_load(struct call *call);

/* The versions of the specification, to NULL. */
extern const char *const call_versions[];

/* Asks the agent. ``waits`` says whether to retry until the deadline while it is away; -ENOTCONN
 * without a reason in the call means that it is. ``descriptor`` is sent along, unless it is -1;
 * ``*received`` is the one that came, or -1. */
int call_agent(struct call *call, bool waits, int descriptor, struct agent_answer *answer,
	       int *received);

/* Opens and enters the namespace of the call. ``*obstacle`` is why it cannot be replaced, or NULL;
 * ``*is_attached`` is whether it has the call's interface. */
int call_enter(struct call *call, int *namespace, const char **obstacle, bool *is_attached);

/* In the namespace of the call: gives the prepared one the same sysctls, if CRI-O has made it.
 * CRI-O's pinns sets the pod's there, and without a pause container nobody does it later. */
int call_carry(struct call *call, int prepared);

/* Mounts a namespace over that of the call: the path always shows one. -EOPNOTSUPP without a
 * reason in the call means that this kernel, or this mount, cannot do it. */
int call_replace(struct call *call, int prepared);

/* In the namespace that was entered: whether the interface has what the agent assigned. */
int call_check(struct call *call, const struct agent_answer *expected);

/* Deletes the interface, if the namespace still exists. */
int call_delete(struct call *call);

/* Removes the mount of call_replace over the runtime's own namespace, which the runtime removes
 * itself. */
int call_uncover(struct call *call);

#endif
