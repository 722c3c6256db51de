/* An instance's first packet: an ICMP echo request to its gateway, and the answer. */
#ifndef FIRSTLIGHT_ECHO_H
#define FIRSTLIGHT_ECHO_H

#include "common/error.h"

#include <stdint.h>

enum { ECHO_PATIENCE_MS = 10000 };

struct echo {
	/* ns of CLOCK_MONOTONIC: before the socket is made, after the answer is read */
	int64_t start, end;
};

/* Sends echo requests to ADDRESS, IPv4 or IPv6, until it answers or time is up. Trailing blanks are
 * ignored; after "%" comes the interface of a link-local address. Returns 0, or a negative errno with
 * the error. */
int echo_ask(const char *address, int patience_ms, struct echo *echo, struct error *error);

#endif
