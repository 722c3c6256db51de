/* What Firecracker writes to its own log while it starts a guest. */
#ifndef FIRSTLIGHT_VMJOURNAL_H
#define FIRSTLIGHT_VMJOURNAL_H

#include <stddef.h>
#include <stdint.h>

/* When Firecracker was about to let the guest run, in ns of CLOCK_MONOTONIC; 0 if the log does not
 * say. Only the wake-up of the vCPU's thread is between that and the guest's first instruction. */
int64_t vmjournal_entered(const char *file);

/* The last error that the log tells, in one line; empty if none. */
void vmjournal_complaint(const char *file, char *to, size_t size);

#endif
