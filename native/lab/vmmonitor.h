/* What QEMU's monitor (QMP) says: one object of JSON a line, written by QEMU itself. */
#ifndef FIRSTLIGHT_VMMONITOR_H
#define FIRSTLIGHT_VMMONITOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Asked beforehand: QEMU reads it when its main loop begins, its machine made and stopped (-S). */
#define MONITOR_GREETING "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"cont\"}\n"

/* Whether the line says that the guest may run from now on. Then ``stamp`` is when that was, in ns
 * of CLOCK_MONOTONIC: QEMU stamps it before it wakes the processors; no earlier than ``earliest``
 * and no later than ``arrived``, or that is taken. */
bool monitor_resumed(const char *line, int64_t earliest, int64_t arrived, int64_t *stamp);

/* Why the machine was shut down, in QEMU's word, if the line says so. */
bool monitor_stopped(const char *line, char *reason, size_t size);

bool monitor_refused(const char *line);

#endif
