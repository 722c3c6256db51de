/* Known work of a 32-bit x86 program, whose calls have other numbers, for tests of the tracer. It needs
 * no library: a compiler for 64 bits builds it by -m32 -nostdlib.
 *
 *   known32 DIR     look DIR up, make and remove a directory there, sleep for 50 ms, mount and unmount
 *                   a tmpfs there, make a network namespace, and ask for links by netlink twice:
 *                   by sendto and by sendmsg, as socketcall has them; then by sendto alone; from
 *                   these links nothing is accepted
 */
enum {
	EXIT_GROUP = 252,
	WRITE = 4,
	ACCESS = 33,
	MKDIR = 39,
	RMDIR = 40,
	CHDIR = 12,
	MOUNT = 21,
	UMOUNT2 = 52,
	UNSHARE = 310,
	NANOSLEEP = 162,
	SOCKETCALL = 102,
	SOCKET = 359,
	ACCEPT4 = 364,
	SENDTO = 369,
	CLOCK_GETTIME64 = 403
};
enum { SYS_SOCKET = 1, SYS_SENDTO = 11, SYS_SENDMSG = 16 };

static int call(int number, long a, long b, long c, long d, long e)
{
	int result;
	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "0"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
			 : "memory");
	return result;
}

static void need(int result)
{
	if (result < 0)
		call(EXIT_GROUP, -result, 0, 0, 0, 0);
}

/* "firstlight ready STAMP" in one write; the stamp has no leading zeros. */
static void say_ready(void)
{
	static const char words[] = "firstlight ready ";
	static char line[sizeof words + 20];
	struct {
		unsigned long long seconds, nanoseconds;
	} now;
	need(call(CLOCK_GETTIME64, 1, (long)&now, 0, 0, 0));
	unsigned int rest[2] = {(unsigned int)now.nanoseconds, (unsigned int)now.seconds};
	char *end = line + sizeof line, *at = end;
	*--at = '\n';
	for (int part = 0; part < 2; part++)
		for (int i = 0; part ? rest[part] : i < 9; i++, rest[part] /= 10)
			*--at = (char)('0' + rest[part] % 10);
	for (int i = sizeof words - 2; i >= 0; i--)
		*--at = words[i];
	need(call(WRITE, 1, (long)at, end - at, 0, 0));
}

static void ask_for_links(void)
{
	static struct {
		unsigned int length;
		unsigned short type, flags;
		unsigned int sequence, port;
		unsigned char family, rest[15];
	} ask = {sizeof ask, 18 /* RTM_GETLINK */, 0x301, 1, 0, 0, {0}};
	static struct {
		unsigned int base, size;
	} vector;
	static struct {
		unsigned int name, name_length, vectors, count, control, control_length, flags;
	} message;
	unsigned int words[6] = {16 /* AF_NETLINK */, 3, 0};
	int links = call(SOCKETCALL, SYS_SOCKET, (long)words, 0, 0, 0);
	need(links);
	unsigned int send[6] = {(unsigned int)links, (unsigned int)&ask, sizeof ask, 0, 0, 0};
	need(call(SOCKETCALL, SYS_SENDTO, (long)send, 0, 0, 0));
	vector.base = (unsigned int)&ask;
	vector.size = sizeof ask;
	message.vectors = (unsigned int)&vector;
	message.count = 1;
	unsigned int sendmsg[3] = {(unsigned int)links, (unsigned int)&message, 0};
	need(call(SOCKETCALL, SYS_SENDMSG, (long)sendmsg, 0, 0, 0));
	links = call(SOCKET, 16, 3, 0, 0, 0);
	need(links);
	need(call(SENDTO, links, (long)&ask, sizeof ask, 0, 0));
	call(ACCEPT4, links, 0, 0, 0, 0);
}

__attribute__((used)) void work(int *stack)
{
	char **argv = (char **)(stack + 1);
	long directory = (long)argv[1], made = (long)"known32";
	unsigned int pause[2] = {0, 50000000};
	need(call(ACCESS, directory, 0, 0, 0, 0));
	need(call(CHDIR, directory, 0, 0, 0, 0));
	need(call(MKDIR, made, 0700, 0, 0, 0));
	need(call(NANOSLEEP, (long)pause, 0, 0, 0, 0));
	need(call(MOUNT, (long)"none", made, (long)"tmpfs", 0, 0));
	need(call(UMOUNT2, made, 0, 0, 0, 0));
	need(call(RMDIR, made, 0, 0, 0, 0));
	need(call(UNSHARE, 0x40000000, 0, 0, 0, 0));
	ask_for_links();
	say_ready();
	call(EXIT_GROUP, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %esp, %eax\npush %eax\ncall work\n");
