#include "vmstream.h"

#include "vmclock.h"

#include <errno.h>
#include <unistd.h>

enum { CHUNK = 65536 };

static void end_line(struct stream *stream, stream_hear *hear, void *context)
{
	while (stream->size && stream->line[stream->size - 1] == '\r')
		stream->size--;
	stream->line[stream->size] = 0;
	for (char *at = stream->line; at < stream->line + stream->size; at++)
		if (!*at)
			*at = '?'; /* a NUL would end the line */
	hear(context, stream);
	stream->size = 0;
}

void stream_finish(struct stream *stream, stream_hear *hear, void *context)
{
	if (stream->size)
		end_line(stream, hear, context);
}

void stream_read(struct stream *stream, stream_hear *hear, void *context)
{
	char chunk[CHUNK];
	while (stream->fd >= 0) {
		ssize_t n = read(stream->fd, chunk, sizeof(chunk));
		int64_t stamp = now();
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			stream_finish(stream, hear, context);
			close(stream->fd);
			stream->fd = -1;
			return;
		}
		for (const char *at = chunk; at < chunk + n; at++) {
			stream->stamp = stamp;
			if (*at != '\n')
				stream->line[stream->size++] = *at;
			if (*at == '\n' || stream->size == STREAM_LINE_MAX)
				end_line(stream, hear, context);
		}
		if ((size_t)n < sizeof(chunk))
			return;
	}
}
