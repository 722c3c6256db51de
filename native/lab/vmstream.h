/* A stream of text, cut into lines that are stamped on arrival. */
#ifndef FIRSTLIGHT_VMSTREAM_H
#define FIRSTLIGHT_VMSTREAM_H

#include <stddef.h>
#include <stdint.h>

enum { VMSTREAM_LINE_MAX = 4096 };

struct vmstream {
	int fd; /* non-blocking; -1 once it has ended */
	int64_t stamp; /* of the last bytes, in ns of CLOCK_MONOTONIC */
	size_t size; /* of a line that is not finished */
	char line[VMSTREAM_LINE_MAX + 1];
};

/* Called with each line, ended by a NUL and without its own end. */
typedef void vmstream_on_line(void *context, struct vmstream *stream);

/* Reads what is there now; a line longer than we keep is cut into several. */
void vmstream_read(struct vmstream *stream, vmstream_on_line *on_line, void *context);

/* Takes what there is of a line for a whole one. */
void vmstream_finish(struct vmstream *stream, vmstream_on_line *on_line, void *context);

#endif
