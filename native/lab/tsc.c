/* Prints how often this machine's time-stamp counter ticks, in Hz of CLOCK_MONOTONIC. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

enum { TRIES = 20, APART_NS = 50 * 1000 * 1000 };

struct pair {
	uint64_t ticks;
	int64_t ns;
};

/* Both clocks at one moment: of some tries the one in which least time passed between them. */
static struct pair now(void)
{
	struct pair best = { 0, 0 };
	uint64_t least = UINT64_MAX;

	for (int try = 0; try < TRIES; try++) {
		struct timespec at;
		uint64_t before = __rdtsc();
		if (clock_gettime(CLOCK_MONOTONIC, &at) != 0) {
			fprintf(stderr, "tsc: cannot read the clock: %s\n", strerror(errno));
			exit(1);
		}
		uint64_t gap = __rdtsc() - before;
		if (gap < least) {
			least = gap;
			best.ticks = before + gap / 2;
			best.ns = at.tv_sec * INT64_C(1000000000) + at.tv_nsec;
		}
	}
	return best;
}

int main(void)
{
	struct pair first = now();
	struct timespec pause = { 0, APART_NS };

	while (nanosleep(&pause, &pause) != 0)
		;
	struct pair last = now();
	printf("%.0f\n", (double)(last.ticks - first.ticks) * 1e9 / (double)(last.ns - first.ns));
	return fflush(stdout) != 0;
}
