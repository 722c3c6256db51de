#include "common/process.h"

#include "common/cleanup.h"

#include <fcntl.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>

enum { OUTPUT_MAX = 1 << 20, OUTPUT_FIRST = 16384, PIPE_SIZE = 65536 };

int process_read_all(int file, char **text)
{
	size_t used = 0, room = OUTPUT_FIRST;
	char *buffer FREE_SCOPE = malloc(room + 1);
	*text = NULL;
	if (!buffer)
		return -ENOMEM;
	for (;;) {
		ssize_t n = read(file, buffer + used, room - used);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		used += (size_t)n;
		if (used < room)
			continue;
		if (room >= OUTPUT_MAX)
			return -EFBIG;
		room *= 2;
		char *more = realloc(buffer, room + 1);
		if (!more)
			return -ENOMEM;
		buffer = more;
	}
	buffer[used] = 0;
	*text = buffer;
	buffer = NULL;
	return (int)used;
}

int process_write_all(int file, const char *text, size_t length)
{
	while (length > 0) {
		ssize_t n = write(file, text, length);
		if (n < 0 && errno != EINTR)
			return -errno;
		text += n > 0 ? n : 0;
		length -= n > 0 ? (size_t)n : 0;
	}
	return 0;
}

int process_pipe(const char *const texts[])
{
	int ends[2], bad = 0;
	size_t length = 0;
	for (size_t i = 0; texts[i]; i++)
		length += strlen(texts[i]);
	if (pipe2(ends, O_CLOEXEC))
		return -errno;
	int writer FILE_SCOPE = ends[1];
	if (length >= PIPE_SIZE && fcntl(writer, F_SETPIPE_SZ, (int)(2 * length)) < 0)
		bad = -EFBIG;
	if (!bad && fcntl(writer, F_SETFL, O_NONBLOCK))
		bad = -errno;
	for (size_t i = 0; !bad && texts[i]; i++)
		bad = process_write_all(writer, texts[i], strlen(texts[i]));
	if (!bad)
		return ends[0];
	close(ends[0]);
	return bad == -EAGAIN ? -EFBIG : bad;
}

static int spawn(char *const argv[], char *const environment[], int input, int output, pid_t *pid)
{
	posix_spawn_file_actions_t actions;
	int wrong = posix_spawn_file_actions_init(&actions);
	if (wrong)
		return wrong;
	wrong = posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
	if (!wrong)
		wrong = posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
	if (!wrong)
		wrong = posix_spawn(pid, argv[0], &actions, NULL, argv, environment);
	(void)posix_spawn_file_actions_destroy(&actions);
	return wrong;
}

static int wait_for(pid_t pid, const char *program, int *status, struct error *error)
{
	while (waitpid(pid, status, 0) < 0)
		if (errno != EINTR)
			return error_set(error, errno, "cannot wait for %s", program);
	return 0;
}

int process_execute(char *const argv[], struct error *error)
{
	pid_t pid;
	int status, wrong = posix_spawn(&pid, argv[0], NULL, NULL, argv, environ);
	if (wrong)
		return error_set(error, wrong, "cannot execute %s", argv[0]);
	int bad = wait_for(pid, argv[0], &status, error);
	if (bad || !status)
		return bad;
	const char *slash = strrchr(argv[0], '/'), *name = slash ? slash + 1 : argv[0];
	if (WIFSIGNALED(status))
		return error_set(error, 0, "%s was killed by signal %d", name, WTERMSIG(status));
	return error_set(error, 0, "%s ended with status %d", name, WEXITSTATUS(status));
}

int process_run(char *const argv[], char *const environment[], int input, char **output,
		struct error *error)
{
	int ends[2], status = 0;
	pid_t pid;
	*output = NULL;
	if (pipe2(ends, O_CLOEXEC))
		return error_set(error, errno, "cannot make a pipe");
	int wrong = spawn(argv, environment, input, ends[1], &pid);
	close(ends[1]);
	int bad = wrong ? 0 : process_read_all(ends[0], output);
	close(ends[0]); /* a program that prints too much must not wait for us */
	if (wrong)
		return error_set(error, wrong, "cannot execute %s", argv[0]);
	int failed = wait_for(pid, argv[0], &status, error);
	if (failed)
		return failed;
	return bad < 0 ? error_set(error, -bad, "cannot read the output of %s", argv[0]) : status;
}
