/* Parts by index: a start takes the oldest, and gives it back at its end. */
#include "node.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

int *part_next(int index)
{
	return &node.parts[index].next;
}

static int *next_owed(int index)
{
	return &node.parts[index].next_owed;
}

static struct function *known(int32_t number)
{
	return number >= 0 && number < FUNCTIONS && node.functions[number].known
		       ? &node.functions[number]
		       : NULL;
}

/* Oldest first, so that each part rests as long as possible before it is used again. */
static struct queue *shelf(const struct part_order *order)
{
	struct function *owner = known(order->function);
	if (order->kind == PART_NETWORK)
		return owner ? &owner->networks : &node.networks[order->reach];
	return &node.cgroups;
}

void part_owe(int index)
{
	struct part *part = &node.parts[index];
	if (part->owed)
		return;
	part->owed = true;
	queue_push(&node.rested, next_owed, index);
}

/* The manager knows of it. */
void part_acknowledge(int index)
{
	if (node.parts[index].owed)
		(void)queue_cut(&node.rested, next_owed, index);
	node.parts[index].owed = false;
}

int part_add(const struct part_order *order, int network)
{
	if (order->index >= PARTS || order->reach < 0 || order->reach >= REACHES)
		return -EINVAL;
	if (node.parts[order->index].state == PART_LEFT) {
		node.parts[order->index].order.quick = order->quick;
		memcpy(node.parts[order->index].order.note, order->note, sizeof order->note);
		part_give_back((int)order->index, order->function);
		return 0;
	}
	if (node.parts[order->index].state != PART_FREE)
		return -EEXIST;
	if (order->kind == PART_NETWORK ? network < 0 : order->kind != PART_CGROUP)
		return -EINVAL;
	if ((int)order->index >= node.part_count)
		node.part_count = (int)order->index + 1;
	if (order->address) {
		int failed = hosts_write((int)order->index, order->address);
		if (failed)
			return failed;
	}
	struct part *part = &node.parts[order->index];
	part->order = *order;
	part->network = order->kind == PART_NETWORK ? network : NOBODY;
	part->uses = 0;
	part->state = PART_SHELVED;
	queue_push(shelf(order), part_next, (int)order->index);
	node.wants[order->kind][order->reach] = 0;
	return 0;
}

void part_leave(int index)
{
	node.parts[index].state = PART_LEFT;
}

static void forget(int index)
{
	struct part *part = &node.parts[index];
	descriptor_close(&part->network);
	if (part->order.address)
		hosts_remove(index);
	part_acknowledge(index);
	part->state = PART_FREE;
}

int part_withdraw(uint32_t index)
{
	if (index >= PARTS || node.parts[index].state == PART_FREE)
		return -ENOENT;
	if (node.parts[index].state == PART_USED)
		return -EBUSY;
	if (node.parts[index].state == PART_SHELVED)
		queue_cut(shelf(&node.parts[index].order), part_next, (int)index);
	if (node.parts[index].state == PART_RESTING)
		queue_cut(&node.resting, part_next, (int)index);
	forget((int)index);
	return 0;
}

int part_take(enum part_kind kind, struct function *function)
{
	uint32_t reach = function ? function->definition.reach : 0;
	int index = NOBODY;
	if (function && kind == PART_NETWORK)
		index = queue_pop(&function->networks, part_next);
	if (index == NOBODY)
		index = queue_pop(kind == PART_NETWORK ? &node.networks[reach] : &node.cgroups,
				  part_next);
	if (index == NOBODY)
		return NOBODY;
	node.parts[index].state = PART_USED;
	node.owes_now |= node.parts[index].owed; /* or its next use would be told first */
	return index;
}

/* A network returns to its function's shelf, a part without a function to the common one. */
void part_give_back(int index, int function)
{
	struct part *part = &node.parts[index];
	part->order.function = known(function) ? function : NOBODY;
	part->state = PART_SHELVED;
	queue_push(shelf(&part->order), part_next, index);
	node.wants[part->order.kind][part->order.reach] = 0;
}

/* Back to the shelf that it was taken from: the manager was not told. */
void part_put_back(int index)
{
	part_give_back(index, node.parts[index].order.function);
}

void part_give_up(struct queue *queue)
{
	int index;
	while ((index = queue_pop(queue, part_next)) != NOBODY)
		forget(index); /* when the order is done, the manager removes what was on its shelf */
}

void part_want(enum part_kind kind, uint32_t reach)
{
	if (!node.wants[kind][reach])
		node.wants[kind][reach] = 1;
}
