/* The command line of a watched program, as its BEGIN event has it, and the files that it names. */
#ifndef FIRSTLIGHT_COMMAND_H
#define FIRSTLIGHT_COMMAND_H

#include "trace/trace.h"

#include <stdio.h>

/* Most commands of a runtime start nothing: they query states, or execute probes. */
int command_is_of_start(const struct event *event);
int command_is_create(const struct event *event);
/* The directory of the container's bundle; "." if it is not named. */
const char *command_bundle(const struct event *event);

/* Hands over the files that last no longer than the container: of each u32 pid, u32 enum document, u32
 * size, and the text. Returns their size. */
size_t command_take_documents(const struct event *event, FILE *to);

#endif
