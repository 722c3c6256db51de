#include "common/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* One line of printable text, without blanks at its end; returns its length. */
static size_t make_plain(char *text)
{
	size_t length = strlen(text);
	for (char *at = text; *at; at++)
		if ((unsigned char)*at < ' ' || *at == 0x7f)
			*at = ' ';
	while (length && text[length - 1] == ' ')
		text[--length] = 0;
	return length;
}

int error_set(struct error *error, int code, const char *format, ...)
{
	va_list arguments;
	if (error->code)
		return -error->code;
	error->code = code ? code : EINVAL;
	va_start(arguments, format);
	vsnprintf(error->text, sizeof error->text, format, arguments);
	va_end(arguments);
	size_t length = make_plain(error->text);
	if (code)
		snprintf(error->text + length, sizeof error->text - length, ": %s", strerror(code));
	return -error->code;
}

void error_print(const struct error *error)
{
	printf("firstlight error %s\n", error->text);
	fflush(stdout);
}
