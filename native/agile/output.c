/* The output of instances with a log: pipes to firstlight-log, which outlives the manager. */
#include "node.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

void output_set(int log)
{
	descriptor_close(&node.log);
	/* The keeper of logs may be slow or stopped; starts with a log are then refused. */
	if (log >= 0 && fcntl(log, F_SETFL, O_NONBLOCK))
		descriptor_close(&log);
	node.log = log;
}

/* In place of the start's own standard output and error. */
int output_open(uint64_t id, struct rights *rights)
{
	int ends[2][2] = {{NOBODY, NOBODY}, {NOBODY, NOBODY}}, failed = 0;
	if (node.log < 0)
		return -ENOTCONN;
	if (pipe2(ends[0], O_CLOEXEC) || pipe2(ends[1], O_CLOEXEC))
		failed = -errno;
	int given[] = {ends[0][0], ends[1][0]};
	if (!failed)
		failed = socket_send(node.log, &id, sizeof id, given, 2);
	for (int i = 0; i < 2; i++) {
		descriptor_close(&ends[i][0]);
		descriptor_close(&rights->descriptors[1 + i]);
		rights->descriptors[1 + i] = ends[i][1];
	}
	if (failed == -EPIPE || failed == -ECONNRESET) {
		output_set(NOBODY);
		return -ENOTCONN;
	}
	return failed;
}
