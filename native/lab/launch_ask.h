/* Starts that are asked for: a message on a connection that was open before. */
#ifndef FIRSTLIGHT_LAUNCH_ASK_H
#define FIRSTLIGHT_LAUNCH_ASK_H

#include <stdint.h>

/* Connects to the seqpacket socket at a path, says the greeting, and waits for its answer, which
 * shows that the other side serves the connection. Gives up at `until`, or when `control` ends.
 * Returns the connection, which does not block, or -1 with errno. */
int ask_connect(const char *path, const char *greeting, int64_t until, int control);

enum heard { HEARD_NOTHING, HEARD_ANSWER, HEARD_RESULT, HEARD_ERROR, HEARD_END, HEARD_LAST };

/* The next message, if there is one, in text, of at most size bytes with its NUL: the answer to
 * the request, what a handler returned, its error, the end of the instance, or that the connection
 * has ended. */
enum heard ask_hear(int connection, char *text, int size);

#endif
