/* A stream of text, cut into lines that are stamped on arrival. */
#ifndef FIRSTLIGHT_VMSTREAM_H
#define FIRSTLIGHT_VMSTREAM_H

#include <stddef.h>
#include <stdint.h>

enum { STREAM_LINE_MAX = 4096 };

struct stream {
	int fd;	       /* non-blocking; -1 once it has ended */
	int64_t stamp; /* of the last bytes, in ns of CLOCK_MONOTONIC */
	size_t size;   /* of a line that is not finished */
	char line[STREAM_LINE_MAX + 1];
};

/* Called with each line, ended by a NUL and without its own end. */
typedef void stream_hear(void *context, struct stream *stream);

/* Reads what is there now; a line longer than we keep is cut into several. */
void stream_read(struct stream *stream, stream_hear *hear, void *context);

/* Takes what there is of a line for a whole one. */
void stream_finish(struct stream *stream, stream_hear *hear, void *context);

#endif
