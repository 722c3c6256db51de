/* The first process of firstlight's Linux guest.
 *
 * It loads the modules that /modules lists (a path per line), brings up eth0, mounts the root and
 * runs the payload from it. Once the payload has printed on the serial port that it is ready, and a
 * line can be read there, it prints where the boot's time went, in ticks of the time-stamp counter,
 * which starts with the machine: its own steps, and the kernel's trace
 * (trace_event=initcall:*,printk:console trace_clock=x86-tsc). So the printing delays neither this
 * start nor those of neighbours that are not ready yet. The kernel's command line gives its
 * environment:
 *
 *   firstlight_root=TYPE[,rw]    what /dev/vda holds; without it the initramfs is the root
 *   firstlight_address=A/PREFIX  of eth0
 *   firstlight_gateway=A         of the default route
 *   firstlight_packet=1          the payload sends its first packet to the gateway
 *   firstlight_least=TICKS       leave out initcalls that took less
 *
 * It is C because it is all that the initramfs holds, and part of the boot that is measured. The
 * guest's first process has nobody to return an error to: it prints the failure and reboots.
 */
#include "common/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>
#include <x86intrin.h>

enum { STEPS = 64, ANCHORS = 3, RUNNING = 8 };

static int serial = -1, kmsg = -1, nothing = -1;
static struct {
	char name[64];
	unsigned long long begin, end;
} steps[STEPS];
static int step_count;

__attribute__((format(printf, 2, 3))) static void print_to(int fd, const char *format, ...)
{
	char line[1200];
	va_list args;
	va_start(args, format);
	int length = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	if (length >= (int)sizeof line)
		length = sizeof line - 1;
	for (int done = 0; done < length;) {
		ssize_t n = write(fd, line + done, (size_t)(length - done));
		if (n < 0 && errno != EINTR)
			return;
		done += n < 0 ? 0 : (int)n;
	}
}

_Noreturn static void give_up(const char *step, const char *object)
{
	print_to(serial, "firstlight error %s %s: %s\n", step, object, strerror(errno));
	tcdrain(serial);
	reboot(RB_AUTOBOOT);
	_exit(1);
}

static void check(int result, const char *step, const char *object)
{
	if (result < 0)
		give_up(step, object);
}

static void begin(const char *what, const char *name)
{
	if (step_count == STEPS)
		step_count--;
	snprintf(steps[step_count].name, sizeof steps->name, "%s%.48s", what, name);
	steps[step_count].begin = __rdtsc();
}

static void end(void)
{
	steps[step_count++].end = __rdtsc();
}

static void load(const char *path)
{
	const char *slash = strrchr(path, '/');
	begin("module ", slash ? slash + 1 : path);
	int file = open(path, O_RDONLY | O_CLOEXEC);
	check(file, "open", path);
	if (syscall(SYS_finit_module, file, "", 0) < 0 && errno != EEXIST)
		give_up("load", path);
	close(file);
	end();
}

static void load_modules(void)
{
	FILE *list = fopen("/modules", "re");
	if (!list)
		give_up("open", "/modules");
	char path[256];
	while (fgets(path, sizeof path, list)) {
		path[strcspn(path, "\n")] = 0;
		load(path);
	}
	fclose(list);
}

static struct sockaddr ipv4(in_addr_t address)
{
	union {
		struct sockaddr_in in;
		struct sockaddr any;
	} to = {.in = {.sin_family = AF_INET, .sin_addr.s_addr = address}};
	return to.any;
}

/* Whether there is an eth0, which is then up with the address. */
static int network(char *address, const char *gateway)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	check(fd, "make", "a socket");
	struct ifreq link = {.ifr_name = "eth0"};
	char *prefix = strchr(address, '/');
	if (!prefix || ioctl(fd, SIOCGIFFLAGS, &link) < 0) {
		close(fd);
		return 0;
	}
	*prefix++ = 0;
	begin("network", "");
	link.ifr_addr = ipv4(inet_addr(address));
	check(ioctl(fd, SIOCSIFADDR, &link), "address eth0 as", address);
	link.ifr_netmask = ipv4(htonl(~(in_addr_t)0 << (32 - atoi(prefix))));
	check(ioctl(fd, SIOCSIFNETMASK, &link), "set the prefix of eth0 to", prefix);
	link.ifr_flags = IFF_UP;
	check(ioctl(fd, SIOCSIFFLAGS, &link), "bring up", "eth0");
	struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY,
				.rt_dst = ipv4(INADDR_ANY),
				.rt_genmask = ipv4(INADDR_ANY),
				.rt_gateway = ipv4(inet_addr(gateway))};
	check(ioctl(fd, SIOCADDRT, &route), "add the route by", gateway);
	end();
	close(fd);
	return 1;
}

static void mount_root(char *type)
{
	unsigned long flags = MS_RDONLY;
	char *comma = strchr(type, ',');
	if (comma) {
		*comma = 0;
		flags = 0;
	}
	begin("mount ", type);
	check(mount("/dev/vda", "/root", type, flags, NULL), "mount /dev/vda as", type);
	end();
	check(chdir("/root"), "enter", "the root");
	check(mount(".", "/", NULL, MS_MOVE, NULL), "move", "the root");
	check(chroot("."), "change to", "the root");
}

