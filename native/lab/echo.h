/* An instance's first packet: an ICMP echo request to its gateway, and the answer. */
#ifndef FIRSTLIGHT_ECHO_H
#define FIRSTLIGHT_ECHO_H

#include <stdint.h>

enum { ECHO_PATIENCE_MS = 10000 };

struct echo {
	int64_t start, end; /* ns of CLOCK_MONOTONIC: before the socket is made, the answer is read */
	char error[200];
};

/* Asks ADDRESS, IPv4 or IPv6, until it answers or the patience is over. Blanks at its end do not
 * count; after "%" comes the interface of a link-local one. Returns 0, or -1 with the error.
 */
int echo_ask(const char *address, int patience_ms, struct echo *echo);

#endif
