/* The output of a start's program: lines that begin with "firstlight " are ours. */
#ifndef FIRSTLIGHT_LAUNCH_TEXT_H
#define FIRSTLIGHT_LAUNCH_TEXT_H

#include <stddef.h>

enum { LAUNCH_OUTPUT_MAX = 16384 };

/* Whether there is a whole line that starts with "firstlight ready" or "firstlight error". */
int launch_text_has_spoken(const char *text, size_t size);

/* Drops the oldest lines that are not ours, and of an unfinished line all but its beginning. Returns
 * the size of the rest. */
size_t launch_text_make_room(char *text, size_t size);

#endif
