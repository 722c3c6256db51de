#include "lab/vmjournal.h"

#include "common/clock.h"

#include <stdio.h>
#include <string.h>

static const int64_t QUARTER_HOUR = 900 * CLOCK_SECOND;

/* Every version since 0.24 logs it on the last line of resume_vm() before it wakes the vCPUs. */
static const char entering[] = "Artificially kick devices";

/* A line begins with local time. Time zones differ by whole quarters of an hour, so the minutes and
 * below say how long ago the line was written. */
static int64_t stamp(const char *line)
{
	int minutes, seconds, nanoseconds;
	if (sscanf(line, "%*d-%*d-%*dT%*d:%2d:%2d.%9d", &minutes, &seconds, &nanoseconds) != 3)
		return 0;
	int64_t then = (minutes * 60LL + seconds) * CLOCK_SECOND + nanoseconds;
	int64_t monotonic = clock_now();
	int64_t age = (clock_read(CLOCK_REALTIME) - then) % QUARTER_HOUR;
	return monotonic - age;
}

int64_t vmjournal_entered(const char *file)
{
	char line[4096];
	int64_t entered = 0;
	FILE *log = fopen(file, "re");
	while (log && !entered && fgets(line, sizeof line, log))
		if (strstr(line, entering))
			entered = stamp(line);
	if (log)
		fclose(log);
	return entered;
}

void vmjournal_complaint(const char *file, char *to, size_t size)
{
	char line[4096];
	FILE *log = fopen(file, "re");
	*to = 0;
	while (log && fgets(line, sizeof line, log)) {
		char *message = strstr(line, "] ");
		if (!message || !strstr(message, "rror") || strstr(message, "exiting with error"))
			continue;
		message += 2;
		message[strcspn(message, "\r\n")] = 0;
		snprintf(to, size, "%s", message);
	}
	if (log)
		fclose(log);
}
