/* A network set-up request by the ip command: one process for each change, as in scripts. */
#include "lab/netsetup.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORDS = 16 };

extern char **environ;

static int complain(struct setup *setup, const char *const *arguments, int status)
{
	char command[300] = "", complaint[200] = "";
	for (size_t length = 0; *arguments && length < sizeof command; arguments++)
		length += (size_t)snprintf(command + length, sizeof command - length, "%s ",
					   *arguments);
	if (pread(setup->complaints, complaint, sizeof complaint - 1, 0) < 0)
		return error_set(&setup->error, errno, "cannot read the complaints of %s", command);
	complaint[strcspn(complaint, "\n")] = '\0';
	if (WIFSIGNALED(status))
		return error_set(&setup->error, 0, "%sended by signal %d", command,
				 WTERMSIG(status));
	return error_set(&setup->error, 0, "%sexited with %d: %s", command, WEXITSTATUS(status),
			 complaint);
}

static int start_ip(struct setup *setup, const char *const *arguments, pid_t *pid)
{
	sigset_t none, all;
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_t attributes;
	posix_spawn_file_actions_t actions;
	int wrong = posix_spawnattr_init(&attributes);
	if (wrong)
		return error_set(&setup->error, wrong, "cannot execute ip");
	wrong = posix_spawn_file_actions_init(&actions);
	if (!wrong) {
		wrong = posix_spawnattr_setsigmask(&attributes, &none);
		if (!wrong)
			wrong = posix_spawnattr_setsigdefault(&attributes, &all);
		if (!wrong)
			wrong = posix_spawnattr_setflags(
				&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
		if (!wrong)
			wrong = posix_spawn_file_actions_adddup2(&actions, setup->complaints,
								 STDERR_FILENO);
		if (!wrong)
			wrong = posix_spawnp(pid, "ip", &actions, &attributes,
					     (char *const *)arguments, environ);
		(void)posix_spawn_file_actions_destroy(&actions);
	}
	(void)posix_spawnattr_destroy(&attributes);
	return wrong ? error_set(&setup->error, wrong, "cannot execute ip") : 0;
}

static int run(struct setup *setup, const char *const *arguments)
{
	if (ftruncate(setup->complaints, 0) < 0 || lseek(setup->complaints, 0, SEEK_SET) < 0)
		return error_set(&setup->error, errno,
				 "cannot empty the file for the complaints of ip");
	pid_t pid;
	int bad = start_ip(setup, arguments, &pid);
	if (bad)
		return bad;
	int status;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return error_set(&setup->error, errno, "cannot wait for ip");
	return status == 0 ? 0 : complain(setup, arguments, status);
}

/* What a word of a step's commands stands for: $namespace, $host, $container, $address, $gateway. */
static const char *word_for(const struct setup *setup, const char *word)
{
	switch (word[0] == '$' ? word[1] : 0) {
	case 'n':
		return setup->name;
	case 'h':
		return setup->host;
	case 'c':
		return setup->container;
	case 'a':
		return setup->address_text;
	case 'g':
		return setup->gateway_text;
	default:
		return word;
	}
}

int netsetup_ip(struct setup *setup, const char *commands)
{
	char text[256];
	if ((size_t)snprintf(text, sizeof text, "%s", commands) >= sizeof text)
		return error_set(&setup->error, E2BIG, "ip %s", commands);
	for (char *rest = text, *command; (command = strsep(&rest, ";"));) {
		const char *arguments[WORDS] = {"ip"};
		size_t count = 1;
		for (char *word; (word = strsep(&command, " "));) {
			if (count == WORDS - 1)
				return error_set(&setup->error, E2BIG, "ip %s", commands);
			arguments[count++] = word_for(setup, word);
		}
		int bad = run(setup, arguments);
		if (bad)
			return bad;
	}
	return 0;
}
