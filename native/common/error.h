/* Why something failed, for the message to the user: see "C" in CONTRIBUTING.md. */
#ifndef FIRSTLIGHT_ERROR_H
#define FIRSTLIGHT_ERROR_H

#include <stddef.h>

struct error {
	int code; /* an errno; 0 until something has failed */
	char text[1200];
};

/* Records a failure as the text, a colon and what the errno means; with a code of 0, which no system
 * call has given, as the text alone. What is recorded already stays: the first failure is the reason,
 * and those of the clean-up that follows are not. It is one line: what others print may be several.
 * Returns the negative errno. */
__attribute__((format(printf, 3, 4))) int error_set(struct error *error, int code,
						    const char *format, ...);

/* Writes the line "firstlight error TEXT" to standard output. */
void error_print(const struct error *error);

#endif
