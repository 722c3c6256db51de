/* Messages of the agile runtime that are JSON. */
#ifndef FIRSTLIGHT_MESSAGE_H
#define FIRSTLIGHT_MESSAGE_H

#include <stddef.h>

enum { MESSAGE_DESCRIPTORS = 3, MESSAGE_MAX = 192 * 1024 };

/* Whether a message of the agile runtime (src/firstlight/agile/protocol.py) has this type. */
int message_is(const char *message, const char *type);

/* The number that follows the first such key; 0 if there is none, or null. */
long long message_number(const char *message, const char *key);

#endif
