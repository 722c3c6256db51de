#include "lab/launch_ask.h"

#include "agile/wire.h"
#include "common/clock.h"
#include "common/message.h"
#include "common/socket.h"

#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define NODE "node:"

int launch_ask_send(int connection, const char *text, const int *files, int count)
{
	struct ask ask = {.magic = ASK_MAGIC, .verb = ASK_PING, .asked = clock_now()};
	unsigned number, version;
	if (strncmp(text, NODE, strlen(NODE)))
		return socket_send(connection, text, strlen(text), files, count);
	if (sscanf(text + strlen(NODE), "start %u %u", &number, &version) == 2) {
		ask.verb = ASK_START;
		ask.function = number;
		ask.version = version;
	}
	return socket_send(connection, &ask, sizeof ask, files, count);
}

/* The node's records are Python's to interpret. */
static void read_node(const struct answer *answer, struct launch_news *news)
{
	static const char digits[] = "0123456789abcdef";
	const unsigned char *bytes = (const void *)answer;
	_Static_assert(sizeof NODE + 2 * sizeof *answer <= sizeof news->text, "as digits");
	/* By hand, as this runs beside the starts that are measured. */
	char *at = stpcpy(news->text, NODE);
	for (size_t i = 0; i < sizeof *answer; i++) {
		*at++ = digits[bytes[i] >> 4];
		*at++ = digits[bytes[i] & 15];
	}
	*at = 0;
	news->kind = answer->verb == ANSWER_REFUSED ? ASK_ERROR
		     : answer->verb == ANSWER_ENDED ? ASK_END
						    : ASK_ANSWER;
	news->status = answer->status;
	news->user = answer->user;
	news->system = answer->system;
}

static void read_message(struct launch_news *news)
{
	const char *text = news->text;
	int killed = (int)message_number(text, "signal");
	news->kind = message_is(text, "error")     ? ASK_ERROR
		     : message_is(text, "ended")   ? ASK_END
		     : message_is(text, "invoked") ? ASK_RESULT
						   : ASK_ANSWER;
	news->status = killed ? killed : (int)message_number(text, "status") << 8;
	news->user = message_number(text, "user_ns");
	news->system = message_number(text, "system_ns");
}

/* Waits for the answer to the greeting, and reads it. */
static int read_greeting(int connection, int64_t until, int control)
{
	struct pollfd ready[] = {{connection, POLLIN, 0}, {control, POLLRDHUP, 0}};
	int64_t left = (until - clock_now()) / 1000000;
	char answer;
	int n = poll(ready, 2, left > 0 ? (int)left : 0);
	if (n <= 0)
		return n ? -errno : -ETIMEDOUT;
	if (ready[1].revents)
		return -ECANCELED;
	ssize_t size = recv(connection, &answer, 1, 0);
	return size > 0 ? 0 : size ? -errno : -ECONNRESET;
}

int launch_ask_connect(const char *path, const char *greeting, int64_t until, int control)
{
	int64_t left = until - clock_now();
	int connection FILE_SCOPE =
		socket_connect(path, SOCK_SEQPACKET, left > 0 ? left : CLOCK_SECOND / 1000);
	if (connection < 0)
		return connection;
	int bad = launch_ask_send(connection, greeting, NULL, 0);
	bad = bad ? bad : read_greeting(connection, until, control);
	if (!bad && fcntl(connection, F_SETFL, O_NONBLOCK))
		bad = -errno;
	return bad ? bad : descriptor_take(&connection);
}

void launch_ask_read(int connection, struct launch_news *news)
{
	struct answer answer;
	ssize_t length = recv(connection, news->text, sizeof news->text - 1, 0);
	if (length <= 0) {
		bool is_nothing = length < 0 && (errno == EAGAIN || errno == EINTR);
		news->kind = is_nothing ? ASK_NOTHING : ASK_CLOSED;
		return;
	}
	news->text[length] = 0;
	memcpy(&answer, news->text, sizeof answer);
	if (length == sizeof answer && answer.magic == ASK_MAGIC)
		read_node(&answer, news);
	else
		read_message(news);
}
