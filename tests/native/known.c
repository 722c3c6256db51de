/* Known work for tests of the tracer: does exactly what it is told, says how long that took by its
 * own clock ("firstlight step known START END"), then "firstlight ready STAMP", and exits.
 *
 *   known netns N           make N network namespaces
 *   known mount-sleep DIR MS  sleep between a mount and an unmount at DIR
 *   known mount-burn DIR MS   burn CPU time there instead
 *   known late MS           compute, sleep, wait for a child that ends at once, and sleep
 *   known timeouts DIR MS   likewise, by timeouts of calls that wait for something else
 *   known child MS          wait for a child that sleeps
 *   known thread DIR N      wait for a thread that makes and removes N files
 *   known threads N         wait for N threads that look a file up and for one another
 *   known ping-pong N       exchange N bytes with a child over two pipes
 *   known flock FILE MS     wait for a lock on a file that a child holds while it sleeps
 *   known mounts DIR N      mount and unmount N times at a new directory in DIR
 *   known files DIR N       make and remove N files
 *   known vfork N           vfork and execute oneself, N times nested
 *   known notify DIR MS     look DIR up in a child, which seccomp lets wait until we have slept
 *   known uring MS          wait for a timer of io_uring
 *   known thread-exec       execute oneself from a second thread
 *   known thread-execs N    likewise in N children, one after the other
 *   known say               nothing
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *directory;
static long amount;

static void need(int good, const char *what)
{
	if (good)
		return;
	printf("firstlight error %s: %s\n", what, strerror(errno));
	exit(1);
}

static long long clock_ns(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void sleep_ms(long ms)
{
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};
	while (nanosleep(&t, &t) && errno == EINTR)
		;
}

static void burn_ms(long ms)
{
	long long until = clock_ns(CLOCK_THREAD_CPUTIME_ID) + ms * 1000000LL;
	while (clock_ns(CLOCK_THREAD_CPUTIME_ID) < until)
		;
}

static void join(pid_t child)
{
	int status;
	need(waitpid(child, &status, 0) == child && status == 0, "waitpid");
}

static void make_namespaces(void)
{
	for (long i = 0; i < amount; i++)
		need(unshare(CLONE_NEWNET) == 0, "unshare");
}

static void time_out(long ms)
{
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};
	struct timeval u = {ms / 1000, ms % 1000 * 1000};
	int epoll = epoll_create1(EPOLL_CLOEXEC), word = 0;
	struct epoll_event event;
	sigset_t none;
	need(epoll >= 0 && sigemptyset(&none) == 0, "epoll_create1");
	need(poll(NULL, 0, (int)ms) == 0, "poll");
	need(select(0, NULL, NULL, NULL, &u) == 0, "select");
	need(epoll_wait(epoll, &event, 1, (int)ms) == 0, "epoll_wait");
	need(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0) < 0, "futex");
	need(sigtimedwait(&none, NULL, &t) < 0, "sigtimedwait");
}

static void mount_and(void (*work)(long))
{
	need(mount("known", directory, "tmpfs", 0, NULL) == 0, "mount");
	work(amount);
	need(umount2(directory, 0) == 0, "umount2");
}

static void nothing(long unused)
{
	(void)unused;
}

static void mount_often(void)
{
	static char own[4096];
	snprintf(own, sizeof(own), "%s/%d", directory, getpid());
	need(mkdir(own, 0700) == 0, own);
	directory = own;
	for (long i = 0; i < amount; i++)
		mount_and(nothing);
}

static void wait_for_child(void)
{
	pid_t child = fork();
	need(child >= 0, "fork");
	if (child == 0) {
		sleep_ms(amount);
		_exit(0);
	}
	join(child);
}

/* Children whose mount namespaces end with them: the kernel waits for readers after their exit. */
static void leave_namespaces(void)
{
	for (long i = 0; i < amount; i++) {
		pid_t child = fork();
		need(child >= 0, "fork");
		if (child == 0) {
			need(unshare(CLONE_NEWNS) == 0, "unshare");
			_exit(0);
		}
		join(child);
	}
}

static void fork_late(void)
{
	burn_ms(amount);
	sleep_ms(amount);
	pid_t child = fork();
	need(child >= 0, "fork");
	if (child == 0)
		_exit(0);
	join(child);
	sleep_ms(amount);
}

