/* firstlight-log: stores the output of instances.
 *
 *   firstlight-log DIRECTORY SIZE TOTAL 3<SOCKET
 *
 * For each instance, the node sends a message on descriptor 3 with its id and the reading ends of its
 * output and error. They are read to their end and written to DIRECTORY/ID.log, in CRI's log format:
 *
 *   2026-11-29T02:15:00.123456789Z stdout F a whole line
 *   2026-11-29T02:15:00.123456789Z stderr P a part of a line, whose next part follows
 *
 * A file that exceeds SIZE bytes becomes ID.log.1. If all files together exceed TOTAL bytes, or there
 * are too many, those of the instances that started first are removed. A complete log is read-only.
 *
 * It outlives the manager, and ends with the node and the last instance. It is C because it runs as
 * long as the node does, and must be small. What cannot be written is lost: no instance waits for a
 * full disk.
 */
#include "common/socket.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
	CONTROL = 3,
	STREAMS = 2,
	READY_MAX = 64,
	PART = 16 << 10, /* at a time; of empty lines, 40 times as much is written */
	NICE = 5,
	LOGS_MAX = 10000,
	OWN = 8, /* descriptors, at most */
};

static const char *const names[STREAMS] = {"stdout", "stderr"};

struct log {
	uint64_t id;
	int file, pipes[STREAMS];
	long long size, before; /* bytes of ID.log, and of ID.log.1 */
};

static struct log *logs; /* in the order in which they started */
static size_t count, room, written; /* written: those that have a pipe */
static int directory, epoll;
static long long most, most_of_all, all;

static struct log *find(uint64_t id)
{
	for (size_t i = count; i; i--)
		if (logs[i - 1].id == id)
			return &logs[i - 1];
	return NULL;
}

static bool is_open(const struct log *log)
{
	return log->pipes[0] >= 0 || log->pipes[1] >= 0;
}

static void name(char *text, size_t size, uint64_t id, const char *end)
{
	snprintf(text, size, "%llu.log%s", (unsigned long long)id, end);
}

static void drop_before(struct log *log)
{
	char path[48];
	name(path, sizeof path, log->id, ".1");
	(void)unlinkat(directory, path, 0);
	all -= log->before;
	log->before = 0;
}

static void drop(size_t index)
{
	char path[48];
	drop_before(&logs[index]);
	name(path, sizeof path, logs[index].id, "");
	(void)unlinkat(directory, path, 0);
	all -= logs[index].size;
	memmove(logs + index, logs + index + 1, (--count - index) * sizeof *logs);
}

static bool is_much(void)
{
	return all > most_of_all || count > LOGS_MAX;
}

/* Removes the logs of ended instances first, then the older files of the others. */
static void make_room(void)
{
	for (size_t i = 0; i < count && is_much();)
		if (is_open(&logs[i]))
			i++;
		else
			drop(i);
	for (size_t i = 0; i < count && all > most_of_all; i++)
		drop_before(&logs[i]);
}

static void open_file(struct log *log)
{
	char path[48];
	name(path, sizeof path, log->id, "");
	log->size = 0;
	log->file = openat(directory, path,
			   O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
}

static void rotate(struct log *log)
{
	char now[48], before[48];
	name(now, sizeof now, log->id, "");
	name(before, sizeof before, log->id, ".1");
	if (renameat(directory, now, directory, before))
		return;
	all -= log->before;
	log->before = log->size;
	descriptor_close(&log->file);
	open_file(log);
}

static void put(uint64_t id, const char *text, size_t size)
{
	struct log *log = find(id);
	if (log && log->file < 0) /* the disk was full */
		open_file(log);
	if (!log || log->file < 0)
		return;
	if (log->size && log->size + (long long)size > most)
		rotate(log);
	ssize_t wrote = write(log->file, text, size);
	if (wrote <= 0)
		return;
	log->size += wrote;
	all += wrote;
	make_room();
}

static size_t stamp(char *text, size_t size)
{
	struct timespec now;
	struct tm parts;
	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &parts);
	size_t length = strftime(text, size, "%Y-%m-%dT%H:%M:%S", &parts);
	return length + (size_t)snprintf(text + length, size - length, ".%09ldZ", now.tv_nsec);
}

