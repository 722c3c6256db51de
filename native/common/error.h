/* Why something failed, for the message to the user: see "C" in CONTRIBUTING.md. */
#ifndef FIRSTLIGHT_ERROR_H
#define FIRSTLIGHT_ERROR_H

#include <stddef.h>

struct error {
	int code; /* an errno; 0 until something has failed */
	char text[1200];
};

/* Records a failure as the text, a colon and the errno's meaning; with a code of 0, as the text
 * alone. The first failure is kept, as it is the reason; those of the following clean-up are not.
 * Several lines become one. Returns the negative errno. */
__attribute__((format(printf, 3, 4))) int error_set(struct error *error, int code,
						    const char *format, ...);

/* Writes the line "firstlight error TEXT" to standard output. */
void error_print(const struct error *error);

#endif
