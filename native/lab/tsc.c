/* Prints the frequency of this machine's time-stamp counter, in Hz of CLOCK_MONOTONIC.
 *
 * It is C because only an instruction reads the counter.
 */
#include "common/clock.h"

#include <stdio.h>
#include <x86intrin.h>

enum { TRIES = 20, APART_NS = 50 * 1000 * 1000 };

struct pair {
	uint64_t ticks;
	int64_t ns;
};

/* Both clocks at one moment: of some tries the one in which least time passed between them. */
static struct pair read_both(void)
{
	struct pair best = {0, 0};
	uint64_t least = UINT64_MAX;
	for (int try = 0; try < TRIES; try++) {
		uint64_t before = __rdtsc();
		int64_t ns = clock_now();
		uint64_t gap = __rdtsc() - before;
		if (gap < least) {
			least = gap;
			best = (struct pair){before + gap / 2, ns};
		}
	}
	return best;
}

int main(void)
{
	struct pair first = read_both();
	struct timespec pause = {0, APART_NS};
	while (nanosleep(&pause, &pause))
		;
	struct pair last = read_both();
	printf("%.0f\n", (double)(last.ticks - first.ticks) * 1e9 / (double)(last.ns - first.ns));
	return fflush(stdout) != 0;
}
