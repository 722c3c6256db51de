/* The time of a clock, and deadlines, in ns. */
#ifndef FIRSTLIGHT_CLOCK_H
#define FIRSTLIGHT_CLOCK_H

#include <stdint.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

#define CLOCK_SECOND INT64_C(1000000000)

static inline int64_t clock_read(clockid_t clock)
{
	struct timespec time;
	clock_gettime(clock, &time); /* fails for an unknown clock only */
	return time.tv_sec * CLOCK_SECOND + time.tv_nsec;
}

static inline int64_t clock_of(struct timeval time)
{
	return time.tv_sec * CLOCK_SECOND + time.tv_usec * 1000;
}

static inline int64_t clock_now(void)
{
	return clock_read(CLOCK_MONOTONIC);
}

/* A deadline on this machine: as longer() of src/firstlight/errors.py, which checks the variable. */
static inline int64_t clock_longer(int64_t deadline)
{
	const char *word = getenv("FIRSTLIGHT_SLOWER");
	double times = word ? strtod(word, NULL) : 1;
	return times > 1 && times <= 1000 ? (int64_t)((double)deadline * times) : deadline;
}

#endif
