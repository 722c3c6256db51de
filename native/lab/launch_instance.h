/* One start, executed or requested, and its output.
 *
 * Functions return 0, or a negative errno with the error.
 */
#ifndef FIRSTLIGHT_LAUNCH_INSTANCE_H
#define FIRSTLIGHT_LAUNCH_INSTANCE_H

#include "common/error.h"
#include "lab/launch_records.h"

#include <sys/resource.h>

enum { ASK_SOCKET, ASK_GREETING, ASK_MESSAGE, ASK_STRINGS }; /* what argv is of one asked for */

struct launch_instance {
	struct launch_record record;
	char **argv, **envp, *cwd;
	int64_t offset;
	int events; /* the epoll that watches it; data.ptr is the instance */
	int out;
	int asks, connection; /* instead of executing; argv is what to ask */
	int answered, refused; /* refused: errno of the connection */
	char *text;
};

/* Watches a descriptor of the instance. */
int launch_instance_watch(struct launch_instance *instance, int file, struct error *error);

/* A start takes up to two open files of ours. The executed program has the limit that we were
 * given. */
int launch_instance_allow_files(struct error *error);
int launch_instance_start(struct launch_instance *instance, int input, uint32_t flags,
			  struct error *error);
void launch_instance_read(struct launch_instance *instance);
void launch_instance_exited(struct launch_instance *instance, int status,
			    const struct rusage *usage);
int launch_instance_settled(const struct launch_instance *instance);
void launch_instance_kill(struct launch_instance *instance, uint32_t flags);
void launch_instance_release(struct launch_instance *instance);

#endif
