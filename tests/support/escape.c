/* Tries to get out of an instance. Each attempt says "held NAME" or "ESCAPED NAME DETAIL".
 *
 *   escape attempts [NEIGHBOUR HOST PORT]   all of them; with addresses, also those by network
 *   escape forks                            fork until it fails, say how many there were
 *   escape memory                           touch memory until killed
 *   escape sockets                          fill sockets of its own, as many as it may have, and sleep
 *   escape listen PORT                      say "listening" and accept for ever
 *   escape ping ADDRESS                     one ICMP echo, say "answered" or why not
 *   escape netlink                          open a netlink socket, say "opened" or why not
 *   escape hold SECONDS                     sleep
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static void judge(const char *name, int escaped)
{
	if (escaped)
		printf("ESCAPED %s\n", name);
	else
		printf("held %s\n", name);
	fflush(stdout);
}

#define FAILS(name, call) judge(name, (long)(call) >= 0)

static int opens(const char *path, int flags)
{
	int file = open(path, flags);
	if (file >= 0)
		close(file);
	return file;
}

static int writes(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);
	ssize_t n = file < 0 ? -1 : write(file, text, strlen(text));
	if (file >= 0)
		close(file);
	return n > 0 ? 0 : -1;
}

static int descriptors(void)
{
	int more = 0;
	DIR *list = opendir("/proc/self/fd");
	for (struct dirent *entry; list && (entry = readdir(list));)
		more |= entry->d_name[0] != '.' && atoi(entry->d_name) > 2 && atoi(entry->d_name) != dirfd(list);
	return list ? more : 1;
}

static int processes(void)
{
	int others = 0;
	DIR *list = opendir("/proc");
	for (struct dirent *entry; list && (entry = readdir(list));)
		others |= atoi(entry->d_name) > 0 && atoi(entry->d_name) != getpid();
	return list ? others : 1;
}

/* At 1 alone the kernel starts no helper of the host's for a core. */
static int sets_core_limit(void)
{
	struct rlimit none = {0, 0}, now;
	return !setrlimit(RLIMIT_CORE, &none) && (getrlimit(RLIMIT_CORE, &now) || now.rlim_cur != 1);
}

static int has_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {{0}};
	syscall(SYS_capget, &header, data);
	int bounding = 0;
	for (int i = 0; i < 41; i++)
		bounding |= prctl(PR_CAPBSET_READ, i) == 1;
	return bounding || data[0].permitted || data[0].effective || data[0].inheritable ||
	       data[1].permitted || data[1].effective;
}

