/* The root file systems of functions, attached in the node's own mount namespace, of which each
 * instance gets a clone. Functions return 0 or more, or a negative errno. */
#ifndef FIRSTLIGHT_ROOT_H
#define FIRSTLIGHT_ROOT_H

/* A mount namespace with nothing in it but a place for roots and the host's /proc. */
int root_prune(void);

/* The mount namespace that sandboxes without a function start from. */
int root_blank(void);

/* Attaches a detached tree, read-only, with a /dev of its own; its descriptor. */
int root_attach(unsigned number, unsigned version, int tree);

/* A detached clone of an attached root. */
int root_clone(int root);

void root_detach(unsigned number, unsigned version, int *root);

#endif
