/* What QEMU's monitor (QMP) says: one object of JSON a line, written by QEMU itself. */
#ifndef FIRSTLIGHT_VMMONITOR_H
#define FIRSTLIGHT_VMMONITOR_H

#include <stdint.h>

/* Asked beforehand: QEMU reads it when its main loop begins, its machine made and stopped (-S). */
#define VMMONITOR_GREETING "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"cont\"}\n"

enum vmmonitor_kind { VMMONITOR_OTHER, VMMONITOR_RESUMED, VMMONITOR_STOPPED, VMMONITOR_REFUSED };

struct vmmonitor_message {
	enum vmmonitor_kind kind;
	int64_t stamp; /* RESUMED: when the guest was let run, in ns of CLOCK_MONOTONIC */
	char reason[64]; /* STOPPED: why, in QEMU's word */
};

/* Reads one line. QEMU stamps RESUME by the wall clock before it wakes the processors: that stamp
 * counts if it lies between ``earliest`` and ``arrived``, otherwise ``arrived`` does. */
struct vmmonitor_message vmmonitor_read(const char *line, int64_t earliest, int64_t arrived);

#endif
