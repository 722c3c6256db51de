/* Follows watched programs, whatever starts them, and hands over their events in windows.
 *
 * A window is open during a start and for LINGER_NS after it. It is cut when it is CUT_NS old, so a node
 * on which starts never cease is reported too. After the last window everything is forgotten except
 * containers that are created and wait for their start: their processes are known until then, or for
 * LONGEST_NS.
 *
 * A number or a budget decides which windows are traced whole. The budget (budget.c) is CPU time: it grows by a
 * share of the node's, and by a larger share of the idle time. It pays for each call and switch that the
 * programs met while attached, and for the CPU time of this process and of the reader. However that is,
 * nothing more is traced while the reader is behind, and what it has not read takes HELD_MOST at most.
 *
 * One loop owns what is kept here: what has begun decides when a window opens and ends, and both what is
 * traced and what is paid.
 */
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/socket.h"
#include "trace/budget.h"
#include "trace/command.h"
#include "trace/tracer.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LINGER_NS (CLOCK_SECOND / 10)
#define CUT_NS CLOCK_SECOND
#define LONGEST_NS (20 * CLOCK_SECOND)
#define CHECK_NS (CLOCK_SECOND / 10)

enum {
	BEGINNINGS = 4096,
	DAEMONS = 64,
	STRAYS = 64,
	FORKED = 1024,
	UNREAD = 8,
	TRACED_MOST = 1 << 24,
	HELD_MOST = 1 << 26
};
enum last { GOES_ON, LAST, WAITS };

/* The execution of a watched program. It lasts until its process ends, or a container's own
 * program is executed in its tree. */
static struct {
	unsigned int pid, root;
	long long at, ended; /* 0: it goes on */
	/* The name of a runtime that creates a container, as the kernel cuts it. */
	char creates[NAME];
} beginnings[BEGINNINGS];
static size_t beginning_count, going_on;
static int is_news; /* a beginning, or the end of one, for which no window was opened */
static unsigned int daemons[DAEMONS];
static size_t daemon_count;
/* Roots of watched programs that start nothing, and what they forked before they were forgotten.
 * That is forgotten, too, once everything is read, unless a start has begun in it by then. */
static unsigned int strays[STRAYS];
static size_t stray_count;
static struct {
	unsigned int root, tid;
} forked[FORKED];
static size_t forked_count;
static FILE *documents;
/* Of the windows that were sent and not answered, and of the current one, in bytes. */
static unsigned long long held, sizes[UNREAD + 1], current;
static unsigned int windows_sent, windows_read;
static unsigned long long dropped; /* events */
static unsigned long windows; /* opened */
static int is_due; /* the current one, by number */

static unsigned int unread(void)
{
	return windows_sent - windows_read;
}

static int is_reader_behind(void)
{
	return held + current > TRACED_MOST;
}

static int is_sample_whole(void)
{
	return is_due && held + current <= TRACED_MOST / 2;
}

/* Opens a window. */
static int is_first_whole(void)
{
	is_due = budget.one_in && windows++ % budget.one_in == 0;
	return budget.one_in ? is_sample_whole() : budget.credit >= 0 && !unread();
}

/* A window that follows a cut: what is under way stays whole, up to a debt. */
static int is_next_whole(int whole)
{
	if (whole)
		return !budget_is_overdrawn() && !is_reader_behind();
	if (budget.one_in)
		return is_sample_whole();
	return budget.credit >= 0 && unread() <= 1; /* the one that was sent just now */
}

static int is_stray(unsigned int root)
{
	for (size_t i = 0; i < STRAYS; i++)
		if (strays[i] == root)
			return 1;
	return 0;
}

static void add_stray(unsigned int root)
{
	tracer_forget(root);
	if (!is_stray(root))
		strays[stray_count++ % STRAYS] = root;
}

/* A start has begun in its tree, or it is another process with the same number. */
static void clear_stray(unsigned int root)
{
	for (size_t i = 0; i < STRAYS; i++)
		if (strays[i] == root)
			strays[i] = 0;
}

static void note_forked(const struct event *event)
{
	if (!is_stray(event->root))
		return;
	if (forked_count == FORKED) {
		tracer_forget(event->peer);
		return;
	}
	forked[forked_count].root = event->root;
	forked[forked_count++].tid = event->peer;
}

