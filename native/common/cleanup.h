/* Scope guards: what is declared with one is released where its scope ends, errno kept. */
#ifndef FIRSTLIGHT_CLEANUP_H
#define FIRSTLIGHT_CLEANUP_H

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_file(int *file)
{
	int error = errno;
	if (*file >= 0)
		close(*file);
	errno = error;
}

static inline void cleanup_free(void *pointer)
{
	int error = errno;
	free(*(void **)pointer);
	errno = error;
}

#define FILE_SCOPE __attribute__((cleanup(cleanup_file)))
#define FREE_SCOPE __attribute__((cleanup(cleanup_free)))

#endif
