/* send fails while there is a file "short": as a kernel without memory fails. Linked with --wrap=send. */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

ssize_t __real_send(int socket, const void *bytes, size_t size, int flags);
ssize_t __wrap_send(int socket, const void *bytes, size_t size, int flags);

ssize_t __wrap_send(int socket, const void *bytes, size_t size, int flags)
{
	if (access("short", F_OK))
		return __real_send(socket, bytes, size, flags);
	errno = ENOMEM;
	return -1;
}