static void forget_forked(void)
{
	for (size_t i = 0; i < forked_count; i++)
		if (is_stray(forked[i].root))
			tracer_forget(forked[i].tid);
	forked_count = 0;
}

static void begin(const struct event *event)
{
	if (held + current <= HELD_MOST)
		current += command_take_documents(event, documents);
	clear_stray(event->root);
	if (beginning_count == BEGINNINGS)
		return;
	beginnings[beginning_count].pid = event->tid;
	beginnings[beginning_count].root = event->root;
	beginnings[beginning_count].ended = 0;
	memset(beginnings[beginning_count].creates, 0, NAME);
	if (command_is_create(event)) {
		const char *file = (const char *)(event + 1), *slash = strrchr(file, '/');
		strncpy(beginnings[beginning_count].creates, slash ? slash + 1 : file, NAME - 1);
	}
	beginnings[beginning_count++].at = (long long)event->start;
	going_on++;
	is_news = 1;
}

static void end(size_t i, long long at)
{
	if (!beginnings[i].ended) {
		beginnings[i].ended = at;
		going_on--;
	}
}

int tracer_take(void *context, void *data, size_t size)
{
	const struct event *event = data;
	if (size < sizeof *event)
		return -EPROTO;
	int is_own_program = event->kind == EXEC && event->args[0] == 1 && event->args[1] > 0;
	if (event->kind == BEGIN && !command_is_of_start(event)) {
		if (event->root == event->tid)
			add_stray(event->root);
		return 0;
	}
	if (event->kind == FORK || (event->kind == EXIT && event->peer))
		note_forked(event);
	if (event->kind == BEGIN)
		begin(event);
	else if (!beginning_count)
		return 0; /* of what starts nothing */
	else if (is_own_program || event->kind == EXIT)
		for (size_t i = 0; i < beginning_count; i++)
			if (is_own_program ? beginnings[i].root == event->root
					   : beginnings[i].pid == event->tid)
				end(i, (long long)event->start);
	is_news |= is_own_program;
	if (held + current > HELD_MOST) {
		dropped++;
		return 0;
	}
	current += size;
	return tracer_write(context, data, size);
}

static int is_root_of_beginning(unsigned int root)
{
	for (size_t i = 0; i < beginning_count; i++)
		if (beginnings[i].root == root)
			return 1;
	return 0;
}

/* Whether a process, still under the runtime's name, waits to become a container that the runtime has
 * created. */
static int is_waiting(size_t i, long long at)
{
	const char *name = beginnings[i].creates;
	if (!*name || at - beginnings[i].at > LONGEST_NS)
		return 0;
	for (unsigned int k = 0; k < tracer_task_count; k++) {
		if (tracer_tasks[k].root != beginnings[i].root ||
		    tracer_tids[k] == beginnings[i].pid)
			continue;
		char path[64], comm[NAME + 1] = {0};
		snprintf(path, sizeof path, "/proc/%u/comm", tracer_tids[k]);
		FILE *file = fopen(path, "re");
		if (!file)
			continue;
		if (fgets(comm, sizeof comm, file))
			comm[strcspn(comm, "\n")] = 0;
		fclose(file);
		if (!strcmp(comm, name) || strstr(comm, ":[2:INIT]"))
			return 1;
	}
	return 0;
}

/* Forgets what ended a while ago, or everything, and the threads of those trees in which nothing
 * else is under way. Threads of what begins meanwhile have roots that are not in "old". */
static void forget(long long at, int all)
{
	static unsigned int old[BEGINNINGS];
	size_t kept = 0, count = 0;
	tracer_read_tasks();
	for (size_t i = 0; i < beginning_count; i++) {
		int is_old = all || (beginnings[i].ended && at - beginnings[i].ended > LINGER_NS);
		if (is_old && !is_waiting(i, at)) {
			end(i, at);
			old[count++] = beginnings[i].root;
		} else {
			beginnings[kept++] = beginnings[i];
		}
	}
	beginning_count = kept;
	size_t gone = 0;
	for (size_t i = 0; i < count; i++)
		if (!is_root_of_beginning(old[i]))
			old[gone++] = old[i];
	for (unsigned int k = 0; k < tracer_task_count; k++) {
		unsigned int root = tracer_tasks[k].root;
		int is_old = 0;
		for (size_t i = 0; i < gone && !is_old; i++)
			is_old = old[i] == root;
		for (size_t i = 0; all && i < daemon_count && !is_old; i++)
			is_old = daemons[i] == root;
		if (is_old)
			tracer_forget(tracer_tids[k]);
	}
}

