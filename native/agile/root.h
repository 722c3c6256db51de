/* The root file systems of functions, attached in the node's own mount namespace, of which each
 * instance gets a clone. Functions return 0 or more, or a negative errno. */
#ifndef FIRSTLIGHT_ROOT_H
#define FIRSTLIGHT_ROOT_H

#include <stdbool.h>

/* A mount namespace with nothing in it but a place for roots and the host's /proc. */
int root_prune(void);

/* The mount namespace that sandboxes without a function start from. */
int root_blank(void);

/* What the files of /etc say in a root: a name, and the whole of resolv.conf. */
struct root_text {
	const char *host_name, *resolvers;
};

/* How /etc/hosts begins. Instances have no IPv6: the names of its loopback are there, localhost is
 * not among them, or a server would not find an address to listen on. */
#define ROOT_HOSTS "127.0.0.1\tlocalhost\n::1\tip6-localhost ip6-loopback\n"

/* Writes a small file that all may read. */
int root_write(int directory, const char *name, const char *text);

/* Attaches a detached tree, read-only, with a /dev and files of /etc of its own. */
int root_attach(unsigned number, unsigned version, int tree, bool writable,
		const struct root_text *text);

/* Whether /etc/hosts in it is a file of ours. */
int root_has_hosts(int root);

/* A detached clone of an attached root. */
int root_clone(int root);

void root_detach(unsigned number, unsigned version, int *root);

#endif
