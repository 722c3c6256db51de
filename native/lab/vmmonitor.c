#include "vmmonitor.h"

#include "vmclock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A number behind a name, as QEMU writes its objects: "NAME": NUMBER. */
static bool number(const char *object, const char *name, int64_t *value)
{
	const char *found = strstr(object, name);
	char *end = NULL;
	if (found)
		*value = strtoll(found + strlen(name), &end, 10);
	return found && end != found + strlen(name);
}

/* The monitor stamps by the wall clock: the difference from now is the same on ours. */
bool monitor_resumed(const char *line, int64_t earliest, int64_t arrived, int64_t *stamp)
{
	int64_t seconds, microseconds;
	if (!strstr(line, "\"event\": \"RESUME\""))
		return false;
	*stamp = arrived;
	if (number(line, "\"seconds\": ", &seconds) && number(line, "\"microseconds\": ", &microseconds)) {
		int64_t monotonic = now();
		int64_t age = time_of(CLOCK_REALTIME) - seconds * SECOND - microseconds * 1000;
		if (monotonic - age >= earliest && monotonic - age <= arrived)
			*stamp = monotonic - age;
	}
	return true;
}

bool monitor_stopped(const char *line, char *reason, size_t size)
{
	static const char key[] = "\"reason\": \"";
	const char *found = strstr(line, key);
	if (!found || !strstr(line, "\"event\": \"SHUTDOWN\""))
		return false;
	snprintf(reason, size, "%s", found + strlen(key));
	reason[strcspn(reason, "\"")] = 0;
	return true;
}

bool monitor_refused(const char *line)
{
	return strstr(line, "\"error\":") != NULL;
}
