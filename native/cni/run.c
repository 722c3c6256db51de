#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { OUTPUT_MAX = 1 << 20, PIPE_SIZE = 65536 };

char error[1200];

int64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

int fail(const char *format, ...)
{
	if (error[0])
		return -1;
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(error, sizeof error, format, arguments);
	va_end(arguments);
	return -1;
}

void close_fd(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

void free_text(char **text)
{
	free(*text);
}

const char *base(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

char *read_all(int fd)
{
	size_t used = 0, room = 16384;
	char *text = malloc(room + 1);
	while (text) {
		ssize_t n = read(fd, text + used, room - used);
		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0) {
			text[used] = 0;
			return text;
		}
		used += n > 0 ? (size_t)n : 0;
		if (n < 0 || (used == room && room >= OUTPUT_MAX))
			break;
		char *more = used == room ? realloc(text, 2 * room + 1) : text;
		room = used == room ? 2 * room : room;
		if (!more)
			break;
		text = more;
	}
	free(text);
	return NULL;
}

int write_all(int fd, const char *text, size_t length)
{
	while (length > 0) {
		ssize_t n = write(fd, text, length);
		if (n < 0 && errno != EINTR)
			return -1;
		text += n > 0 ? n : 0;
		length -= n > 0 ? (size_t)n : 0;
	}
	return 0;
}

int pipe_of(const char *const texts[])
{
	int ends[2], bad = 0;
	size_t length = 0;
	if (pipe2(ends, O_CLOEXEC))
		return fail("cannot make a pipe: %s", strerror(errno));
	for (size_t i = 0; texts[i]; i++)
		length += strlen(texts[i]);
	if (length >= PIPE_SIZE)
		bad = fcntl(ends[1], F_SETPIPE_SZ, (int)(2 * length)) < 0;
	fcntl(ends[1], F_SETFL, O_NONBLOCK); /* they fit, or it says so */
	for (size_t i = 0; !bad && texts[i]; i++)
		bad = write_all(ends[1], texts[i], strlen(texts[i]));
	close(ends[1]);
	if (!bad)
		return ends[0];
	close(ends[0]);
	return fail("a configuration of %zu bytes does not fit into a pipe", length);
}

static int spawn(const char *path, char *const argv[], char *const environment[], int in, int out,
		 pid_t *pid)
{
	posix_spawn_file_actions_t actions;
	int wrong = posix_spawn_file_actions_init(&actions);
	if (wrong)
		return wrong;
	wrong = posix_spawn_file_actions_adddup2(&actions, in, STDIN_FILENO);
	wrong = wrong ? wrong : posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
	if (!wrong)
		wrong = posix_spawn(pid, path, &actions, NULL, argv, environment);
	posix_spawn_file_actions_destroy(&actions);
	return wrong;
}

char *run(const char *path, char *const argv[], char *const environment[], int in, int *status)
{
	int out[2];
	pid_t pid;
	if (pipe2(out, O_CLOEXEC)) {
		fail("cannot make a pipe: %s", strerror(errno));
		return NULL;
	}
	int wrong = spawn(path, argv, environment, in, out[1], &pid);
	close(out[1]);
	char *said = wrong ? NULL : read_all(out[0]);
	close(out[0]);
	if (wrong) {
		fail("cannot execute %s: %s", path, strerror(wrong));
		return NULL;
	}
	while (waitpid(pid, status, 0) < 0 && errno == EINTR)
		;
	if (!said)
		fail("the output of %s cannot be read", path);
	return said;
}
