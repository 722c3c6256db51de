/* Queues of records by index, linked through the records themselves. */
#include "node.h"

void queue_push(struct queue *queue, queue_next *next, int index)
{
	*next(index) = NOBODY;
	if (queue->count++)
		*next(queue->last) = index;
	else
		queue->first = index;
	queue->last = index;
}

int queue_pop(struct queue *queue, queue_next *next)
{
	if (!queue->count)
		return NOBODY;
	int index = queue->first;
	queue->first = *next(index);
	queue->count--;
	*next(index) = NOBODY;
	return index;
}

bool queue_cut(struct queue *queue, queue_next *next, int index)
{
	int before = NOBODY, at = queue->first;
	for (int left = queue->count; left; left--, before = at, at = *next(at)) {
		if (at != index)
			continue;
		if (before == NOBODY)
			queue->first = *next(at);
		else
			*next(before) = *next(at);
		if (queue->last == index)
			queue->last = before;
		queue->count--;
		return true;
	}
	return false;
}
