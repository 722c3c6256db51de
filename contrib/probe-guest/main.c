/* The probe: a guest that does what a guest must to serve, and nothing else, and says what each step
 * took. It is the floor of every hypervisor: what no guest can be faster than.
 *
 * Command line (the hypervisor may add to it):
 *   console=serial|vga          where its own text goes
 *   file=PATH sum=N             mount the disk, read PATH, and compare its FNV-1a sum
 *   ip=ADDRESS gw=ADDRESS       send the gateway an echo request and hear the answer
 *   lines=N                     print as many lines more, as a talkative kernel does
 *   exit=PORT                   write EXIT_DONE there at the very end (QEMU's isa-debug-exit)
 *   pci=off                     do not look for it
 *   virtio_mmio.device=SIZE@ADDRESS:IRQ   a device; those on PCI are found
 * What is asked for must be done; a device that is not there is otherwise "absent".
 *
 * On the serial port, whatever the console (stamps in ticks of the TSC):
 *   firstlight probe ready STAMP          the end point; what follows costs nobody's start
 *   probe STEP START END                  in order; "console" once for each line of text, "disk read"
 *                                         first where our own boot sector was the loader
 *   probe STEP absent
 *   probe clock HZ SOURCE HYPERVISOR
 *   probe end SPANS STAMP                 all has been said
 * or "probe failed STEP: WORDS", and the machine resets.
 */
#include "guest.h"

enum { EXIT_DONE = 123, EXIT_FAILED = 124, SPANS = 32, RANDOM_BYTES = 16 };

static struct {
	const char *name;
	uint64_t start, end; /* both 0: absent */
} spans[SPANS];
static uint64_t count;

void *memcpy(void *to, const void *from, size_t length);
void *memset(void *to, int value, size_t length);
void start(uint64_t first, const void *told, const uint64_t *loaded, bool by_pvh);

/* The compiler may ask for these two by itself. */
void *memcpy(void *to, const void *from, size_t length)
{
	void *rest = to;
	__asm__ volatile("rep movsb" : "+D"(rest), "+S"(from), "+c"(length) : : "memory");
	return to;
}

void *memset(void *to, int value, size_t length)
{
	void *rest = to;
	__asm__ volatile("rep stosb" : "+D"(rest), "+c"(length) : "a"(value) : "memory");
	return to;
}

static _Noreturn void halt(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

/* The keyboard controller's reset line; and where there is none, an exception without handlers. */
static _Noreturn void reset(void)
{
	static const struct __attribute__((packed)) {
		uint16_t limit;
		uint64_t base;
	} no_handlers;
	out8(0x64, 0xfe);
	__asm__ volatile("lidt %0; int3" : : "m"(no_handlers));
	halt();
}

static void leave(uint8_t code)
{
	const char *port = option("exit=", NULL);
	if (port)
		out8((uint16_t)number(&port), code);
}

_Noreturn void fail(const char *step, const char *words)
{
	report("probe failed %s: %s (told: %s)\n", step, words, option("", NULL));
	leave(EXIT_FAILED);
	reset();
}

static void add(const char *name, uint64_t start, uint64_t end)
{
	if (count < SPANS) {
		spans[count].name = name;
		spans[count].start = start;
		spans[count].end = end;
	}
	count++;
}

/* A step ends; TEXT is what a kernel would print of it, and the printing is the console's time. */
#define DONE(name, begun, ...)                \
	do {                                  \
		uint64_t ended = now();       \
		add(name, begun, ended);      \
		say(__VA_ARGS__);             \
		add("console", ended, now()); \
	} while (0)

static void absent(const char *name)
{
	add(name, 0, 0);
}

static void chatter(void)
{
	const char *asked = option("lines=", NULL);
	uint64_t lines = asked ? number(&asked) : 0, begun = now();
	for (uint64_t i = 1; i <= lines; i++)
		say("[%u] what a talkative kernel prints of each part that it sets up\n", i);
	if (lines)
		add("console", begun, now());
}

/* Where PVH's hvm_start_info and Linux's boot_params keep the command line. */
static const char *command_line(const void *told, bool by_pvh)
{
	const uint8_t *at = told;
	if (!by_pvh)
		return (const char *)(uint64_t) * (const uint32_t *)(at + 0x228);
	return *(const uint32_t *)at == 0x336ec578 ? (const char *)*(const uint64_t *)(at + 24)
						   : NULL;
}

static void mount(bool disk)
{
	const char *path = option("file=", NULL), *wanted = option("sum=", NULL);
	if (!path)
		return;
	if (!disk)
		fail("mount", "there is no disk");
	uint64_t begun = now(), size;
	uint32_t sum = erofs_sum(path, &size);
	if (wanted && number(&wanted) != sum)
		fail("mount", "the file's content is not what it should be");
	DONE("mount", begun, "mount: erofs, a file of %u bytes, sum 0x%x\n", size, (uint64_t)sum);
}

static void reach(bool interface)
{
	const char *own = option("ip=", NULL), *gateway = option("gw=", NULL);
	if (!own || !gateway)
		return;
	if (!interface)
		fail("packet", "there is no network interface");
	uint64_t begun = now();
	net_reach(address(own), address(gateway));
	DONE("packet", begun, "packet: the gateway answers\n");
}

static void tell(uint64_t ready)
{
	const char *source;
	report("firstlight probe ready %u\n", ready);
	for (uint64_t i = 0; i < count && i < SPANS; i++)
		if (spans[i].end)
			report("probe %s %u %u\n", spans[i].name, spans[i].start, spans[i].end);
		else
			report("probe %s absent\n", spans[i].name);
	uint64_t frequency = tsc_frequency(&source);
	report("probe clock %u %s %s\n", frequency, source, hypervisor());
	report("probe end %u %u\n", count, now());
}

void start(uint64_t first, const void *told, const uint64_t *loaded, bool by_pvh)
{
	static uint8_t random[RANDOM_BYTES];
	traps_catch();
	const char *line = command_line(told, by_pvh);
	options_set(line ? line : "");
	uint64_t begun = now();
	if (loaded)
		add("disk read", loaded[0], loaded[1]);
	add("entry", loaded ? loaded[1] : first, begun);

	if (!console_open(is_word(option("console=", NULL), "vga")))
		fail("console", "there is none of this kind");
	DONE("console", begun, "firstlight probe: a guest that does what a guest must\n");
	chatter();

	begun = now();
	pci_enumerate();
	if (pci.present)
		DONE("pci", begun, "pci: %u functions, %u of them virtio\n",
		     (uint64_t)pci.functions, (uint64_t)pci.virtio_functions);
	else
		absent("pci");

	begun = now();
	uint64_t mapped = pci.present ? 0 : virtio_look();
	if (mapped)
		DONE("virtio", begun, "virtio: %u devices on MMIO\n", mapped);
	else
		absent("virtio");

	begun = now();
	bool disk = block_begin();
	if (disk)
		DONE("block", begun, "block: %u sectors\n", block_sectors());
	else
		absent("block");

	begun = now();
	bool interface = net_begin();
	if (interface)
		DONE("net", begun, "net: a network interface\n");
	else
		absent("net");

	begun = now();
	if (rng_begin(random, RANDOM_BYTES))
		DONE("rng", begun, "rng: random bytes, the first 0x%x\n", (uint64_t)random[0]);
	else
		absent("rng");

	mount(disk);
	reach(interface);
	tell(now());
	leave(EXIT_DONE);
	halt();
}
