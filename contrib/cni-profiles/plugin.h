/* What the profiles share: plugins that stand in for a product's own where that cannot be had, with
 * its processes, its kernel operations and its requests to a daemon, in its order. Each is a whole
 * plugin of CNI 0.3.0 to 1.0.0. A profile runs once and ends, so what fails ends it, with the
 * specification's error on standard output; the runtime then calls DEL.
 */
#ifndef FIRSTLIGHT_PROFILE_H
#define FIRSTLIGHT_PROFILE_H

#include "common/cleanup.h"
#include "common/process.h"
#include "common/rtnl.h"
#include "json.h"

#include <netinet/in.h>
#include <stdbool.h>

struct call {
	const char *container, *namespace, *interface;
	char *conf; /* the configuration, a JSON object */
	char version[16]; /* its cniVersion */
	char name[128]; /* the network's */
	bool adding;
};

/* What a plugin does; ADD prints the result. */
struct plugin {
	void (*add)(const struct call *call);
	void (*del)(const struct call *call);
};
extern const struct plugin plugin;

__attribute__((format(printf, 1, 2), noreturn)) void cni_fail(const char *format, ...);

/* As asprintf; the caller frees it. */
__attribute__((format(printf, 1, 2))) char *text_of(const char *format, ...);

/* A member of the configuration as text; ``otherwise`` if it has none. */
char *conf_string(const struct call *call, const char *key, char *to, size_t size,
		  const char *otherwise);

int open_namespace(const struct call *call);

/* A socket for routes and links in the calling namespace. */
struct rtnl open_route(void);

/* To the namespace of the call, and back to the plugin's own. */
struct visit {
	int home, there;
};
struct visit enter(const struct call *call);
void leave(const struct visit *visit);

/* Writes below /proc/sys/net; the path may name links. */
__attribute__((format(printf, 2, 3))) void set_sysctl(const char *value, const char *format, ...);

/* Fails with the words, and errno or a negative errno, if a call has failed. */
__attribute__((format(printf, 2, 3))) void cni_check(int done, const char *format, ...);

/* Ends the pod's end of a pair; that it is not there is no error, nor that its namespace is not. */
void delete_interface(const struct call *call);

/* Executes a program with a text on its standard input; returns its wait status, and what it printed,
 * for the caller to free. */
int run(char *const argv[], const char *text, char **output);

/* Executes another plugin of CNI_PATH for the same command; what it printed, for the caller to
 * free. If it fails, its words are this plugin's. */
char *delegate(const char *type, const char *conf);

/* Prints an ADD's result: one address, and the host's end if it is named. */
void say_result(const struct call *call, const char *host, struct in_addr address, int prefix,
		const char *gateway);

struct in_addr address_of(const char *text);

#endif
