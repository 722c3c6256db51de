#include "lab/launch_text.h"

#include <string.h>

/* The length of the first line of a text, with its end; the whole text if it has none. */
static size_t line_length(const char *text, size_t size)
{
	const char *newline = memchr(text, '\n', size);
	return newline ? (size_t)(newline - text) + 1 : size;
}

static int starts_with(const char *text, size_t size, const char *word)
{
	return size >= strlen(word) && !memcmp(text, word, strlen(word));
}

int launch_text_has_spoken(const char *text, size_t size)
{
	for (size_t length; size; text += length, size -= length) {
		length = line_length(text, size);
		if (text[length - 1] == '\n' && (starts_with(text, length, "firstlight ready ") ||
						 starts_with(text, length, "firstlight error ")))
			return 1;
	}
	return 0;
}

size_t launch_text_make_room(char *text, size_t size)
{
	size_t kept = 0, length;
	for (size_t at = 0; at < size; at += length) {
		length = line_length(text + at, size - at);
		if (text[at + length - 1] == '\n' && at - kept < LAUNCH_OUTPUT_MAX / 2 &&
		    !starts_with(text + at, length, "firstlight "))
			continue;
		memmove(text + kept, text + at, length);
		kept += length;
	}
	return kept < LAUNCH_OUTPUT_MAX ? kept : LAUNCH_OUTPUT_MAX / 2;
}
