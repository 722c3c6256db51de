/* The time of a clock. */
#ifndef FIRSTLIGHT_VMCLOCK_H
#define FIRSTLIGHT_VMCLOCK_H

#include <stdint.h>
#include <time.h>

static const int64_t SECOND = 1000000000;

static inline int64_t time_of(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * SECOND + t.tv_nsec;
}

static inline int64_t now(void)
{
	return time_of(CLOCK_MONOTONIC);
}

#endif
