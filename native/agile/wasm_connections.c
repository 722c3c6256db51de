#include "wasm_connections.h"
#include "wasm.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_MS = 1000 };

/* The descriptor is closed when no thread uses it any more, and then its place is free for another
 * connection. A late event of the one before does no harm: the other is looked at without a wait. */
struct wasm_connection {
	int descriptor;
	uint32_t users;
	bool open;
};

static struct wasm_connection connections[WASM_CONNECTIONS_MAX];
static uint32_t open_connections;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int ready = -1; /* epoll */
static int vacated = -1; /* an eventfd */

int wasm_connections_open(void)
{
	ready = epoll_create1(EPOLL_CLOEXEC);
	vacated = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return ready < 0 || vacated < 0 ? -errno : vacated;
}

static bool place(int descriptor)
{
	struct wasm_connection *connection = connections;
	while (connection < connections + WASM_CONNECTIONS_MAX &&
	       (connection->open || connection->users))
		connection++;
	if (connection == connections + WASM_CONNECTIONS_MAX)
		return false;
	struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE};
	event.data.ptr = connection;
	connection->descriptor = descriptor;
	connection->open = !epoll_ctl(ready, EPOLL_CTL_ADD, descriptor, &event);
	open_connections += connection->open;
	return connection->open;
}

void wasm_connections_add(int descriptor)
{
	pthread_mutex_lock(&lock);
	if (!place(descriptor))
		close(descriptor); /* the client sees that it has no connection */
	pthread_mutex_unlock(&lock);
}

bool wasm_connections_empty(void)
{
	pthread_mutex_lock(&lock);
	bool empty = !open_connections;
	pthread_mutex_unlock(&lock);
	return empty;
}

static bool hold(struct wasm_connection *connection)
{
	pthread_mutex_lock(&lock);
	bool is_open = connection->open;
	connection->users += is_open;
	pthread_mutex_unlock(&lock);
	return is_open;
}

void wasm_connection_release(struct wasm_connection *connection, bool keep)
{
	pthread_mutex_lock(&lock);
	if (!keep && connection->open) {
		connection->open = false;
		epoll_ctl(ready, EPOLL_CTL_DEL, connection->descriptor, NULL);
		if (!--open_connections)
			(void)eventfd_write(vacated, 1); /* fails only where it would block */
	}
	if (!--connection->users && !connection->open)
		close(connection->descriptor);
	pthread_mutex_unlock(&lock);
}

size_t wasm_connections_receive(struct wasm_connection **connection, char *message)
{
	for (;;) {
		struct epoll_event event;
		if (epoll_wait(ready, &event, 1, -1) != 1 || !hold(event.data.ptr))
			continue;
		*connection = event.data.ptr;
		ssize_t size = recv((*connection)->descriptor, message, WASM_MESSAGE_MAX,
				    MSG_DONTWAIT | MSG_TRUNC);
		if (size > 0 && size <= WASM_MESSAGE_MAX)
			return (size_t)size;
		/* Another thread was quicker; or the connection has ended, or sent too much. */
		wasm_connection_release(*connection,
					size < 0 && (errno == EAGAIN || errno == EINTR));
	}
}

int wasm_connection_send(const struct wasm_connection *connection, const void *message, size_t size)
{
	struct pollfd writable = {connection->descriptor, POLLOUT, 0};
	while (send(writable.fd, message, size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		if (errno == EAGAIN && poll(&writable, 1, READ_MS) == 0)
			return -ETIMEDOUT;
	}
	return 0;
}
