#include "lab/launch_instance.h"

#include "common/clock.h"
#include "lab/launch_ask.h"
#include "lab/launch_text.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READS = 32 };

static struct rlimit given_files;

int launch_instance_allow_files(struct error *error)
{
	if (!getrlimit(RLIMIT_NOFILE, &given_files) &&
	    !setrlimit(RLIMIT_NOFILE, &(struct rlimit){given_files.rlim_max, given_files.rlim_max}))
		return 0;
	return error_set(error, errno, "limit of open files");
}

int launch_instance_watch(struct launch_instance *instance, int file, struct error *error)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = instance};
	if (!epoll_ctl(instance->events, EPOLL_CTL_ADD, file, &event))
		return 0;
	return error_set(error, errno, "epoll_ctl");
}

/* Closes what the lab keeps open for starts that inherit it. Our own descriptors are closed on
 * exec in any case, so a start goes on where an old kernel or seccomp profile has no close_range. */
static bool close_files(void)
{
	return !close_range(3, ~0U, 0) || errno == ENOSYS || errno == EPERM;
}

/* Between fork and exec; standard error is already the instance's own. */
_Noreturn static void execute(const struct launch_instance *instance, const int streams[2],
			      uint32_t flags)
{
	sigset_t none;
	sigemptyset(&none);
	bool is_own = !(flags & LAUNCH_INHERIT), is_set;
	if (is_own &&
	    (dup2(streams[0], 0) < 0 || dup2(streams[1], 1) < 0 || dup2(streams[1], 2) < 0))
		_exit(127);
	(void)setpriority(PRIO_PROCESS, 0, 0); /* may fail without root */
	is_set = !sigprocmask(SIG_SETMASK, &none, NULL) &&
		 !setrlimit(RLIMIT_NOFILE, &given_files) && !chdir(instance->cwd);
	if (is_set && (!is_own || (setsid() >= 0 && close_files())))
		execve(instance->argv[0], instance->argv, instance->envp);
	dprintf(STDOUT_FILENO, "firstlight error execute %s: %s\n", instance->argv[0],
		strerror(errno));
	_exit(127);
}

/* Adds a line of our own to an instance's output. */
static void note(struct launch_instance *instance, const char *word, const char *text)
{
	struct launch_record *record = &instance->record;
	size_t room = strlen(word) + strlen(text) + sizeof "firstlight  \n";
	if (record->output + room > LAUNCH_OUTPUT_MAX)
		record->output = (uint32_t)launch_text_make_room(instance->text, record->output);
	if (record->output + room > LAUNCH_OUTPUT_MAX)
		return;
	const char *line = record->output && instance->text[record->output - 1] != '\n' ? "\n" : "";
	record->output += (uint32_t)sprintf(instance->text + record->output, "%sfirstlight %s %s\n",
					    line, word, text);
}

static void stop_reading(const struct launch_instance *instance, int *file)
{
	if (*file >= 0) {
		/* a fork may hold it for now */
		(void)epoll_ctl(instance->events, EPOLL_CTL_DEL, *file, NULL);
		close(*file);
	}
	*file = -1;
}

/* Ends a requested start; status is as waitpid gives it. */
static void end_asked(struct launch_instance *instance, int status)
{
	stop_reading(instance, &instance->connection);
	instance->record.status = status;
	instance->record.exited = clock_now();
}

static void cannot_ask(struct launch_instance *instance, const char *what, int error)
{
	char text[256];
	snprintf(text, sizeof text, "%s %.128s: %s", what, instance->argv[ASK_SOCKET],
		 strerror(error));
	note(instance, "error", text);
	instance->record.seen = clock_now();
	end_asked(instance, 127 << 8);
}

static void ask(struct launch_instance *instance, const int streams[2])
{
	const char *message = instance->argv[ASK_MESSAGE];
	int files[] = {streams[0], streams[1], streams[1]};
	instance->record.spawned = clock_now();
	if (instance->connection < 0) {
		cannot_ask(instance, "reach", instance->refused);
		return;
	}
	int bad = launch_ask_send(instance->connection, message, files, 3);
	if (bad)
		cannot_ask(instance, "ask", -bad);
}

