/* What the runtime and native/agile/place.c say to each other: one message each over a seqpacket
 * socket, in host order. The Python side is src/firstlight/agile/python/place.py. */
#ifndef FIRSTLIGHT_PLACE_H
#define FIRSTLIGHT_PLACE_H

#include <stdint.h>

enum { PLACE_DOORS = 3 };

/* The first message; with it come the zygote's pid, mount and user namespaces. */
struct place_zygote {
	uint64_t scratch; /* bytes of /tmp */
	char host_name[64];
};

/* Any byte asks for a sandbox; with it come a socket that it lives as long as, its network, and
 * the files by which it joins its cgroups. This is what it says on the socket, once. */
enum place_step { PLACE_CLONE, PLACE_CGROUP, PLACE_NETWORK, PLACE_MOUNT, PLACE_NAME, PLACE_RIGHTS };

struct place_report {
	int32_t step, error; /* error: errno, or 0 for a sandbox that is ready */
};

#endif
