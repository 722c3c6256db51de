/* One start, executed or asked for, and what it says. */
#ifndef FIRSTLIGHT_LAUNCH_INSTANCE_H
#define FIRSTLIGHT_LAUNCH_INSTANCE_H

#include <stdint.h>
#include <sys/resource.h>

enum { SEQUENTIAL = 1, INHERIT = 2 }; /* flags of a request */
enum { SOCKET, GREETING, MESSAGE, ASKED }; /* what argv is of one that is asked for */

struct record {
	int64_t intended, spawned, seen, exited;
	int64_t user, system;
	int32_t pid, status; /* status: as waitpid gives it, -1 while alive */
	uint32_t expired, output;
};

struct instance {
	struct record record;
	char **argv, **envp, *cwd;
	int64_t offset;
	int out;
	int asks, connection; /* instead of executing; argv is what to ask */
	int answered, refused; /* refused: errno of the connection */
	char *text;
};

extern int events; /* epoll; data.ptr is the instance */

int64_t now(void);
void watch(int fd, struct instance *instance);
_Noreturn void die(const char *what);

/* A start takes up to two open files of ours. What is executed has the limit that we were given. */
void allow_files(void);
void instance_start(struct instance *instance, int input, uint32_t flags);
void instance_hear(struct instance *instance);
void instance_exited(struct instance *instance, int status, const struct rusage *usage);
int instance_settled(const struct instance *instance);
void instance_kill(struct instance *instance, uint32_t flags);
void instance_forget(struct instance *instance);

#endif
