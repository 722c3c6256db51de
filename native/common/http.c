#include "common/http.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int http_request(char *to, size_t size, const char *method, const char *path, const char *body)
{
	int length = snprintf(to, size,
			      "%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
			      "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
			      method, path, strlen(body), body);
	return length < (int)size ? length : -EMSGSIZE;
}

int http_parse(const char *text, struct http_answer *answer)
{
	static const char end[] = "\r\n\r\n", field[] = "\r\ncontent-length:";
	const char *head_end = strstr(text, end), *length = strcasestr(text, field);
	*answer = (struct http_answer){0};
	if (!head_end)
		return 0;
	if (sscanf(text, "HTTP/%*d.%*d %d", &answer->status) != 1)
		answer->status = 0;
	answer->body = head_end + strlen(end);
	if (length && length < head_end)
		answer->size = strtoul(length + strlen(field), NULL, 10);
	return 1;
}