/* Writes each line with the time at which it was read. */
static void keep(uint64_t id, int stream, const char *text, size_t size)
{
	static char lines[PART + 256];
	char head[64];
	size_t used = 0, begin = stamp(head, sizeof head);
	size_t piece = most < PART ? (size_t)most : PART;
	begin += (size_t)snprintf(head + begin, sizeof head - begin, " %s F ", names[stream]);
	for (const char *at = text, *last = text + size; at < last;) {
		const char *line = memchr(at, '\n', (size_t)(last - at));
		size_t length = (size_t)((line ? line : last) - at);
		if (used && used + begin + length + 1 > piece) {
			put(id, lines, used);
			used = 0;
		}
		memcpy(lines + used, head, begin);
		if (!line)
			lines[used + begin - 2] = 'P';
		memcpy(lines + used + begin, at, length);
		used += begin + length;
		lines[used++] = '\n';
		at += length + !!line;
	}
	put(id, lines, used);
}

/* Whether new logs are accepted. */
static void feed(bool feeds)
{
	struct epoll_event event = {.events = feeds ? EPOLLIN : 0, .data.u64 = UINT64_MAX};
	(void)epoll_ctl(epoll, EPOLL_CTL_MOD, CONTROL, &event); /* fails if its other end is gone */
}

static void end(struct log *log, int stream)
{
	(void)epoll_ctl(epoll, EPOLL_CTL_DEL, log->pipes[stream], NULL);
	descriptor_close(&log->pipes[stream]);
	if (is_open(log))
		return;
	written--;
	feed(true);
	if (log->file < 0)
		return;
	(void)fchmod(log->file, 0400); /* complete */
	descriptor_close(&log->file);
}

static void read_one(uint64_t id, int stream)
{
	static char text[PART];
	struct log *log = find(id);
	if (!log || log->pipes[stream] < 0)
		return;
	ssize_t size = read(log->pipes[stream], text, sizeof text);
	if (size > 0)
		keep(id, stream, text, (size_t)size);
	else if (size == 0 || (errno != EINTR && errno != EAGAIN))
		end(log, stream);
}

static struct log *append(uint64_t id)
{
	if (count == room) {
		size_t more = room ? 2 * room : 64;
		struct log *grown = realloc(logs, more * sizeof *logs);
		if (!grown)
			return NULL;
		logs = grown;
		room = more;
	}
	logs[count] = (struct log){.id = id, .file = -1, .pipes = {-1, -1}};
	return &logs[count++];
}

static void add(uint64_t id, struct rights *rights)
{
	struct log *old = find(id); /* an older runtime's */
	if (old && !is_open(old))
		drop((size_t)(old - logs));
	struct log *log = append(id);
	if (!log)
		return;
	open_file(log);
	for (int i = 0; i < STREAMS; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.u64 = id << 1 | (uint64_t)i};
		/* An instance may open its own output, and read what we are about to read. */
		if (fcntl(rights->descriptors[i], F_SETFL, O_NONBLOCK) ||
		    epoll_ctl(epoll, EPOLL_CTL_ADD, rights->descriptors[i], &event))
			continue;
		log->pipes[i] = rights->descriptors[i];
		rights->descriptors[i] = -1;
	}
	written += is_open(log);
	make_room();
}

static int by_id(const void *a, const void *b)
{
	uint64_t left = ((const struct log *)a)->id, right = ((const struct log *)b)->id;
	return (left > right) - (left < right);
}

