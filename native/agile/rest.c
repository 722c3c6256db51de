/* Used networks. A network rests until packets in flight have arrived, and serves its function again
 * if it reads as new. The manager judges those that do not, and every so often one that does.
 *
 * Everything is read from the kernel's tables by calls that wait for no lock.
 */
#include "common/clock.h"
#include "net_quick.h"
#include "node.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>

/* A socket is gone a grace period after it was closed; until then the network rests again, this
 * often at most. The manager's judgement takes 3 ms of a CPU, so fewer than one start in a
 * hundred should need it. */
enum { REST = 50000000 /* ns */, RESTS = 10, JUDGED_EVERY = 128 };

static int home = NOBODY;

void rest_open(void)
{
	home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (home < 0)
		node_die("open the host's network namespace", -errno);
	int failed = net_quick_open();
	if (failed)
		node_die("open its directory in /proc", failed);
}

static void rest(int index)
{
	struct part *part = &node.parts[index];
	part->until = clock_now() + REST;
	part->rests++;
	queue_push(&node.resting, part_next, index);
}

/* The manager examines what takes a capability to change, which no instance has. */
bool rest_network(int index, int function, uint32_t version)
{
	struct part *part = &node.parts[index];
	const struct definition *definition = &node.functions[function].definition;
	if (!node.functions[function].known || definition->version != version ||
	    definition->reuse == REUSE_NONE || ++part->uses % JUDGED_EVERY == 0)
		return false;
	part->order.function = function;
	part->state = PART_RESTING;
	part->rests = 0;
	rest(index);
	return true;
}

/* 0, -EBUSY if somebody holds a socket there, or another negative errno. */
static int look(const struct part *part)
{
	uint64_t sockets = 0, digest = 0;
	if (setns(part->network, CLONE_NEWNET))
		return -errno;
	int failed = net_sockets(&sockets);
	if (!failed && sockets)
		failed = -EBUSY;
	if (!failed)
		failed = net_quick_digest(&digest);
	if (!failed)
		failed = digest == part->order.quick ? net_forget_routes() : -ESTALE;
	if (setns(home, CLONE_NEWNET))
		node_die("return to the host's network namespace", -errno);
	return failed;
}

/* Their function has been forgotten. */
void rest_leave(int function)
{
	int next, at = node.resting.first;
	for (int left = node.resting.count; left; left--, at = next) {
		next = node.parts[at].next;
		if (node.parts[at].order.function != function)
			continue;
		queue_cut(&node.resting, part_next, at);
		part_leave(at);
		part_owe(at);
	}
}

/* One at a time: starts come between. */
void rest_judge(void)
{
	int index = node.resting.count ? node.resting.first : NOBODY;
	if (index == NOBODY || node.parts[index].until > clock_now())
		return;
	struct part *part = &node.parts[index];
	queue_pop(&node.resting, part_next);
	int failed = look(part);
	if (failed == -EBUSY && part->rests < RESTS) {
		rest(index);
		return;
	}
	if (failed)
		part_leave(index);
	else
		part_give_back(index, part->order.function);
	part_owe(index);
}

int64_t rest_next(void)
{
	return node.resting.count ? node.parts[node.resting.first].until : INT64_MAX;
}
