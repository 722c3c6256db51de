/* HTTP/1.1 with a daemon on the same machine: one request, one answer with a length. */
#ifndef FIRSTLIGHT_HTTP_H
#define FIRSTLIGHT_HTTP_H

#include <stddef.h>

/* Writes a request with a JSON body, or none. Returns its length, or -EMSGSIZE. */
int http_request(char *to, size_t size, const char *method, const char *path, const char *body);

struct http_answer {
	int status; /* 0: this is not HTTP */
	const char *body;
	size_t size; /* of the body */
};

/* Parses the input so far, ended by a NUL. Returns 1 once the head is there, else 0; the answer is
 * complete when ``size`` bytes follow ``body``. */
int http_parse(const char *text, struct http_answer *answer);

#endif
