/* A program run with a text on its standard input, and the reading and writing of whole texts.
 *
 * Functions return 0 or more, or a negative errno.
 */
#ifndef FIRSTLIGHT_PROCESS_H
#define FIRSTLIGHT_PROCESS_H

#include "common/error.h"

/* To the end of the stream, ended by a NUL; the caller frees it. Returns its length; EFBIG above
 * 1 MiB. */
int process_read_all(int file, char **text);
int process_write_all(int file, const char *text, size_t length);

/* A pipe that holds these texts one after the other, to be read; the last is NULL. Nobody need write
 * while it is read: a text that does not fit is EFBIG. */
int process_pipe(const char *const texts[]);

/* Executes a program whose standard input is that descriptor and waits for it. Returns its wait
 * status; ``output`` is what it printed, for the caller to free, or NULL where there is an error. */
int process_run(char *const argv[], char *const environment[], int input, char **output,
		struct error *error);

#endif
