/* How fast the TSC counts: what the hypervisor or the processor says, else counted against the
 * timer chip (8254, channel 0), which every PC emulation has; its interrupt is never heard. */
#include "guest.h"

enum { PIT_HZ = 1193182, WINDOW = 23864 /* 20 ms */, READINGS = 8, ATTEMPTS = 5 };
enum { BOTH_BYTES_ONE_SHOT = 0x30, LATCH = 0 };
enum { HYPERVISOR = 0x40000000, HYPERVISOR_FREQUENCY = 0x40000010, CRYSTAL = 0x15 };

struct registers {
	uint32_t a, b, c, d;
};

static struct registers cpuid(uint32_t leaf)
{
	struct registers r;
	__asm__("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(0));
	return r;
}

static bool is_virtual(void)
{
	return cpuid(1).c >> 31;
}

const char *hypervisor(void)
{
	static union {
		uint32_t words[3];
		char letters[13];
	} name;
	if (!is_virtual())
		return "none";
	struct registers r = cpuid(HYPERVISOR);
	name.words[0] = r.b;
	name.words[1] = r.c;
	name.words[2] = r.d;
	for (char *letter = name.letters; *letter; letter++)
		if (*letter <= ' ' || *letter > '~')
			*letter = '?';
	return *name.letters ? name.letters : "unnamed";
}

struct instant {
	uint64_t earliest, width; /* in ticks: it was at most WIDTH after EARLIEST */
	uint16_t count; /* of the timer chip, downwards */
};

/* An interruption between two instructions is seen as a wide instant: keep the narrowest of some. */
static struct instant narrowest(void)
{
	struct instant best = {.width = UINT64_MAX};
	for (unsigned i = 0; i < READINGS; i++) {
		uint64_t earliest = now();
		out8(0x43, LATCH);
		uint64_t width = now() - earliest;
		uint8_t low = in8(0x40);
		uint16_t count = (uint16_t)(in8(0x40) << 8 | low);
		if (width < best.width)
			best = (struct instant){earliest, width, count};
	}
	return best;
}

/* What was set for channel 0, with its output in the highest bit. */
static uint8_t timer_status(void)
{
	out8(0x43, 0xe2);
	return in8(0x40);
}

static uint64_t by_timer(void)
{
	for (unsigned i = 0; i < ATTEMPTS; i++) {
		out8(0x43, BOTH_BYTES_ONE_SHOT);
		out8(0x40, 0xff);
		out8(0x40, 0xff);
		if ((timer_status() & 0x3f) != BOTH_BYTES_ONE_SHOT)
			return 0; /* there is no chip */
		struct instant first = narrowest(), last = first;
		while ((uint16_t)(first.count - last.count) < WINDOW) {
			last = narrowest();
			if (last.earliest - first.earliest > PATIENCE)
				return 0;
		}
		if (!(timer_status() & 0x80)) /* else it ran out, and then around */
			return (last.earliest + last.width / 2 - first.earliest - first.width / 2) *
			       PIT_HZ / (uint16_t)(first.count - last.count);
	}
	return 0;
}

uint64_t tsc_frequency(const char **source)
{
	*source = "cpuid";
	if (is_virtual() && cpuid(HYPERVISOR).a >= HYPERVISOR_FREQUENCY) {
		uint64_t kilohertz = cpuid(HYPERVISOR_FREQUENCY).a;
		if (kilohertz)
			return kilohertz * 1000;
	}
	if (cpuid(0).a >= CRYSTAL) {
		struct registers r = cpuid(CRYSTAL);
		if (r.a && r.b && r.c)
			return (uint64_t)r.c * r.b / r.a;
	}
	uint64_t hertz = by_timer();
	*source = hertz ? "pit" : "unknown";
	return hertz;
}
