#include "node.h"
#include "root.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

int *part_next(int index)
{
	return &node.parts[index].next;
}

int *part_next_owed(int index)
{
	return &node.parts[index].next_owed;
}

static struct function *known(int32_t number)
{
	return number >= 0 && number < FUNCTIONS && node.functions[number].known
		       ? &node.functions[number]
		       : NULL;
}

/* Oldest first: what was used last rests longest before it is used again. */
static struct queue *shelf(const struct part_order *order)
{
	struct function *owner = known(order->function);
	if (order->kind == PART_NETWORK)
		return owner ? &owner->networks : &node.networks[order->reach];
	return &node.cgroups;
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
	rest_acknowledge(index);
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
	node.owes_now |= node.parts[index].owed; /* before what comes of it next */
	return index;
}

/* A network to its function, for its next instance; what has no function to all. */
void part_give_back(int index, int function)
{
	struct part *part = &node.parts[index];
	part->order.function = known(function) ? function : NOBODY;
	part->state = PART_SHELVED;
	queue_push(shelf(&part->order), part_next, index);
	node.wants[part->order.kind][part->order.reach] = 0;
}

static void give_up(struct queue *queue)
{
	int index;
	while ((index = queue_pop(queue, part_next)) != NOBODY)
		forget(index); /* the manager removes what was on its shelf when the order is done */
}

int function_set(const struct definition *definition, int tree, int words)
{
	if (definition->number >= FUNCTIONS || definition->profile >= PROFILES ||
	    definition->reach >= REACHES || definition->reuse >= REUSES || !definition->version ||
	    memchr(definition->host_name, 0, sizeof definition->host_name) == NULL)
		return -EINVAL;
	struct function *function = &node.functions[definition->number];
	if (function->known && function->definition.version >= definition->version)
		return -ESTALE;
	struct root_text text = {definition->host_name,
				 definition->reach == REACH_OUTBOUND ? node.resolvers : ""};
	int failed = root_attach(definition->number, definition->version, tree,
				 definition->flags & DEFINITION_VOLUMES, &text);
	if (failed)
		return failed;
	if (function->known) {
		reuse_drop(function);
		root_detach(definition->number, function->definition.version, &function->root);
		descriptor_close(&function->words);
	}
	if ((int)definition->number >= node.function_count)
		node.function_count = (int)definition->number + 1;
	function->definition = *definition;
	function->root = tree;
	function->words = words;
	function->has_hosts = root_has_hosts(tree);
	function->known = true;
	return 0;
}

int function_forget(uint32_t number)
{
	struct function *function = known((int32_t)number);
	if (!function || number >= FUNCTIONS)
		return -ENOENT;
	reuse_drop(function);
	rest_leave((int)number);
	give_up(&function->networks);
	root_detach(number, function->definition.version, &function->root);
	descriptor_close(&function->words);
	function->known = false;
	return 0;
}
