#include "json.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

enum { DEEPEST = 64 };

static const char *space(const char *at)
{
	return at + strspn(at, " \t\r\n");
}

static const char *string_end(const char *at)
{
	for (at++; *at && *at != '"'; at++)
		if ((unsigned char)*at < ' ' || (*at == '\\' && !*++at))
			return NULL;
	return *at ? at + 1 : NULL;
}

static const char *number_end(const char *at)
{
	at += *at == '-';
	if (!isdigit((unsigned char)*at))
		return NULL;
	return at + strspn(at, "0123456789.eE+-");
}

static const char *value_end(const char *at, int depth);

static const char *container_end(const char *at, int depth)
{
	bool object = *at == '{';
	char close = object ? '}' : ']';
	at = space(at + 1);
	if (*at == close)
		return at + 1;
	for (;; at = space(at + 1)) {
		if (object) {
			if (*at != '"' || !(at = string_end(at)) || *(at = space(at)) != ':')
				return NULL;
			at++;
		}
		if (!(at = value_end(at, depth + 1)))
			return NULL;
		at = space(at);
		if (*at == close)
			return at + 1;
		if (*at != ',')
			return NULL;
	}
}

static const char *value_end(const char *at, int depth)
{
	static const char *const words[] = {"true", "false", "null"};
	at = space(at);
	if (depth > DEEPEST)
		return NULL;
	if (*at == '{' || *at == '[')
		return container_end(at, depth);
	if (*at == '"')
		return string_end(at);
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		if (!strncmp(at, words[i], strlen(words[i])))
			return at + strlen(words[i]);
	return number_end(at);
}

const char *json_end(const char *text)
{
	return value_end(text, 0);
}

const char *json_member(const char *object, const char *key)
{
	const char *at = space(object);
	size_t length = strlen(key);
	if (*at != '{')
		return NULL;
	at = space(at + 1);
	while (*at == '"') {
		const char *name = at + 1, *name_end = string_end(at);
		const char *value = space(space(name_end) + 1);
		if (name_end - name - 1 == (ptrdiff_t)length && !strncmp(name, key, length))
			return value;
		at = space(json_end(value));
		at = *at == ',' ? space(at + 1) : at;
	}
	return NULL;
}

const char *json_next(const char *array, const char *element)
{
	const char *at = space(array);
	if (!element) {
		at = *at == '[' ? space(at + 1) : "]";
		return *at == ']' ? NULL : at;
	}
	at = space(json_end(element));
	return *at == ',' ? space(at + 1) : NULL;
}

char *json_text(const char *value, char *to, size_t size)
{
	const char *at = space(value), *end = json_end(at);
	size_t used = 0;
	bool string = *at == '"';
	if (string) {
		at++;
		end--;
	}
	for (; at < end && used + 1 < size; at++) {
		char c = *at;
		if (string && c == '\\') {
			c = *++at;
			c = c == 'n' || c == 't' || c == 'r' ? ' ' : c;
		}
		to[used++] = c == '\n' ? ' ' : c;
	}
	to[used] = 0;
	return to;
}
