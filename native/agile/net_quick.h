/* Reduces what an instance can leave in a network namespace to one number. The helper reads it of each
 * new namespace, and the node of each used one; the caller is in the namespace. */
#ifndef FIRSTLIGHT_NET_QUICK_H
#define FIRSTLIGHT_NET_QUICK_H

#include <stddef.h>
#include <stdint.h>

enum { NET_TEXT_MAX = 65536 };
#define NET_EMPTY 14695981039346656037ULL /* FNV-1a of nothing */

void net_add(uint64_t *digest, const void *bytes, size_t size);

/* Reads a file into text, of NET_TEXT_MAX bytes; returns its size, 0 for one that cannot be read. */
size_t net_read(int directory, const char *name, char *text);

/* These return 0 or a negative errno. The first is called once, before the others. */
int net_quick_open(void);
int net_quick_digest(uint64_t *digest);
/* Drops the routes that the kernel keeps for the addresses that were asked for, and so when. */
int net_forget_routes(void);
/* The number of sockets there that anybody still holds. Ours count until a grace period after they
 * were closed, so this is asked before one is opened. */
int net_sockets(uint64_t *sockets);

#endif