static void run_payload(char *packet_to)
{
	char *once[] = {"payload", "once", NULL}, *ready[] = {"payload", "ready", packet_to, NULL};
	char *environment[] = {NULL};
	begin("exec", "");
	pid_t pid = vfork();
	check(pid, "start", "the payload");
	if (pid == 0) {
		if (dup2(nothing, STDIN_FILENO) >= 0 && dup2(serial, STDOUT_FILENO) >= 0)
			execve("/payload", packet_to ? ready : once, environment);
		_exit(127);
	}
	int status;
	check(waitpid(pid, &status, 0), "wait for", "the payload");
	if (status) {
		errno = ENOEXEC;
		give_up("run", "the payload");
	}
	tcdrain(serial);
	end();
}

static void wait_to_be_asked(void)
{
	char line[64];
	while (read(serial, line, sizeof line) < 0 && errno == EINTR)
		;
}

/* Lines that the host sees at once tie its clock to the counter; by the kernel's console sooner. */
static void anchor(void)
{
	for (int i = 0; i < ANCHORS; i++) {
		print_to(kmsg, "<1>firstlight now %llu\n", __rdtsc());
		print_to(serial, "firstlight now %llu\n", __rdtsc());
		tcdrain(serial);
	}
	long long now = clock_now();
	print_to(serial, "firstlight clocks %llu %lld\n", __rdtsc(), now);
}

/* The record "Console: ...", with the log's time in us: the tracer has it too, in ticks. */
static void print_log_time(int log)
{
	char text[8192];
	unsigned long long us;
	ssize_t n;
	while ((n = read(log, text, sizeof text - 1)) > 0 || errno == EPIPE) {
		text[n > 0 ? n : 0] = 0;
		char *message = strchr(text, ';');
		if (!message || strncmp(message + 1, "Console: ", 9))
			continue;
		if (sscanf(text, "%*u,%*u,%llu", &us) == 1)
			print_to(serial, "firstlight log %llu %s", us, message + 1);
		break;
	}
}

/* "   swapper/0-1   [000] ...1.   TICKS: EVENT: func=NAME+0x0/0x10 ret=0" */
static unsigned long long ticks_before(const char *line, const char *event)
{
	while (event > line && event[-1] != ' ')
		event--;
	return strtoull(event, NULL, 10);
}

/* The initcalls that took at least this many ticks, and those of virtio. */
static void print_initcalls(FILE *trace, unsigned long long least)
{
	static const char start[] = ": initcall_start: func=",
			  finish[] = ": initcall_finish: func=";
	static struct {
		unsigned long long ticks;
		char name[96];
	} open[RUNNING];
	char line[1024];
	int next = 0;
	while (fgets(line, sizeof line, trace)) {
		const char *event, *console = strstr(line, ": console: Console: ");
		if (console)
			print_to(serial, "firstlight trace %llu Console\n",
				 ticks_before(line, console));
		if ((event = strstr(line, start))) {
			open[next].ticks = ticks_before(line, event);
			event += strlen(start);
			snprintf(open[next].name, sizeof open->name, "%.*s",
				 (int)strcspn(event, "+ \n"), event);
			next = (next + 1) % RUNNING;
		} else if ((event = strstr(line, finish))) {
			unsigned long long ticks = ticks_before(line, event);
			event += strlen(finish);
			size_t length = strcspn(event, "+ \n");
			for (int i = 0; i < RUNNING; i++)
				if (strlen(open[i].name) == length &&
				    !strncmp(open[i].name, event, length)) {
					if (ticks - open[i].ticks >= least ||
					    strstr(open[i].name, "virtio"))
						print_to(serial,
							 "firstlight step %llu %llu initcall %s\n",
							 open[i].ticks, ticks, open[i].name);
					open[i].name[0] = 0;
				}
		}
	}
}

static void print_trace(void)
{
	const char *least = getenv("firstlight_least");
	mkdir("/trace", 0755);
	if (mount("tracefs", "/trace", "tracefs", 0, NULL) < 0)
		return;
	FILE *trace = fopen("/trace/trace", "re");
	if (!trace)
		return;
	print_initcalls(trace, least ? strtoull(least, NULL, 10) : 0);
	fclose(trace);
}

int main(void)
{
	unsigned long long started = __rdtsc();
	check(mount("devtmpfs", "/dev", "devtmpfs", 0, NULL), "mount", "devtmpfs");
	serial = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);
	kmsg = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	int log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
	check(nothing, "open", "/dev/null");
	load_modules();
	char *address = getenv("firstlight_address"), *gateway = getenv("firstlight_gateway");
	int reachable = address && gateway && network(address, gateway);
	char *root = getenv("firstlight_root");
	if (root)
		mount_root(root);
	run_payload(reachable && getenv("firstlight_packet") ? gateway : NULL);
	wait_to_be_asked();
	anchor();
	print_to(serial, "firstlight init %llu\n", started);
	for (int i = 0; i < step_count; i++)
		print_to(serial, "firstlight step %llu %llu %s\n", steps[i].begin, steps[i].end,
			 steps[i].name);
	print_trace();
	print_log_time(log);
	print_to(serial, "firstlight log ends\n");
	for (;;)
		pause();
}
