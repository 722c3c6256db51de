/* The command line, read where the hypervisor left it. */
#include "guest.h"

static const char *line = "";

void options_set(const char *given)
{
	line = given;
}

static const char *behind(const char *at, const char *prefix)
{
	while (*prefix)
		if (*at++ != *prefix++)
			return NULL;
	return at;
}

const char *option(const char *name, const char *after)
{
	const char *at = after ? after : line;
	for (bool word_begins = !after; *at; word_begins = *at++ == ' ') {
		const char *value = word_begins ? behind(at, name) : NULL;
		if (value)
			return value;
	}
	return NULL;
}

bool is_word(const char *at, const char *word)
{
	const char *end = at ? behind(at, word) : NULL;
	return end && (*end == ' ' || !*end);
}

static unsigned digit(char c)
{
	if (c >= '0' && c <= '9')
		return (unsigned)(c - '0');
	c |= 'a' - 'A';
	return c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10 : 16;
}

uint64_t number(const char **at)
{
	uint64_t value = 0;
	const char *hexadecimal = behind(*at, "0x");
	unsigned base = hexadecimal ? 16 : 10;
	if (hexadecimal)
		*at = hexadecimal;
	for (; digit(**at) < base; (*at)++)
		value = value * base + digit(**at);
	if ((**at | 32) == 'k' || (**at | 32) == 'm')
		value <<= (*(*at)++ | 32) == 'k' ? 10 : 20;
	return value;
}

uint32_t address(const char *at)
{
	uint32_t value = 0;
	for (unsigned i = 0; i < 4; i++) {
		value = value << 8 | (uint32_t)(number(&at) & 0xff);
		at += *at == '.';
	}
	return value;
}
