#include "lab/vmstream.h"

#include "common/clock.h"

#include <errno.h>
#include <unistd.h>

enum { CHUNK = 65536 };

static void end_line(struct vmstream *stream, vmstream_on_line *on_line, void *context)
{
	while (stream->size && stream->line[stream->size - 1] == '\r')
		stream->size--;
	stream->line[stream->size] = 0;
	for (char *at = stream->line; at < stream->line + stream->size; at++)
		if (!*at)
			*at = '?'; /* a NUL would end the line */
	on_line(context, stream);
	stream->size = 0;
}

void vmstream_finish(struct vmstream *stream, vmstream_on_line *on_line, void *context)
{
	if (stream->size)
		end_line(stream, on_line, context);
}

void vmstream_read(struct vmstream *stream, vmstream_on_line *on_line, void *context)
{
	char chunk[CHUNK];
	while (stream->fd >= 0) {
		ssize_t n = read(stream->fd, chunk, sizeof chunk);
		int64_t stamp = clock_now();
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			vmstream_finish(stream, on_line, context);
			close(stream->fd);
			stream->fd = -1;
			return;
		}
		for (const char *at = chunk; at < chunk + n; at++) {
			stream->stamp = stamp;
			if (*at != '\n')
				stream->line[stream->size++] = *at;
			if (*at == '\n' || stream->size == VMSTREAM_LINE_MAX)
				end_line(stream, on_line, context);
		}
		if ((size_t)n < sizeof chunk)
			return;
	}
}
