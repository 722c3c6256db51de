/* Known work for the dynamic linker: relocating this program takes SPIN_NS longer than it otherwise
 * would.
 *
 * The resolver of an indirect function runs during relocation, and this one waits. The linker's count
 * (LD_DEBUG=statistics) then shows its unit: glibc 2.36 prints a tenth of the ticks.
 * It is C because it must run before anything is linked.
 */
#include <sys/syscall.h>
#include <time.h>

enum { SPIN_NS = 20000000 };

/* Nothing is relocated yet: no function of the C library can be called. */
static long read_clock(void)
{
	struct timespec t;
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(SYS_clock_gettime), "D"(CLOCK_MONOTONIC), "S"(&t)
			 : "rcx", "r11", "memory");
	return result ? 0 : t.tv_sec * 1000000000L + t.tv_nsec;
}

static int nothing(void)
{
	return 0;
}

static int (*resolve(void))(void)
{
	long end = read_clock() + SPIN_NS;
	while (read_clock() < end)
		;
	return nothing;
}

int spun(void);
int spun(void) __attribute__((ifunc("resolve")));

int main(void)
{
	return spun();
}
