/* Functions' root file systems, attached in the node's own mount namespace; each instance gets a clone.
 * Functions return 0 or more, or a negative errno. */
#ifndef FIRSTLIGHT_ROOT_H
#define FIRSTLIGHT_ROOT_H

#include <stdbool.h>

/* A mount namespace that holds only a place for roots and the host's /proc. */
int root_prune(void);

/* The mount namespace that sandboxes without a function start from. */
int root_blank(void);

/* The content of a root's files of /etc: a name, and the whole of resolv.conf. */
struct root_text {
	const char *host_name, *resolvers;
};

/* The beginning of /etc/hosts. Instances have no IPv6. The names of its loopback are there but
 * not for localhost, or a server would find no address to listen on. */
#define ROOT_HOSTS "127.0.0.1\tlocalhost\n::1\tip6-localhost ip6-loopback\n"

/* Writes a small file that all may read. */
int root_write(int directory, const char *name, const char *text);

/* Attaches a detached tree, read-only, with its own /dev and files of /etc. */
int root_attach(unsigned number, unsigned version, int tree, bool writable,
		const struct root_text *text);

/* Whether its /etc/hosts is a file of ours. */
int root_has_hosts(int root);

/* A detached clone of an attached root. */
int root_clone(int root);

void root_detach(unsigned number, unsigned version, int *root);

#endif