static FILE *memory(const char *name)
{
	int file = memfd_create(name, MFD_CLOEXEC);
	FILE *stream = file < 0 ? NULL : fdopen(file, "w");
	if (!stream) {
		tracer_fail("memory for a window");
		if (file >= 0)
			close(file);
	}
	return stream;
}

static int open_window(void)
{
	tracer_out = (struct tracer_out){.events = memory("events"), .texts = memory("texts")};
	documents = memory("documents");
	current = 0;
	return tracer_out.events && tracer_out.texts && documents ? 0 : -tracer_failure.code;
}

static int send_window(long long at, int whole, enum last last)
{
	enum { FILES = 4 };
	FILE *files[FILES] = {tracer_out.events, tracer_out.texts, memory("stacks"), documents};
	int descriptors[FILES], error = !files[2];
	char line[128];
	if (!error && whole)
		error = tracer_write_stacks(files[2]);
	for (int i = 0; i < FILES; i++) {
		if (!files[i])
			continue;
		if (fflush(files[i]))
			error = tracer_fail("write a window");
		descriptors[i] = fileno(files[i]);
	}
	if (!error) {
		int length = snprintf(line, sizeof line, "window %lld %llu %d %d", at,
				      tracer_take_lost() + dropped, whole ? 1 : 2 * is_due, last);
		int sent = socket_send(STDOUT_FILENO, line, (size_t)length, descriptors, FILES);
		if (sent < 0) {
			errno = -sent;
			error = tracer_fail("send a window");
		}
	}
	for (int i = 0; i < FILES; i++)
		if (files[i])
			fclose(files[i]);
	sizes[windows_sent++ % (UNREAD + 1)] = current;
	held += current;
	dropped = 0;
	return error ? -tracer_failure.code : open_window();
}

static int disarm(void)
{
	tracer_detach(1);
	/* A program that another CPU is running still has ended after this. */
	(void)syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
	return tracer_drain_all();
}

/* What a thread was doing when it was last traced says nothing about now. It may be off the CPU, which shows
 * when it is switched to; a call shows that it was not. */
static void forget_states(void)
{
	unsigned long long now = (unsigned long long)clock_now();
	tracer_read_tasks();
	for (unsigned int i = 0; i < tracer_task_count; i++) {
		struct task task = {.root = tracer_tasks[i].root,
				    .pid = tracer_tasks[i].pid,
				    .off = now,
				    .off_state = 1,
				    .off_stack = UNSEEN,
				    .lock_stack = -1,
				    .number = -1};
		tracer_reset(tracer_tids[i], &task);
	}
}

static int arm(void)
{
	forget_states();
	if (tracer_attach(0))
		return -tracer_failure.code;
	for (size_t i = 0; i < daemon_count; i++)
		if (tracer_follow(daemons[i]))
			return -tracer_failure.code;
	return 0;
}

/* Of "NAME/" the children are watched, too; of "NAME//" they alone. */
static int watch_names(char **names, int count)
{
	for (int i = 0; i < count; i++) {
		char name[NAME] = {0};
		size_t length = strcspn(names[i], "/");
		enum sign value = SIGN;
		if (names[i][length])
			value = names[i][length + 1] ? CHILDREN_ALONE : SIGN_CHILDREN;
		strncpy(name, names[i], length < NAME ? length : NAME - 1);
		if (bpf_map_update_elem(tracer_map("names"), name, &value, BPF_ANY))
			return tracer_fail(names[i]);
	}
	return 0;
}

/* Returns 1 at the end. */
static int take_request(int whole)
{
	char line[64];
	unsigned int pid;
	long long spent;
	if (!fgets(line, sizeof line, stdin))
		return 1;
	if (sscanf(line, "spent %lld", &spent) == 1) {
		budget.credit -= spent;
		if (unread())
			held -= sizes[windows_read++ % (UNREAD + 1)];
		return 0;
	}
	if (sscanf(line, "follow %u", &pid) == 1) {
		clear_stray(pid);
		if (daemon_count < DAEMONS)
			daemons[daemon_count++] = pid;
		return whole ? tracer_follow(pid) : 0;
	}
	if (sscanf(line, "forget %u", &pid) == 1) {
		for (size_t i = 0; i < daemon_count; i++)
			if (daemons[i] == pid)
				daemons[i] = daemons[--daemon_count];
		return 0;
	}
	errno = EPROTO;
	return tracer_fail(line);
}

