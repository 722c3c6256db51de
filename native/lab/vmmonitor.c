#include "lab/vmmonitor.h"

#include "common/clock.h"

#include <cJSON.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static const double seconds_max = 1e9 * 9; /* what fits in 64 bits as ns */

static bool is_below(const cJSON *number, double most)
{
	return cJSON_IsNumber(number) && number->valuedouble >= 0 && number->valuedouble < most;
}

/* The difference of the wall clock from now is the same on ours. */
static int64_t resumed_at(const cJSON *timestamp, int64_t earliest, int64_t arrived)
{
	const cJSON *seconds = cJSON_GetObjectItemCaseSensitive(timestamp, "seconds");
	const cJSON *more = cJSON_GetObjectItemCaseSensitive(timestamp, "microseconds");
	if (!is_below(seconds, seconds_max) || !is_below(more, 1e6))
		return arrived;
	int64_t monotonic = clock_now();
	int64_t wall =
		(int64_t)seconds->valuedouble * CLOCK_SECOND + (int64_t)more->valuedouble * 1000;
	int64_t stamp = monotonic - (clock_read(CLOCK_REALTIME) - wall);
	return stamp >= earliest && stamp <= arrived ? stamp : arrived;
}

struct vmmonitor_message vmmonitor_read(const char *line, int64_t earliest, int64_t arrived)
{
	struct vmmonitor_message message = {.kind = VMMONITOR_OTHER};
	cJSON *json = cJSON_Parse(line);
	const char *event = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "event"));
	const cJSON *data = cJSON_GetObjectItemCaseSensitive(json, "data");
	const char *reason = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(data, "reason"));
	if (cJSON_HasObjectItem(json, "error"))
		message.kind = VMMONITOR_REFUSED;
	if (event && !strcmp(event, "RESUME")) {
		message.kind = VMMONITOR_RESUMED;
		message.stamp = resumed_at(cJSON_GetObjectItemCaseSensitive(json, "timestamp"),
					   earliest, arrived);
	}
	if (event && !strcmp(event, "SHUTDOWN") && reason) {
		message.kind = VMMONITOR_STOPPED;
		snprintf(message.reason, sizeof message.reason, "%s", reason);
	}
	cJSON_Delete(json);
	return message;
}
