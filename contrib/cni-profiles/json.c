#include "json.h"

#include <stdbool.h>
#include <stdio.h>
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
	static const char digits[] = "0123456789";
	at += *at == '-';
	size_t whole = strspn(at, digits);
	if (!whole || (*at == '0' && whole > 1))
		return NULL;
	at += whole;
	if (*at == '.') {
		size_t fraction = strspn(++at, digits);
		if (!fraction)
			return NULL;
		at += fraction;
	}
	if (*at == 'e' || *at == 'E') {
		at++;
		at += *at == '+' || *at == '-';
		size_t exponent = strspn(at, digits);
		if (!exponent)
			return NULL;
		at += exponent;
	}
	return at;
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

/* The code point of "\\uXXXX" at that place, or of a pair of them; moves on to its last digit. */
static unsigned code_point(const char **at)
{
	unsigned high = 0xfffd, low;
	int taken = 0;
	if (sscanf(*at, "u%4x%n", &high, &taken) != 1 || taken != 5)
		return high;
	*at += 4;
	if (high < 0xd800 || high > 0xdfff)
		return high;
	if (high > 0xdbff || sscanf(*at + 1, "\\u%4x%n", &low, &taken) != 1 || taken != 6 ||
	    low < 0xdc00 || low > 0xdfff)
		return 0xfffd;
	*at += 6;
	return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
}

/* Writes a code point in UTF-8; returns how many bytes. */
static size_t encode(unsigned point, char to[4])
{
	size_t size = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
	static const unsigned lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
	for (size_t i = size; i-- > 1; point >>= 6)
		to[i] = (char)(0x80 | (point & 0x3f));
	to[0] = (char)(lead[size] | point);
	return size;
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
	for (; at < end; at++) {
		char bytes[4] = {*at};
		size_t count = 1;
		if (string && *at == '\\') {
			at++;
			bytes[0] = strchr("bfnrt", *at) ? ' ' : *at;
			count = *at == 'u' ? encode(code_point(&at), bytes) : 1;
		}
		if (used + count >= size)
			break;
		if ((unsigned char)bytes[0] < ' ')
			bytes[0] = ' ';
		memcpy(to + used, bytes, count);
		used += count;
	}
	to[used] = 0;
	return to;
}
