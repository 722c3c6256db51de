#include "lab/vmmonitor.h"

#include "common/clock.h"

#include <cJSON.h>
#include <stdio.h>
#include <string.h>

/* The difference of the wall clock from now is the same on ours. */
static int64_t resumed_at(const cJSON *timestamp, int64_t earliest, int64_t arrived)
{
	const cJSON *seconds = cJSON_GetObjectItemCaseSensitive(timestamp, "seconds");
	const cJSON *more = cJSON_GetObjectItemCaseSensitive(timestamp, "microseconds");
	if (!cJSON_IsNumber(seconds) || !cJSON_IsNumber(more))
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
