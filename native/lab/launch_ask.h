/* Starts that are requested by a message, on a connection that is already open. */
#ifndef FIRSTLIGHT_LAUNCH_ASK_H
#define FIRSTLIGHT_LAUNCH_ASK_H

#include <stdint.h>

/* Connects to the seqpacket socket at a path, sends the greeting, and waits for its answer, which
 * shows that the other side serves the connection. Gives up at `until`, or when `control` ends.
 * Returns the connection, which does not block, or a negative errno. */
int launch_ask_connect(const char *path, const char *greeting, int64_t until, int control);

/* Sends a text with descriptors: a message of the runtime, or one to the node itself, "node:ping" or
 * "node:start NUMBER VERSION". Returns 0 or a negative errno. */
int launch_ask_send(int connection, const char *text, const int *files, int count);

/* The answer to the request, what a handler returned, its error, the end of the instance, or that the
 * connection has ended. */
enum launch_answer { ASK_NOTHING, ASK_ANSWER, ASK_RESULT, ASK_ERROR, ASK_END, ASK_CLOSED };

struct launch_news {
	enum launch_answer kind;
	int status; /* of END, as waitpid gives it */
	int64_t user, system; /* of END: ns of CPU time */
	char text[8192]; /* a message of the runtime, or "node:" and a struct answer's digits */
};

/* The next message, if there is one. */
void launch_ask_read(int connection, struct launch_news *news);

#endif
