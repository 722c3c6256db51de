/* shim-sandbox: holds the namespaces of a pod, in place of a pause container.
 *
 *   shim-sandbox [ipc] [uts] [pid] 3<SOCKET
 *
 * It makes its child in new namespaces, sends the child's pid on descriptor 3 as an int, and exits.
 * The child leaves the host's mounts and waits for one message:
 *
 *   HOSTNAME NUL { SYSCTL=VALUE NUL }...     and the descriptor of the pod's network namespace, or none
 *
 * It then enters the network, sets the sysctls, gives up every right, and answers with an errno and a
 * text. From then on it has no user, an empty root, no descriptors, and a filter that allows nothing but
 * waiting for signals. Containers may share its PID namespace, where it is PID 1 and reaps. While it
 * waits for the message it ends with the socket, and afterwards by the signals that end a pause
 * container. A container that shares its PID namespace sees it as /pause, and not its path on the host.
 *
 * It is C because it must be small: every pod has one.
 */
#include "common/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CONTROL = 3, MESSAGE = 64 << 10, NOBODY = 65535, PATH = 512, TEXT = 256 };

static const char NAME[] = "/pause";

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

struct answer {
	int32_t error;
	char text[TEXT];
};
_Static_assert(sizeof(struct answer) == 260, "agile/shim/sandboxes.py has it too");

static void answer(int error, const char *what, const char *which)
{
	struct answer answer = {.error = error};
	snprintf(answer.text, sizeof answer.text, "%s%s", what, which);
	(void)send(CONTROL, &answer, sizeof answer, MSG_NOSIGNAL);
}

static _Noreturn void fail(const char *what, const char *which)
{
	answer(errno, what, which);
	_exit(1);
}

static void leave_host(void)
{
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("sandbox", "/run", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
		  "mode=555,size=4k,nr_inodes=4") ||
	    mkdir("/run/proc", 0555) ||
	    mount("proc", "/run/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) ||
	    chdir("/run") || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) ||
	    chdir("/"))
		fail("cannot leave the host's mounts", "");
	/* As for a pause container. Where only the machine's root may lower it, it stays. */
	int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (file >= 0) {
		(void)!write(file, "-998", 4);
		close(file);
	}
}

/* As in sysctl(8), the first dot or slash is the separator. */
static void separate_by_slashes(char *name)
{
	const char *first = strpbrk(name, "./");
	if (first && *first == '.')
		for (char *at = name; *at; at++)
			*at = *at == '.' ? '/' : *at == '/' ? '.' : *at;
}

/* Sysctls of the pod's own namespaces, as runc allows: we are the machine's root until they are
 * set. */
static bool is_of_pod(const char *name, unsigned long namespaces)
{
	static const struct {
		const char *name;
		unsigned long namespace;
	} known[] = {
		{"net/", CLONE_NEWNET},
		{"fs/mqueue/", CLONE_NEWIPC},
		{"kernel/msgmax", CLONE_NEWIPC},
		{"kernel/msgmnb", CLONE_NEWIPC},
		{"kernel/msgmni", CLONE_NEWIPC},
		{"kernel/sem", CLONE_NEWIPC},
		{"kernel/shmall", CLONE_NEWIPC},
		{"kernel/shmmax", CLONE_NEWIPC},
		{"kernel/shmmni", CLONE_NEWIPC},
		{"kernel/shm_rmid_forced", CLONE_NEWIPC},
		{"kernel/domainname", CLONE_NEWUTS},
	};
	for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
		size_t length = strlen(known[i].name);
		bool is_directory = known[i].name[length - 1] == '/';
		if (!strncmp(name, known[i].name, length) && (is_directory || !name[length]))
			return namespaces & known[i].namespace && !strstr(name, "..");
	}
	return false;
}

/* Takes NAME=VALUE apart: the file of the name, and the value. Returns 0 or a negative errno. */
static int sysctl_parse(char *setting, unsigned long namespaces, char path[PATH],
			const char **value)
{
	static const char base[] = "/proc/sys/";
	char *end = strchr(setting, '=');
	if (!end)
		return -EINVAL;
	*end = 0;
	*value = end + 1;
	if (snprintf(path, PATH, "%s%s", base, setting) >= PATH)
		return -ENAMETOOLONG;
	separate_by_slashes(path + strlen(base));
	return is_of_pod(path + strlen(base), namespaces) ? 0 : -EPERM;
}

