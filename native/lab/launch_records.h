/* Messages between the lab and the load generator, in Python: src/firstlight/lab/load.py. */
#ifndef FIRSTLIGHT_LAUNCH_RECORDS_H
#define FIRSTLIGHT_LAUNCH_RECORDS_H

#include <stdint.h>

enum { LAUNCH_RUN = 1, LAUNCH_STOP = 2 }; /* verbs */
enum { LAUNCH_SEQUENTIAL = 1, LAUNCH_INHERIT = 2 }; /* flags */

struct launch_request {
	uint32_t verb, batch, count, flags;
	int64_t begin; /* 0: now */
	int64_t deadline; /* ns after a start's time, or after STOP */
	uint64_t bytes; /* of what follows */
};

struct launch_start {
	int64_t offset; /* ns after begin */
	uint32_t argc, envc;
};

struct launch_answers {
	uint32_t batch, count;
};

struct launch_record {
	int64_t intended, spawned, seen, exited;
	int64_t user, system, faults; /* of its process tree */
	int32_t pid, status; /* status: as waitpid gives it, -1 while alive */
	uint32_t expired, output;
};

_Static_assert(sizeof(struct launch_request) == 40, "_REQUEST in load.py");
_Static_assert(sizeof(struct launch_start) == 16, "_START in load.py");
_Static_assert(sizeof(struct launch_answers) == 8, "_ANSWER in load.py");
_Static_assert(sizeof(struct launch_record) == 72, "_RECORD in load.py");

#endif