static int connects(const char *address, int port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	inet_pton(AF_INET, address, &to.sin_addr);
	int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	int error = EINPROGRESS;
	socklen_t size = sizeof error;
	struct pollfd ready = {s, POLLOUT, 0};
	if (connect(s, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)
		return -1;
	if (poll(&ready, 1, 700) == 1)
		getsockopt(s, SOL_SOCKET, SO_ERROR, &error, &size);
	close(s);
	return error ? -1 : 0;
}

static int pings(const char *address)
{
	struct sockaddr_in to = {.sin_family = AF_INET};
	struct icmphdr echo = {.type = ICMP_ECHO};
	char answer[128];
	inet_pton(AF_INET, address, &to.sin_addr);
	int s = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
	struct pollfd ready = {s, POLLIN, 0};
	if (s < 0 || sendto(s, &echo, sizeof echo, 0, (struct sockaddr *)&to, sizeof to) < 0)
		return -1;
	if (poll(&ready, 1, 700) != 1)
		return errno = ETIMEDOUT, -1;
	return recv(s, answer, sizeof answer, 0) > 0 ? 0 : -1;
}

static void by_kernel(void)
{
	struct timeval zero = {0, 0};
	int pair[2];
	unsigned handle[34] = {128};
	char bytes[64];
	struct sock_filter accept = BPF_STMT(BPF_RET | BPF_K, 1);
	struct sock_fprog accepts = {1, &accept};
	FAILS("mount", mount("tmpfs", "/tmp", "tmpfs", 0, NULL));
	FAILS("remount root", mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL));
	FAILS("umount proc", umount2("/proc", MNT_DETACH));
	FAILS("pivot root", syscall(SYS_pivot_root, "/tmp", "/tmp"));
	FAILS("chroot", chroot("/tmp"));
	FAILS("open tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
	FAILS("unshare user", unshare(CLONE_NEWUSER));
	FAILS("unshare network", unshare(CLONE_NEWNET));
	FAILS("clone user", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
	FAILS("clone3", syscall(SYS_clone3, bytes, 64));
	FAILS("setns", setns(0, 0));
	FAILS("ptrace", ptrace(PTRACE_TRACEME, 0, 0, 0));
	FAILS("process_vm_readv", syscall(SYS_process_vm_readv, getpid(), NULL, 0, NULL, 0, 0));
	FAILS("keyctl", syscall(SYS_keyctl, 0, -3, 0, 0, 0));
	FAILS("add_key", syscall(SYS_add_key, "user", "x", "y", 1, -3));
	FAILS("bpf", syscall(SYS_bpf, 0, bytes, 64));
	FAILS("perf_event_open", syscall(SYS_perf_event_open, bytes, 0, -1, -1, 0));
	FAILS("userfaultfd", syscall(SYS_userfaultfd, 1));
	FAILS("io_uring", syscall(SYS_io_uring_setup, 1, bytes));
	FAILS("init_module", syscall(SYS_init_module, bytes, 0, ""));
	FAILS("kexec", syscall(SYS_kexec_load, 0, 0, NULL, 0));
	FAILS("reboot", reboot(RB_DISABLE_CAD));
	FAILS("swapon", syscall(SYS_swapon, "/dev/zero", 0));
	FAILS("settimeofday", settimeofday(&zero, NULL));
	FAILS("sethostname", sethostname("x", 1));
	FAILS("open by handle", syscall(SYS_open_by_handle_at, AT_FDCWD, bytes, 0));
	FAILS("handle of a file", syscall(SYS_name_to_handle_at, AT_FDCWD, "/", handle, pair, 0));
	FAILS("descriptor of a process", syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, getpid(), 0), 0, 0));
	FAILS("file events by handles", syscall(SYS_fanotify_init, 0x200, 0));
	FAILS("fixed addresses", syscall(SYS_personality, 0x40000));
	FAILS("setuid", setuid(0));
	FAILS("setgid", setgid(0));
	FAILS("mknod block", mknod("/tmp/disk", S_IFBLK | 0666, makedev(254, 0)));
	FAILS("raw socket", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
	FAILS("packet socket", socket(AF_PACKET, SOCK_RAW, 0));
	FAILS("vsock", socket(40, SOCK_STREAM, 0));
	FAILS("kernel crypto socket", socket(38, SOCK_SEQPACKET, 0));
	FAILS("the host's device events", socket(AF_NETLINK, SOCK_RAW, 15));
	FAILS("audit socket", socket(AF_NETLINK, SOCK_RAW, 9));
	FAILS("connector socket", socket(AF_NETLINK, SOCK_DGRAM, 11));
	FAILS("generic netlink", socket(AF_NETLINK, SOCK_RAW, 16));
	FAILS("compiled filter of a socket",
	      setsockopt(socket(AF_UNIX, SOCK_DGRAM, 0), SOL_SOCKET, SO_ATTACH_FILTER, &accepts,
			 sizeof accepts));
	FAILS("pair of tipc sockets", socketpair(30, SOCK_SEQPACKET, 0, pair));
#if defined(__x86_64__)
	FAILS("x32 call", syscall(0x40000000 | SYS_getpid));
#endif
}

static void by_files(void)
{
	judge("descriptors", descriptors());
	judge("processes", processes());
	judge("core limit", sets_core_limit());
	judge("capabilities", has_capabilities());
	judge("new privileges", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1);
	judge("user", getuid() == 0 || getgid() == 0 || getgroups(0, NULL) != 0);
	FAILS("write root", opens("/escaped", O_CREAT | O_WRONLY));
	FAILS("write bin", opens("/bin/escape", O_WRONLY));
	FAILS("write dev", opens("/dev/escaped", O_CREAT | O_WRONLY));
	FAILS("core_pattern", writes("/proc/sys/kernel/core_pattern", "x"));
	FAILS("sysrq", writes("/proc/sysrq-trigger", "h"));
	FAILS("ip_forward", writes("/proc/sys/net/ipv4/ip_forward", "1"));
	FAILS("oom_score_adj", writes("/proc/self/oom_score_adj", "-1000"));
	FAILS("uid_map", writes("/proc/self/uid_map", "0 0 1"));
	FAILS("kcore", opens("/proc/kcore", O_RDONLY) < 0 ? -1 : (long)lseek(open("/proc/kcore", O_RDONLY), 0, SEEK_END) - 1);
	FAILS("parent's root", opens("/proc/1/root/etc/shadow", O_RDONLY));
	FAILS("memory device", opens("/dev/mem", O_RDWR));
	FAILS("cgroup files", opens("/sys/fs/cgroup", O_RDONLY));
}

static void by_network(const char *neighbour, const char *host, int port)
{
	FAILS("neighbour tcp", connects(neighbour, port));
	FAILS("neighbour ping", pings(neighbour));
	FAILS("host service", connects(host, port));
	FAILS("host loopback", connects("127.0.0.1", port));
}

static int forks(void)
{
	int count = 1;
	for (; count < 100000; count++) {
		pid_t pid = fork();
		if (pid == 0) {
			pause();
			_exit(0);
		}
		if (pid < 0)
			break;
	}
	printf("forks %d\n", count);
	return 0;
}

_Noreturn static void memory(void)
{
	for (size_t step = 1 << 20;;) {
		char *bytes = malloc(step);
		if (bytes)
			memset(bytes, 1, step);
	}
}

/* Datagrams to itself that it does not read. */
_Noreturn static void sockets(void)
{
	static char bytes[60000];
	int s;
	while ((s = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)) >= 0) {
		struct sockaddr_in at = {.sin_family = AF_INET,
					 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		socklen_t size = sizeof at;
		if (bind(s, (struct sockaddr *)&at, sizeof at) ||
		    getsockname(s, (struct sockaddr *)&at, &size))
			break;
		for (int i = 0; i < 8; i++)
			sendto(s, bytes, sizeof bytes, 0, (struct sockaddr *)&at, size);
	}
	printf("full\n");
	for (;;)
		pause();
}

static int listen_at(int port)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	int s = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(s, (struct sockaddr *)&at, sizeof at) || listen(s, 8)) {
		printf("cannot listen: %s\n", strerror(errno));
		return 1;
	}
	printf("listening\n");
	fflush(stdout);
	for (;;) {
		int c = accept(s, NULL, NULL);
		if (c >= 0 && write(c, "hello\n", 6) == 6)
			close(c);
	}
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc >= 2 && !strcmp(argv[1], "attempts")) {
		by_files();
		if (argc == 5)
			by_network(argv[2], argv[3], atoi(argv[4]));
		by_kernel();
		printf("all attempts made\n");
		return 0;
	}
	if (argc == 2 && !strcmp(argv[1], "forks"))
		return forks();
	if (argc == 2 && !strcmp(argv[1], "netlink")) {
		puts(socket(AF_NETLINK, SOCK_RAW, 0) < 0 ? strerror(errno) : "opened");
		return 0;
	}
	if (argc == 2 && !strcmp(argv[1], "memory"))
		memory();
	if (argc == 2 && !strcmp(argv[1], "sockets"))
		sockets();
	if (argc == 3 && !strcmp(argv[1], "listen"))
		return listen_at(atoi(argv[2]));
	if (argc == 3 && !strcmp(argv[1], "ping")) {
		printf("%s\n", pings(argv[2]) ? strerror(errno) : "answered");
		return 0;
	}
	if (argc == 3 && !strcmp(argv[1], "hold")) {
		printf("holding\n");
		sleep((unsigned)atoi(argv[2]));
		return 0;
	}
	return 2;
}
