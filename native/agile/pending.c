/* Starts that wait for parts, in order of arrival. */
#include "common/clock.h"
#include "node.h"

#include <errno.h>

enum { PENDING_SECONDS = 30 };

static bool defer(const struct ask *ask, struct rights *rights, int client)
{
	if (node.pending_count == PENDING)
		return false;
	node.pending[node.pending_count++] = (struct pending){
		.ask = *ask,
		.rights = *rights,
		.client = client,
		.client_generation = node.clients[client].generation,
		.until = clock_now() + clock_longer(PENDING_SECONDS * CLOCK_SECOND),
	};
	rights->count = 0;
	return true;
}

/* Those that wait come first. */
int pending_start(const struct ask *ask, struct rights *rights, int client, enum step *step)
{
	if (!node.pending_count) {
		int failed = instance_try(ask, rights, client, step);
		if (failed != -EAGAIN)
			return failed;
	}
	*step = STEP_CLONE;
	return defer(ask, rights, client) ? 0 : EBUSY;
}

static bool is_there(const struct pending *pending)
{
	const struct client *client = &node.clients[pending->client];
	return client->descriptor >= 0 && client->generation == pending->client_generation;
}

static int refuse(struct pending *pending, int error, enum step step, int64_t now)
{
	pending->error = error;
	pending->step = step;
	pending->until = now + clock_longer(PENDING_SECONDS * CLOCK_SECOND);
	return client_refuse(pending->client, &pending->ask, error, step);
}

/* A start that needs a part of a kind and reach for which others wait already has no turn. Others
 * do not queue behind those. 0 if it needs no more. */
static int serve(struct pending *pending, bool *dry, int64_t now)
{
	const struct function *function = &node.functions[pending->ask.function];
	uint32_t reach = function->definition.reach;
	enum step step;
	int result = -EAGAIN;
	if (!is_there(pending))
		return 0;
	if (pending->error) {
		result = client_refuse(pending->client, &pending->ask, pending->error,
				       pending->step);
		if (result && now >= pending->until)
			client_end(pending->client);
		return result && now < pending->until ? result : 0;
	}
	if (!function->known || !dry[reach] || function->networks.count ||
	    function->sandboxes.count)
		result = instance_try(&pending->ask, &pending->rights, pending->client, &step);
	if (result > 0)
		return refuse(pending, result, step, now);
	if (result == -EAGAIN && now >= pending->until)
		return refuse(pending, ETIMEDOUT, STEP_NETWORK, now);
	dry[reach] |= result == -EAGAIN;
	return result;
}

/* The start at place i moves up, over those that were served. */
static void keep(int *kept, int i)
{
	if (*kept < i)
		node.pending[*kept] = node.pending[i];
	(*kept)++;
}

void pending_serve(void)
{
	bool dry[REACHES] = {false};
	int64_t now = node.pending_count ? clock_now() : 0;
	int kept = 0;
	for (int i = 0; i < node.pending_count; i++) {
		if (serve(&node.pending[i], dry, now))
			keep(&kept, i);
		else
			rights_close(&node.pending[i].rights);
	}
	node.pending_count = kept;
	if (node.holds && node.pending_count < PENDING / 2)
		clients_release();
}

static bool waits_for(const struct pending *pending, enum part_kind kind, uint32_t reach)
{
	const struct function *function = &node.functions[pending->ask.function];
	return kind != PART_NETWORK || (function->known && function->definition.reach == reach);
}

void pending_refuse(enum part_kind kind, uint32_t reach)
{
	int64_t now = clock_now();
	enum step step = kind == PART_NETWORK ? STEP_NETWORK : STEP_CGROUP;
	int kept = 0;
	for (int i = 0; i < node.pending_count; i++) {
		struct pending *pending = &node.pending[i];
		if (pending->error || !waits_for(pending, kind, reach) ||
		    (is_there(pending) && refuse(pending, EIO, step, now)))
			keep(&kept, i);
		else
			rights_close(&pending->rights);
	}
	node.pending_count = kept;
	node.wants[kind][reach] = 0;
}

int64_t pending_next(void)
{
	int64_t until = INT64_MAX;
	for (int i = 0; i < node.pending_count; i++)
		if (node.pending[i].until < until)
			until = node.pending[i].until;
	return until;
}
