/* The changes when an instance begins to run and when it has ended, and who is told. */
#include "common/clock.h"
#include "node.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

void instance_runs(int index)
{
	struct instance *instance = &node.instances[index];
	node.starting -= instance->state == INSTANCE_STARTING;
	instance->state = INSTANCE_RUNNING;
	instance->running = node.last_run = clock_now();
	instance_owe(index, OWES_STARTED);
	if (instance->client != NOBODY) {
		instance->owed_client |= OWES_STARTED;
		client_tell(instance->client);
	}
	if (instance->killed)
		instance_kill(index);
}

static bool ran_out_of_memory(int index)
{
	const struct instance *instance = &node.instances[index];
	if (instance->cgroup == NOBODY || instance->killed || !WIFSIGNALED(instance->status) ||
	    WTERMSIG(instance->status) != SIGKILL)
		return false;
	uint32_t cgroup = node.parts[instance->cgroup].order.cgroup;
	return sandbox_out_of_memory(&node.common, cgroup) != node.progress[index].out_of_memory;
}

/* The end of an instance. The caller settles its parts before the manager is told. */
void instance_finish(int index, int status, int64_t user, int64_t system)
{
	struct instance *instance = &node.instances[index];
	struct progress *progress = &node.progress[index];
	bool ran = instance->state == INSTANCE_RUNNING;
	node_unwatch(&instance->control);
	descriptor_close(&instance->pidfd);
	instance->status = status;
	instance->ended = clock_now();
	instance->user = user;
	instance->system = system;
	instance->failed = !ran;
	instance->step = progress->step;
	instance->error = ran ? 0 : progress->error ? progress->error : ECANCELED;
	if (ran && ran_out_of_memory(index))
		instance->flags |= ANSWER_OUT_OF_MEMORY;
	node.up--;
	node.starting -= instance->state == INSTANCE_STARTING;
	instance->state = INSTANCE_ENDED;
	if (instance->client != NOBODY) {
		instance->owed_client |= OWES_ENDED;
		client_tell(instance->client);
	}
}
