#include "trace/budget.h"

#include "common/clock.h"
#include "trace/tracer.h"

#include <bpf/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEBT_NS (CLOCK_SECOND / 4) /* of each core */

struct budget budget;
static struct {
	unsigned long millionths;
	long long idle, own, call_cost;
	/* What can be saved: by the time since "second", when the cores had been idle for
	 * "second_idle". */
	long long most, second, second_idle;
	unsigned long long met;
	long cores;
} account;

/* The idle time of all cores since the machine started. */
static long long idle_time(void)
{
	unsigned long long user, nice, system, idle, wait = 0;
	FILE *file = fopen("/proc/stat", "re");
	int n = file ? fscanf(file, "cpu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle,
			      &wait)
		     : 0;
	if (file)
		fclose(file);
	return n == 5 ? (long long)(idle + wait) * (CLOCK_SECOND / sysconf(_SC_CLK_TCK)) : 0;
}

/* How many calls and switches the programs have met. */
static unsigned long long met(void)
{
	static struct meter meters[METERS];
	unsigned int zero = 0;
	unsigned long long sum = 0;
	if (bpf_map_lookup_elem(tracer_map(".data.meters"), &zero, meters))
		return 0;
	for (size_t i = 0; i < METERS; i++)
		sum += meters[i].met;
	return sum;
}

/* What idle cores have earned is for a node that still has idle cores; a saturated one spends its
 * share alone. So savings are limited by how idle the last second was, and by a second's share. */
static void limit(long long at, long long idle)
{
	long long passed = at - account.second, free = idle - account.second_idle;
	if (passed < CLOCK_SECOND)
		return;
	account.most = account.cores * (CLOCK_SECOND / 1000000) * (long long)account.millionths;
	if (free > 0) /* the kernel's count can go back */
		account.most += (long long)((double)DEBT_NS * (double)free / (double)passed);
	account.second = at;
	account.second_idle = idle;
}

void budget_count(long long now)
{
	long long idle = idle_time(), own = clock_read(CLOCK_PROCESS_CPUTIME_ID);
	unsigned long long seen = met();
	budget.credit +=
		(now - budget.at) * account.cores / 1000000 * (long long)account.millionths;
	if (idle > account.idle)
		budget.credit += (idle - account.idle) / 10;
	budget.credit -= (long long)(seen - account.met) * account.call_cost + own - account.own;
	limit(now, idle);
	if (budget.credit > account.most)
		budget.credit = account.most;
	budget.at = now;
	account.idle = idle;
	account.own = own;
	account.met = seen;
}

int budget_is_overdrawn(void)
{
	return !budget.one_in && budget.credit < -account.cores * DEBT_NS;
}

static long long time_calls(void)
{
	enum { ROUNDS = 5, CALLS_EACH = 2000 };
	long long least = CLOCK_SECOND;
	for (int round = 0; round < ROUNDS; round++) {
		long long began = clock_read(CLOCK_THREAD_CPUTIME_ID);
		for (int i = 0; i < CALLS_EACH; i++)
			(void)syscall(SYS_getppid);
		long long took = (clock_read(CLOCK_THREAD_CPUTIME_ID) - began) / CALLS_EACH;
		least = took < least ? took : least;
	}
	return least;
}

int budget_open(unsigned long one_in, unsigned long millionths)
{
	budget.one_in = one_in;
	account.millionths = millionths;
	account.cores = sysconf(_SC_NPROCESSORS_ONLN);
	long long without = time_calls();
	if (tracer_attach(0))
		return -tracer_failure.code;
	account.call_cost = time_calls() - without;
	tracer_detach(1);
	account.call_cost = account.call_cost > 0 ? account.call_cost : 0;
	budget.at = account.second = clock_now();
	account.idle = account.second_idle = idle_time();
	account.own = clock_read(CLOCK_PROCESS_CPUTIME_ID);
	account.met = met();
	return 0;
}
