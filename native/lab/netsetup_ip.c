/* A network set-up request by the ip command: a process a change, as a user or a script does. */
#include "lab/netsetup.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

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
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	posix_spawn_file_actions_t actions;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, setup->complaints, STDERR_FILENO);
	int wrong =
		posix_spawnp(pid, "ip", &actions, &attributes, (char *const *)arguments, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
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

#define IP(setup, ...) run(setup, (const char *const[]){"ip", __VA_ARGS__, NULL})

int netsetup_ip_netns(struct setup *setup)
{
	int bad = IP(setup, "netns", "add", setup->name);
	setup->named = !bad;
	return bad;
}

int netsetup_ip_veth(struct setup *setup)
{
	/* a NULL ends the arguments */
	int bad = IP(setup, "link", "add", setup->host, "type", "veth", "peer", "name",
		     setup->container, setup->in_place ? "netns" : NULL, setup->name);
	setup->linked = !bad;
	return bad;
}

int netsetup_ip_move(struct setup *setup)
{
	return IP(setup, "link", "set", setup->container, "netns", setup->name);
}

int netsetup_ip_host_up(struct setup *setup)
{
	return IP(setup, "link", "set", setup->host, "up");
}

int netsetup_ip_container_up(struct setup *setup)
{
	int bad = IP(setup, "-n", setup->name, "link", "set", "lo", "up");
	return bad ? bad : IP(setup, "-n", setup->name, "link", "set", setup->container, "up");
}

int netsetup_ip_address(struct setup *setup)
{
	return IP(setup, "-n", setup->name, "address", "add", setup->address_text, "dev",
		  setup->container);
}

int netsetup_ip_route(struct setup *setup)
{
	int bad = IP(setup, "route", "add", setup->address_text, "dev", setup->host);
	return bad ? bad
		   : IP(setup, "-n", setup->name, "route", "add", "default", "via",
			setup->gateway_text, "dev", setup->container, "onlink");
}

void netsetup_ip_take_down(struct setup *setup)
{
	if (setup->linked)
		IP(setup, "link", "delete", setup->host);
	if (setup->named)
		IP(setup, "netns", "delete", setup->name);
}
