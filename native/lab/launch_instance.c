#include "launch_instance.h"
#include "launch_ask.h"
#include "launch_text.h"
#include "common/message.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READS = 32, ANSWER_MAX = 8192 };

static struct rlimit given_files;

void allow_files(void)
{
	if (getrlimit(RLIMIT_NOFILE, &given_files) ||
	    setrlimit(RLIMIT_NOFILE, &(struct rlimit){given_files.rlim_max, given_files.rlim_max}))
		die("limit of open files");
}

/* Between fork and exec; standard error is already the instance's own. */
static void execute(const struct instance *instance, const int streams[2], uint32_t flags)
{
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setpriority(PRIO_PROCESS, 0, 0);
	setrlimit(RLIMIT_NOFILE, &given_files);
	if (!(flags & INHERIT)) {
		setsid();
		if (dup2(streams[0], 0) < 0 || dup2(streams[1], 1) < 0 || dup2(streams[1], 2) < 0)
			_exit(127);
		close_range(3, ~0U, 0);
	} /* else all of ours are closed on exec, and the lab's were never here */
	if (chdir(instance->cwd) == 0)
		execve(instance->argv[0], instance->argv, instance->envp);
	dprintf(STDOUT_FILENO, "firstlight error execute %s: %s\n", instance->argv[0], strerror(errno));
	_exit(127);
}

/* Adds one of our own lines to what an instance said. */
static void note(struct instance *instance, const char *word, const char *text)
{
	struct record *record = &instance->record;
	size_t room = strlen(word) + strlen(text) + sizeof "firstlight  \n";
	if (record->output + room > OUTPUT_MAX)
		record->output = (uint32_t)text_make_room(instance->text, record->output);
	if (record->output + room > OUTPUT_MAX)
		return;
	const char *line = record->output && instance->text[record->output - 1] != '\n' ? "\n" : "";
	record->output += (uint32_t)sprintf(instance->text + record->output, "%sfirstlight %s %s\n",
					    line, word, text);
}

static void stop_hearing(int *file)
{
	if (*file >= 0) {
		epoll_ctl(events, EPOLL_CTL_DEL, *file, NULL); /* a fork may hold it for now */
		close(*file);
	}
	*file = -1;
}

/* Ends a start that was asked for; status is as waitpid gives it. */
static void end_asked(struct instance *instance, int status)
{
	stop_hearing(&instance->connection);
	instance->record.status = status;
	instance->record.exited = now();
}

static void cannot_ask(struct instance *instance, const char *what, int error)
{
	char text[256];
	snprintf(text, sizeof text, "%s %.128s: %s", what, instance->argv[SOCKET], strerror(error));
	note(instance, "error", text);
	instance->record.seen = now();
	end_asked(instance, 127 << 8);
}

static void ask(struct instance *instance, const int streams[2])
{
	const char *message = instance->argv[MESSAGE];
	instance->record.spawned = now();
	if (instance->connection < 0)
		cannot_ask(instance, "reach", instance->refused);
	else if (message_send(instance->connection, message, strlen(message),
			      (int[]){streams[0], streams[1], streams[1]}, 3))
		cannot_ask(instance, "ask", errno);
}

static void spawn(struct instance *instance, const int streams[2], uint32_t flags)
{
	instance->record.spawned = now();
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0)
		execute(instance, streams, flags);
	instance->record.pid = pid;
}

void instance_start(struct instance *instance, int input, uint32_t flags)
{
	int out[2] = {-1, STDOUT_FILENO};
	if (!(flags & INHERIT) && pipe2(out, O_CLOEXEC))
		die("pipe2");
	if (instance->asks)
		ask(instance, (int[]){flags & INHERIT ? STDIN_FILENO : input, out[1]});
	else
		spawn(instance, (int[]){input, out[1]}, flags);
	instance->out = out[0];
	if (out[0] >= 0) {
		close(out[1]);
		fcntl(out[0], F_SETFL, O_NONBLOCK);
		watch(out[0], instance);
	}
}

/* A pipe's worth at a time: one that never ceases must not keep the others waiting. */
static void hear(struct instance *instance)
{
	struct record *record = &instance->record;
	for (int reads = 0; reads < READS; reads++) {
		if (record->output == OUTPUT_MAX)
			record->output = (uint32_t)text_make_room(instance->text, record->output);
		ssize_t n = read(instance->out, instance->text + record->output, OUTPUT_MAX - record->output);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			stop_hearing(&instance->out);
			return;
		}
		record->output += (uint32_t)n;
		if (!record->seen && text_has_spoken(instance->text, record->output))
			record->seen = now();
	}
}

/* What is said on the connection of a start that was asked for. */
static void listen_to(struct instance *instance)
{
	char text[ANSWER_MAX];
	struct record *record = &instance->record;
	while (instance->connection >= 0) {
		enum heard heard = ask_hear(instance->connection, text, sizeof text);
		switch (heard) {
		case HEARD_NOTHING:
			return;
		case HEARD_ANSWER:
			instance->answered = 1;
			note(instance, "answer", text);
			break;
		case HEARD_RESULT: /* its instance has ended with it */
		case HEARD_ERROR:
			note(instance, "answer", text);
			record->seen = record->seen ? record->seen : now();
			end_asked(instance, heard == HEARD_ERROR ? 1 << 8 : 0);
			break;
		case HEARD_END: {
			int killed = (int)message_number(text, "signal");
			record->user = message_number(text, "user_ns");
			record->system = message_number(text, "system_ns");
			end_asked(instance, killed ? killed : (int)message_number(text, "status") << 8);
			break;
		}
		case HEARD_LAST:
			if (record->spawned && !record->seen && !record->expired)
				cannot_ask(instance, "hear", ECONNRESET);
			else
				end_asked(instance, SIGKILL);
		}
	}
	if (instance->out >= 0)
		hear(instance);
}

void instance_hear(struct instance *instance)
{
	if (instance->out >= 0)
		hear(instance);
	if (instance->connection >= 0)
		listen_to(instance);
}

static int64_t nanoseconds(struct timeval t)
{
	return t.tv_sec * 1000000000LL + t.tv_usec * 1000LL;
}

void instance_exited(struct instance *instance, int status, const struct rusage *usage)
{
	instance->record.exited = now();
	instance->record.status = status;
	instance->record.user = nanoseconds(usage->ru_utime);
	instance->record.system = nanoseconds(usage->ru_stime);
	if (instance->out >= 0)
		hear(instance);
}

int instance_settled(const struct instance *instance)
{
	return instance->record.status != -1 ||
	       (instance->record.seen && (!instance->asks || instance->answered));
}

void instance_kill(struct instance *instance, uint32_t flags)
{
	if (instance->connection >= 0)
		shutdown(instance->connection, SHUT_WR); /* what was asked ends it, and tells */
	if (instance->record.status != -1 || instance->record.pid <= 0)
		return;
	kill(flags & INHERIT ? instance->record.pid : -instance->record.pid, SIGKILL);
}

void instance_forget(struct instance *instance)
{
	stop_hearing(&instance->out);
	stop_hearing(&instance->connection);
	free(instance->text);
}
