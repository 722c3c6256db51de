/* A program run with a text on its standard input. Functions that fail keep the reason in ``error``;
 * of several reasons the first is kept, because what follows is clean-up.
 */
#ifndef FIRSTLIGHT_RUN_H
#define FIRSTLIGHT_RUN_H

#include <stddef.h>
#include <stdint.h>

extern char error[1200];

/* Returns -1. */
__attribute__((format(printf, 1, 2))) int fail(const char *format, ...);
int64_t now(void);
const char *base(const char *path);
void close_fd(const int *fd);
#define scoped_fd __attribute__((cleanup(close_fd))) int
void free_text(char **text);
#define scoped_text __attribute__((cleanup(free_text))) char *

/* To the end of the stream, ended by a NUL; the caller frees it. NULL on error or above 1 MiB. */
char *read_all(int fd);
int write_all(int fd, const char *text, size_t length);

/* A pipe that holds these texts one after the other, to be read; -1 on failure. The last is NULL. */
int pipe_of(const char *const texts[]);

/* Executes a program whose standard input is that descriptor; what it printed, for the caller to
 * free, and its wait status. NULL if it could not be executed or read. */
char *run(const char *path, char *const argv[], char *const environment[], int in, int *status);

#endif
