/* Paths below /proc that container runtimes mask by default. A kernel may lack some of them. */
#ifndef FIRSTLIGHT_MASKED_H
#define FIRSTLIGHT_MASKED_H

#include <stdbool.h>

static const struct {
	const char *path;
	bool directory;
} masked[] = {
	{"/proc/kcore", false},      {"/proc/keys", false},        {"/proc/latency_stats", false},
	{"/proc/timer_list", false}, {"/proc/timer_stats", false}, {"/proc/sched_debug", false},
	{"/proc/interrupts", false}, {"/proc/acpi", true},         {"/proc/asound", true},
	{"/proc/scsi", true},
};
enum { MASKED = sizeof masked / sizeof *masked };
#endif