static void set_sysctl(char *setting, unsigned long namespaces)
{
	char path[PATH];
	const char *value;
	int failed = sysctl_parse(setting, namespaces, path, &value);
	if (failed) {
		errno = -failed;
		fail(failed == -EPERM ? "a sysctl of the pod is the node's: "
				      : "cannot set the sysctl ",
		     setting);
	}
	int file = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0 || write(file, value, strlen(value)) < 0)
		fail("cannot set the sysctl ", setting);
	close(file);
}

static void become_nobody(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {0};
	if (umount2("/proc", MNT_DETACH) ||
	    mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
		fail("cannot close its root", "");
	for (int each = 0; !prctl(PR_CAPBSET_DROP, each); each++)
		;
	if (errno != EINVAL || setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
	    setresuid(NOBODY, NOBODY, NOBODY) || syscall(SYS_capset, &header, none) ||
	    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) ||
	    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_DUMPABLE, 0))
		fail("cannot give up its rights", "");
}

#define ALLOW(name)                                            \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), \
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void filter(void)
{
	struct sock_filter rules[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(rt_sigtimedwait),
		ALLOW(wait4),
		ALLOW(sendto), /* the answer, and the only descriptor left */
		ALLOW(close_range),
		ALLOW(exit_group),
		ALLOW(restart_syscall),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		fail("cannot set its filter", "");
}

static _Noreturn void hold(void)
{
	sigset_t all;
	sigfillset(&all);
	for (;;) {
		int signal = sigwaitinfo(&all, NULL);
		if (signal == SIGTERM || signal == SIGINT)
			_exit(0);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
}

static void rename_self(int count, char **words)
{
	size_t size = (size_t)(strchr(words[count - 1], 0) - words[0]) + 1;
	memset(words[0], 0, size);
	memcpy(words[0], NAME, size < sizeof NAME ? size - 1 : sizeof NAME - 1);
	(void)prctl(PR_SET_NAME, strrchr(NAME, '/') + 1);
}

static _Noreturn void be_sandbox(unsigned long namespaces)
{
	static char message[MESSAGE + 1];
	sigset_t all;
	struct rights rights = {0};
	sigfillset(&all);
	if (sigprocmask(SIG_SETMASK, &all, NULL) || setsid() < 0)
		fail("cannot set itself up", "");
	(void)umask(022);
	leave_host();
	ssize_t size = socket_receive(CONTROL, message, MESSAGE, 0, &rights);
	if (size <= 0)
		_exit(0); /* it is not needed any more */
	if (rights.count && setns(rights.descriptors[0], CLONE_NEWNET))
		fail("cannot enter the pod's network", "");
	namespaces |= rights.count ? CLONE_NEWNET : 0;
	rights_close(&rights);
	if (*message && sethostname(message, strlen(message)))
		fail("cannot set the host name ", message);
	for (char *at = message + strlen(message) + 1, *end; at < message + size; at = end + 1) {
		end = at + strlen(at);
		set_sysctl(at, namespaces);
	}
	become_nobody();
	filter();
	answer(0, "", "");
	(void)syscall(SYS_close_range, 0, ~0U, 0);
	hold();
}

int main(int count, char **words)
{
	unsigned long namespaces = CLONE_NEWNS;
	for (int each = 1; each < count; each++) {
		if (!strcmp(words[each], "ipc"))
			namespaces |= CLONE_NEWIPC;
		else if (!strcmp(words[each], "uts"))
			namespaces |= CLONE_NEWUTS;
		else if (!strcmp(words[each], "pid"))
			namespaces |= CLONE_NEWPID;
		else
			return 2;
	}
	pid_t child = (pid_t)syscall(SYS_clone, namespaces | SIGCHLD, 0, 0, 0, 0);
	if (!child) {
		rename_self(count, words);
		be_sandbox(namespaces);
	}
	int number = child < 0 ? -errno : child;
	return send(CONTROL, &number, sizeof number, MSG_NOSIGNAL) != sizeof number || child < 0;
}
