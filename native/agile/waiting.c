/* Generic sandboxes that wait for a function: how many there are, and when to make the next. */
#include "common/clock.h"
#include "node.h"

#include <errno.h>

enum { LULL = 1000000, WAITS = 5000000, RETRY = 10000000 }; /* ns */

/* A generic sandbox, which takes a cgroup and waits. */
static int make(void)
{
	int index = instance_reserve();
	if (index == NOBODY)
		return -EAGAIN;
	struct instance *instance = &node.instances[index];
	instance->cgroup = part_take(PART_CGROUP, NULL);
	if (instance->cgroup == NOBODY) {
		instance_release(index);
		part_want(PART_CGROUP, 0);
		return -EAGAIN;
	}
	instance->requested = clock_now();
	int failed = instance_clone_waiting(index);
	if (failed) {
		instance_release(index);
		return failed;
	}
	instance->state = INSTANCE_MAKING;
	node.making++;
	return 0;
}

/* A sandbox is replaced between starts, so as not to take their CPU; but not too late. */
static int64_t next_fill(void)
{
	int64_t next = node.last_made + node.fill_interval;
	int64_t lull = node.starting ? node.last_start + WAITS : node.last_run + LULL;
	return node.waiting.count + node.making > node.low_waiting / 2 && lull > next ? lull : next;
}

static bool makes_more(void)
{
	return node.fills && node.waiting.count + node.making < node.high_waiting;
}

void waiting_fill(bool fills)
{
	if (fills && !node.fills)
		node.fills_since = clock_now();
	if (node.fills && !fills)
		node.fill_time += clock_now() - node.fills_since;
	node.waiting_changed |= node.fills != fills;
	node.fills = fills;
}

/* One at a time: starts come between. It ends when the last is ready. */
void waiting_make(void)
{
	if (node.waiting.count + node.making < node.low_waiting)
		waiting_fill(true);
	if (node.waiting.count >= node.high_waiting)
		waiting_fill(false);
	if (!makes_more() || clock_now() < next_fill())
		return;
	int failed = make();
	node.last_made = clock_now() + (failed ? RETRY : 0);
}

int64_t waiting_next(void)
{
	return makes_more() ? next_fill() : INT64_MAX;
}

/* Surplus sandboxes are ended: a mark is lowered to get their memory back. */
static void end_surplus(void)
{
	while (node.waiting.count > node.high_waiting) {
		instance_kill(queue_pop(&node.waiting, instance_next));
		node.waiting_changed = true;
	}
}

int waiting_keep(uint32_t high, uint32_t low, uint32_t interval)
{
	if (low > high || high > INT32_MAX)
		return -EINVAL;
	node.high_waiting = (int)high < node.instance_limit ? (int)high : node.instance_limit;
	node.low_waiting = (int)low < node.high_waiting ? (int)low : node.high_waiting;
	node.fill_interval = interval * 1000LL;
	waiting_fill(node.waiting.count < node.high_waiting);
	end_surplus();
	return 0;
}

int waiting_take(void)
{
	int index = queue_pop(&node.waiting, instance_next);
	node.waiting_changed |= index != NOBODY;
	return index;
}
