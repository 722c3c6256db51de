#include "common/message.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int message_is(const char *message, const char *type)
{
	char tag[64];
	int length = snprintf(tag, sizeof tag, "{\"type\":\"%s\"", type);
	return !strncmp(message, tag, (size_t)length);
}

long long message_number(const char *message, const char *key)
{
	char tag[64];
	int length = snprintf(tag, sizeof tag, "\"%s\":", key);
	const char *at = strstr(message, tag);
	return at ? strtoll(at + length, NULL, 10) : 0;
}
