/* Scope guards: they release a variable's resource at the end of its scope, and keep errno. */
#ifndef FIRSTLIGHT_CLEANUP_H
#define FIRSTLIGHT_CLEANUP_H

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static inline void descriptor_close(int *descriptor)
{
	int error = errno;
	if (*descriptor >= 0)
		close(*descriptor);
	*descriptor = -1;
	errno = error;
}

/* Returns the resource to the caller: the scope no longer releases it. */
static inline int descriptor_take(int *descriptor)
{
	int taken = *descriptor;
	*descriptor = -1;
	return taken;
}

static inline void cleanup_free(void *pointer)
{
	int error = errno;
	free(*(void **)pointer);
	errno = error;
}

#define FILE_SCOPE __attribute__((cleanup(descriptor_close)))
#define FREE_SCOPE __attribute__((cleanup(cleanup_free)))

#endif