static int say(const char *line)
{
	int sent = socket_send(STDOUT_FILENO, line, strlen(line), NULL, 0);
	if (sent >= 0)
		return 0;
	errno = -sent;
	return tracer_fail("answer");
}

/* Ends a window: the last one if nothing is under way. Returns whether the next is whole, or a
 * negative errno. */
static int cut(long long at, int whole, int last)
{
	if (whole && !last && tracer_write_open((unsigned long long)at))
		return -tracer_failure.code;
	for (size_t i = 0; i < beginning_count; i++)
		if (at - beginnings[i].at > LONGEST_NS) /* it hangs, or serves */
			end(i, at);
	forget(at, last);
	if (send_window(at, whole, !last ? GOES_ON : beginning_count ? WAITS : LAST))
		return -tracer_failure.code;
	if (last && tracer_clear("stacks"))
		return -tracer_failure.code;
	budget_count(at);
	if (last) {
		is_news = is_due = 0;
		return 0;
	}
	int next = is_next_whole(whole);
	if (whole && !next && disarm())
		return -tracer_failure.code;
	return !whole && next && arm() ? -tracer_failure.code : next;
}

/* The requests have ended. What is under way is not reported: its end is unknown. */
static int finish(int is_open, int whole, int attached)
{
	if (attached ? disarm() : tracer_drain_all())
		return -tracer_failure.code;
	long long at = clock_now();
	if (!is_open && !is_news)
		return 0;
	if (whole && tracer_write_open((unsigned long long)at))
		return -tracer_failure.code;
	return send_window(at, whole, GOES_ON);
}

int tracer_watch(unsigned long one_in, unsigned long millionths, char **names, int count)
{
	struct pollfd ready[] = {{.fd = STDIN_FILENO, .events = POLLIN},
				 {.fd = tracer_ring(), .events = POLLIN}};
	long long opened = 0, busy = 0;
	int is_open = 0, whole = 0, attached = 0;
	setvbuf(stdin, NULL, _IONBF, 0);
	if (watch_names(names, count) || open_window() || tracer_attach(1) ||
	    budget_open(one_in, millionths) || say("watching"))
		return -tracer_failure.code;
	for (;;) {
		int wait = is_open ? DRAIN_MS : beginning_count ? LONGEST_NS / 1000000 : -1;
		int polled = poll(ready, 2, wait);
		if (polled < 0 && errno != EINTR)
			return tracer_fail("poll");
		if (ready[0].revents) {
			int end = take_request(attached);
			if (end)
				return end < 0 ? end : finish(is_open, is_open && whole, attached);
		}
		if (tracer_drain())
			return -tracer_failure.code;
		forget_forked();
		long long at = clock_now();
		if (!polled && !is_open)
			is_news = 1; /* what has waited is over */
		if (!is_open && is_news) {
			budget_count(at);
			is_news = 0;
			whole = attached = is_first_whole();
			if (whole && arm())
				return -tracer_failure.code;
			is_open = 1;
			opened = busy = at;
		}
		if (!is_open)
			continue;
		if (going_on) {
			busy = at;
			if (whole && !attached && arm()) /* it began while we detached, or waited */
				return -tracer_failure.code;
			attached = whole;
		}
		int is_last = at - busy > LINGER_NS;
		if (is_last && attached) {
			attached = 0;
			at = clock_now();
			if (disarm() || tracer_write_open((unsigned long long)at))
				return -tracer_failure.code;
		}
		if (is_last && going_on)
			continue;
		int over = attached && is_reader_behind();
		if (attached && at - budget.at > CHECK_NS) {
			budget_count(at);
			over |= budget_is_overdrawn();
		}
		if (over && unread() >= UNREAD) {
			attached = whole = 0;
			if (disarm())
				return -tracer_failure.code;
		}
		if ((!is_last && !over && at - opened < CUT_NS) || unread() >= UNREAD)
			continue;
		int next = cut(at, whole, is_last);
		if (next < 0)
			return next;
		whole = attached = next;
		is_open = !is_last;
		opened = at;
	}
}
