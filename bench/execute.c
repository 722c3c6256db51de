/* What a plugin takes when nothing but C executes it: execute PROGRAM CONFIGURATION, with our
 * environment and the file of the configuration as its standard input. Says when it was spawned and
 * when it had ended, as backends/__init__.py has it.
 */
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static long long now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv)
{
	char said[65536];
	int out[2], status = 1;
	pid_t pid;
	posix_spawn_file_actions_t actions;
	if (argc != 3 || posix_spawn_file_actions_init(&actions))
		return 2;
	long long start = now();
	if (pipe2(out, O_CLOEXEC) ||
	    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, argv[2], O_RDONLY, 0) ||
	    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO) ||
	    posix_spawn(&pid, argv[1], &actions, NULL, (char *[]){argv[1], NULL}, environ))
		return 2;
	close(out[1]);
	while (read(out[0], said, sizeof said) > 0)
		;
	if (waitpid(pid, &status, 0) != pid || status)
		return 1;
	long long end = now();
	printf("firstlight step plugin %lld %lld\nfirstlight ready %lld\n", start, end, end);
	return 0;
}
