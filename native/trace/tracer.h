/* The loaded eBPF programs, for "trace" (on request) and "watch" (by itself). Functions return 0 or a
 * negative errno, with the reason in tracer_failure. */
#ifndef FIRSTLIGHT_TRACER_H
#define FIRSTLIGHT_TRACER_H

#include "common/error.h"
#include "trace/trace.h"

#include <stdio.h>

enum { DRAIN_MS = 20, RING_LARGEST = 1 << 26 };

extern struct error tracer_failure;

/* The system calls that are reported, or ignored by name. */
struct tracer_call {
	int number, take;
	const char *name;
};
extern const struct tracer_call tracer_calls[];
extern const size_t tracer_call_count;
/* Sets "of32" and "of_socketcall", from tracer_calls. */
void tracer_translate(struct settings *settings, const struct tracer_call *calls);

/* Where events go. */
extern struct tracer_out {
	FILE *events, *texts;
	unsigned long long written;
} tracer_out;

/* An error by errno, with libbpf's own message if there is one. */
int tracer_fail(const char *what);

/* "preemptible": the kernel may preempt programs of system calls. "take" gets each event. */
int tracer_load(const char *object, struct settings settings, unsigned int ring_size,
		int preemptible, int (*take)(void *context, void *event, size_t size));
int tracer_map(const char *name);
int tracer_ring(void);

/* Attach and detach those that are not yet; "cheap" and "keep_cheap": those that follow forks,
 * executions and exits. */
int tracer_attach(int cheap);
void tracer_detach(int keep_cheap);

int tracer_drain(void);
int tracer_drain_all(void); /* once nothing is attached that makes many */
int tracer_write(void *context, void *data, size_t size);

/* The traced threads at this moment. Threads come and go, and a walk from key to key would start
 * over at each one that ends. */
void tracer_read_tasks(void);
extern unsigned int tracer_tids[TASKS], tracer_task_count;
extern struct task tracer_tasks[TASKS];

/* Calls and waits that have not ended by then are reported as open. */
int tracer_write_open(unsigned long long end);
int tracer_write_stacks(FILE *file);
int tracer_clear(const char *name);

void tracer_clear_tasks(void);
void tracer_forget(unsigned int tid);
/* Sets what is known of a thread, if it is traced. */
void tracer_reset(unsigned int tid, const struct task *task);

/* A process that existed before and sleeps until it gets a request. */
int tracer_follow(unsigned int pid);

/* How many events were lost since the last call. tracer_losses has the causes: by enum loss, or
 * by the program that missed them. */
unsigned long long tracer_take_lost(void);
extern struct tracer_losses {
	unsigned long long events;
	char words[256];
} tracer_losses;

/* Handles the events of watch. */
int tracer_take(void *context, void *data, size_t size);

/* Watches until standard input ends: see trace.c. */
int tracer_watch(unsigned long one_in, unsigned long millionths, char **names, int count);

#endif