/* What an earlier keeper has left. */
static int find_old(void)
{
	int listed FILE_SCOPE = fcntl(directory, F_DUPFD_CLOEXEC, 0);
	DIR *names_of = listed < 0 ? NULL : fdopendir(listed);
	if (!names_of)
		return -errno;
	(void)descriptor_take(&listed); /* it is the stream's own */
	for (struct dirent *entry; (entry = readdir(names_of));) {
		char *rest;
		struct stat status;
		uint64_t id = strtoull(entry->d_name, &rest, 10);
		bool before = !strcmp(rest, ".log.1");
		if (!id || (!before && strcmp(rest, ".log")) ||
		    fstatat(directory, entry->d_name, &status, AT_SYMLINK_NOFOLLOW))
			continue;
		struct log *log = find(id);
		if (!log)
			log = append(id);
		if (!log)
			break;
		*(before ? &log->before : &log->size) = status.st_size;
		all += status.st_size;
	}
	(void)closedir(names_of);
	if (count)
		qsort(logs, count, sizeof *logs, by_id);
	return 0;
}

/* Without a free descriptor, pipes that arrive would be lost, and their writers would be killed. */
static bool has_descriptors(void)
{
	struct rlimit files;
	return getrlimit(RLIMIT_NOFILE, &files) ||
	       OWN + (written + 1) * (STREAMS + 1) <= files.rlim_cur;
}

/* False when no sender is left. */
static bool receive(void)
{
	struct rights rights RIGHTS_SCOPE = {0};
	uint64_t id;
	ssize_t size = socket_receive(CONTROL, &id, sizeof id, MSG_DONTWAIT, &rights);
	if (size == sizeof id && rights.count == STREAMS)
		add(id, &rights);
	return size > 0 || (size < 0 && size != -ECONNRESET);
}

static bool writes(void)
{
	for (size_t i = 0; i < count; i++)
		if (is_open(&logs[i]))
			return true;
	return false;
}

static int confine(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {{0}};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_capset, &header, none))
		return -errno;
	(void)setpriority(PRIO_PROCESS, 0, NICE);
	return 0;
}

static void set_open_files(void)
{
	struct rlimit files;
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &files);
	}
}

static void serve(void)
{
	bool is_fed = true;
	while (is_fed || writes()) {
		struct epoll_event ready[READY_MAX];
		int count_ready = epoll_wait(epoll, ready, READY_MAX, -1);
		for (int i = 0; i < count_ready; i++) {
			uint64_t word = ready[i].data.u64;
			bool is_last = ready[i].events & EPOLLHUP;
			if (word == UINT64_MAX && !is_last && !has_descriptors()) {
				feed(false);
			} else if (word == UINT64_MAX && !receive()) {
				is_fed = false;
				(void)epoll_ctl(epoll, EPOLL_CTL_DEL, CONTROL, NULL);
			} else if (word != UINT64_MAX) {
				read_one(word >> 1, (int)(word & 1));
			}
		}
	}
}

int main(int argc, char **argv)
{
	struct epoll_event control = {.events = EPOLLIN, .data.u64 = UINT64_MAX};
	if (argc != 4) {
		fputs("usage: firstlight-log DIRECTORY SIZE TOTAL\n", stderr);
		return 2;
	}
	most = atoll(argv[2]);
	most_of_all = atoll(argv[3]);
	if (most < 1 || most_of_all < most) {
		fputs("firstlight-log: SIZE must be at least 1, and TOTAL at least SIZE\n", stderr);
		return 2;
	}
	set_open_files();
	(void)setsid(); /* the end of the manager's session does not concern us */
	(void)signal(SIGPIPE, SIG_IGN);
	(void)signal(SIGINT, SIG_IGN); /* Ctrl-C is for the manager to handle */
	directory = close_range(CONTROL + 1, ~0U, 0)
			    ? -1
			    : open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (directory < 0 || epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, CONTROL, &control) ||
	    confine() || find_old()) {
		perror("firstlight-log");
		return 1;
	}
	serve();
	return 0;
}
