/* Messages between the runtime and native/agile/place.c: one record each over a seqpacket socket, in
 * host order. In Python: src/firstlight/agile/python/place.py. */
#ifndef FIRSTLIGHT_PLACE_H
#define FIRSTLIGHT_PLACE_H

#include <stdint.h>

enum { PLACE_DOORS = 3 };

/* The first message; with it come the zygote's pid, mount and user namespaces. */
struct place_zygote {
	uint64_t scratch; /* bytes of /tmp */
	char host_name[64];
};

/* Any byte requests a sandbox. With it come a socket, which the sandbox lives as long as, its
 * network, and the files by which it joins its cgroups. The sandbox sends this once on the
 * socket. */
enum place_step { PLACE_CLONE, PLACE_CGROUP, PLACE_NETWORK, PLACE_MOUNT, PLACE_NAME, PLACE_RIGHTS };

struct place_report {
	int32_t step, error; /* error: errno, or 0 for a sandbox that is ready */
};

_Static_assert(sizeof(struct place_zygote) == 72, "python/place.py has the same");
_Static_assert(sizeof(struct place_report) == 8, "python/place.py has the same");

#endif