static int spawn(struct launch_instance *instance, const int streams[2], uint32_t flags,
		 struct error *error)
{
	instance->record.spawned = clock_now();
	pid_t pid = fork();
	if (pid < 0)
		return error_set(error, errno, "fork");
	if (pid == 0)
		execute(instance, streams, flags);
	instance->record.pid = pid;
	return 0;
}

int launch_instance_start(struct launch_instance *instance, int input, uint32_t flags,
			  struct error *error)
{
	int out[2] = {-1, STDOUT_FILENO}, bad = 0;
	if (!(flags & LAUNCH_INHERIT) && pipe2(out, O_CLOEXEC))
		return error_set(error, errno, "pipe2");
	if (instance->asks)
		ask(instance, (int[]){flags & LAUNCH_INHERIT ? STDIN_FILENO : input, out[1]});
	else
		bad = spawn(instance, (int[]){input, out[1]}, flags, error);
	instance->out = out[0];
	if (out[0] < 0)
		return bad;
	close(out[1]);
	if (!bad && fcntl(out[0], F_SETFL, O_NONBLOCK))
		bad = error_set(error, errno, "fcntl");
	return bad ? bad : launch_instance_watch(instance, out[0], error);
}

/* Reads a pipe's worth at a time, so that endless output does not keep the others waiting. */
static void read_output(struct launch_instance *instance)
{
	struct launch_record *record = &instance->record;
	for (int reads = 0; reads < READS; reads++) {
		if (record->output == LAUNCH_OUTPUT_MAX)
			record->output =
				(uint32_t)launch_text_make_room(instance->text, record->output);
		ssize_t n = read(instance->out, instance->text + record->output,
				 LAUNCH_OUTPUT_MAX - record->output);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			stop_reading(instance, &instance->out);
			return;
		}
		record->output += (uint32_t)n;
		if (!record->seen && launch_text_has_spoken(instance->text, record->output))
			record->seen = clock_now();
	}
}

/* Reads the connection of a requested start. */
static void read_answers(struct launch_instance *instance)
{
	struct launch_news news;
	struct launch_record *record = &instance->record;
	while (instance->connection >= 0) {
		launch_ask_read(instance->connection, &news);
		switch (news.kind) {
		case ASK_NOTHING:
			return;
		case ASK_ANSWER:
			instance->answered = 1;
			note(instance, "answer", news.text);
			break;
		case ASK_RESULT: /* its instance has ended with it */
		case ASK_ERROR:
			note(instance, "answer", news.text);
			record->seen = record->seen ? record->seen : clock_now();
			end_asked(instance, news.kind == ASK_ERROR ? 1 << 8 : 0);
			break;
		case ASK_END:
			record->user = news.user;
			record->system = news.system;
			end_asked(instance, news.status);
			break;
		case ASK_CLOSED:
			if (record->spawned && !record->seen && !record->expired)
				cannot_ask(instance, "hear", ECONNRESET);
			else
				end_asked(instance, SIGKILL);
		}
	}
	if (instance->out >= 0)
		read_output(instance);
}

void launch_instance_read(struct launch_instance *instance)
{
	if (instance->out >= 0)
		read_output(instance);
	if (instance->connection >= 0)
		read_answers(instance);
}

void launch_instance_exited(struct launch_instance *instance, int status,
			    const struct rusage *usage)
{
	instance->record.exited = clock_now();
	instance->record.status = status;
	instance->record.user = clock_of(usage->ru_utime);
	instance->record.system = clock_of(usage->ru_stime);
	instance->record.faults = usage->ru_minflt + usage->ru_majflt;
	if (instance->out >= 0)
		read_output(instance);
}

int launch_instance_settled(const struct launch_instance *instance)
{
	return instance->record.status != -1 ||
	       (instance->record.seen && (!instance->asks || instance->answered));
}

void launch_instance_kill(struct launch_instance *instance, uint32_t flags)
{
	if (instance->connection >= 0)
		(void)shutdown(instance->connection,
			       SHUT_WR); /* the request ends it, and reports it */
	if (instance->record.status != -1 || instance->record.pid <= 0)
		return;
	kill(flags & LAUNCH_INHERIT ? instance->record.pid : -instance->record.pid, SIGKILL);
}

void launch_instance_release(struct launch_instance *instance)
{
	stop_reading(instance, &instance->out);
	stop_reading(instance, &instance->connection);
	free(instance->text);
}
