/* Runs a program with a text on its standard input; reads and writes whole texts.
 *
 * Functions return 0 or more, or a negative errno.
 */
#ifndef FIRSTLIGHT_PROCESS_H
#define FIRSTLIGHT_PROCESS_H

#include "common/error.h"

/* Reads to the end of the stream, adds a NUL, and lets the caller free the text. Returns its
 * length; EFBIG above 1 MiB. */
int process_read_all(int file, char **text);
int process_write_all(int file, const char *text, size_t length);

/* A pipe that holds these texts in turn; the last is NULL. It needs no writer: text that does not
 * fit is EFBIG. */
int process_pipe(const char *const texts[]);

/* Executes a program with that descriptor as its standard input, and waits for it. Returns its wait
 * status; ``output`` is its output, for the caller to free, or NULL after an error. */
int process_run(char *const argv[], char *const environment[], int input, char **output,
		struct error *error);

/* Executes a program with our streams, and waits until it has ended with status 0. */
int process_execute(char *const argv[], struct error *error);

#endif