static void *make_files(void *unused)
{
	char name[4096];
	for (long i = 0; i < amount; i++) {
		snprintf(name, sizeof(name), "%s/known-%ld", directory, i);
		int file = open(name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
		need(file >= 0 && close(file) == 0 && unlink(name) == 0, name);
	}
	return unused;
}

static pthread_barrier_t all_are_there;

/* No thread ends before the last one was there: so many are alive at once. */
static void *look_up(void *unused)
{
	need(access("/sys/fs/cgroup", F_OK) == 0, "access");
	pthread_barrier_wait(&all_are_there);
	return unused;
}

static void wait_for_threads(long count, void *(*work)(void *))
{
	pthread_t threads[256];
	need(count <= 256, "too many threads");
	for (long i = 0; i < count; i++)
		need(pthread_create(&threads[i], NULL, work, NULL) == 0, "pthread_create");
	for (long i = 0; i < count; i++)
		need(pthread_join(threads[i], NULL) == 0, "pthread_join");
}

static void ping_pong(void)
{
	int there[2], back[2];
	char byte = 'x';
	need(pipe2(there, O_CLOEXEC) == 0 && pipe2(back, O_CLOEXEC) == 0, "pipe2");
	pid_t child = fork();
	need(child >= 0, "fork");
	for (long i = 0; i < amount; i++)
		if (child)
			need(write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1,
			     "ping");
		else
			need(read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1,
			     "pong");
	if (child == 0)
		_exit(0);
	join(child);
}

static void wait_for_lock(void)
{
	int locked[2];
	char byte = 'x';
	need(pipe2(locked, O_CLOEXEC) == 0, "pipe2");
	pid_t child = fork();
	need(child >= 0, "fork");
	int file = open(directory, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	need(file >= 0, directory);
	if (child == 0) {
		need(flock(file, LOCK_EX) == 0 && write(locked[1], &byte, 1) == 1, "flock");
		sleep_ms(amount);
		_exit(0);
	}
	need(read(locked[0], &byte, 1) == 1 && flock(file, LOCK_EX) == 0, "flock");
	join(child);
}

/* Shares its descriptors with us, so that we have its listener. */
static void be_supervised(int ready)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_chdir, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
	struct sock_fprog filter = {sizeof code / sizeof *code, code};
	need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
	int listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
				    SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
	need(listener >= 0 && write(ready, &listener, sizeof listener) == sizeof listener,
	     "seccomp");
	need(chdir(directory) == 0, directory);
	_exit(0);
}

static void supervise(void)
{
	int ready[2], listener;
	struct seccomp_notif asked = {0};
	need(pipe2(ready, O_CLOEXEC) == 0, "pipe2");
	pid_t child = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
	need(child >= 0, "clone");
	if (child == 0)
		be_supervised(ready[1]);
	need(read(ready[0], &listener, sizeof listener) == sizeof listener, "read");
	need(ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked) == 0, "receive");
	sleep_ms(amount);
	struct seccomp_notif_resp answer = {.id = asked.id,
					    .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
	need(ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer) == 0, "answer");
	join(child);
}

static void wait_for_timer(void)
{
	struct io_uring_params params = {0};
	struct __kernel_timespec time = {amount / 1000, amount % 1000 * 1000000};
	int ring = (int)syscall(SYS_io_uring_setup, 1, &params);
	need(ring >= 0, "io_uring_setup");
	char *queue = mmap(NULL, params.sq_off.array + sizeof(int), PROT_READ | PROT_WRITE,
			   MAP_SHARED, ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *entry = mmap(NULL, sizeof *entry, PROT_READ | PROT_WRITE, MAP_SHARED,
					  ring, IORING_OFF_SQES);
	need(queue != MAP_FAILED && entry != MAP_FAILED, "mmap");
	*entry = (struct io_uring_sqe){
		.opcode = IORING_OP_TIMEOUT, .fd = -1, .addr = (unsigned long)&time, .len = 1};
	__atomic_store_n((unsigned *)(queue + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	need(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1,
	     "io_uring_enter");
}

static void execute(const char *verb)
{
	char number[32];
	snprintf(number, sizeof(number), "%ld", amount);
	execl("/proc/self/exe", "known", verb, number, NULL);
	_exit(127);
}

static void nest(void)
{
	if (amount == 0)
		return;
	pid_t child = vfork();
	need(child >= 0, "vfork");
	if (child == 0) {
		amount--;
		execute("nested");
	}
	amount++; /* a vfork shares memory: the child took one off */
	join(child);
}

static void *execute_say(void *unused)
{
	execute("say");
	return unused;
}

static void *execute_nested(void *unused)
{
	amount = 0;
	execute("nested");
	return unused;
}

static void execute_in_children(void)
{
	for (long left = amount; left; left--) {
		pid_t child = fork();
		need(child >= 0, "fork");
		if (child == 0)
			wait_for_threads(1, execute_nested);
		join(child);
	}
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";
	directory = argc > 3 ? argv[2] : "/";
	amount = argc > 2 ? strtol(argv[argc - 1], NULL, 10) : 0;
	setvbuf(stdout, NULL, _IOLBF, 0);
	long long start = clock_ns(CLOCK_MONOTONIC);
	if (!strcmp(verb, "netns"))
		make_namespaces();
	else if (!strcmp(verb, "mount-sleep"))
		mount_and(sleep_ms);
	else if (!strcmp(verb, "mount-burn"))
		mount_and(burn_ms);
	else if (!strcmp(verb, "late"))
		fork_late();
	else if (!strcmp(verb, "timeouts"))
		mount_and(time_out);
	else if (!strcmp(verb, "leave"))
		leave_namespaces();
	else if (!strcmp(verb, "child"))
		wait_for_child();
	else if (!strcmp(verb, "thread"))
		wait_for_threads(1, make_files);
	else if (!strcmp(verb, "threads")) {
		need(pthread_barrier_init(&all_are_there, NULL, (unsigned)amount) == 0, "barrier");
		wait_for_threads(amount, look_up);
	} else if (!strcmp(verb, "ping-pong"))
		ping_pong();
	else if (!strcmp(verb, "flock"))
		wait_for_lock();
	else if (!strcmp(verb, "mounts"))
		mount_often();
	else if (!strcmp(verb, "files"))
		make_files(NULL);
	else if (!strcmp(verb, "vfork") || !strcmp(verb, "nested"))
		nest();
	else if (!strcmp(verb, "notify"))
		supervise();
	else if (!strcmp(verb, "uring"))
		wait_for_timer();
	else if (!strcmp(verb, "thread-exec"))
		wait_for_threads(1, execute_say);
	else if (!strcmp(verb, "thread-execs"))
		execute_in_children();
	else if (strcmp(verb, "say"))
		need(0, verb);
	if (!strcmp(verb, "nested"))
		return 0;
	long long end = clock_ns(CLOCK_MONOTONIC);
	printf("firstlight step known %lld %lld\nfirstlight ready %lld\n", start, end, end);
	return 0;
}
