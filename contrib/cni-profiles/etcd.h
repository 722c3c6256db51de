/* etcd's key-value service over gRPC: what calico's plugin asks, over one connection. */
#ifndef FIRSTLIGHT_PROFILE_ETCD_H
#define FIRSTLIGHT_PROFILE_ETCD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct etcd;

struct pair {
	char *key, *value;
	int64_t revision; /* of the last change */
};

struct pairs {
	struct pair *all;
	size_t count;
};
void free_pairs(struct pairs *pairs);
#define scoped_pairs __attribute__((cleanup(free_pairs))) struct pairs

/* ``endpoint`` is http://ADDRESS:PORT. Refuses, as all here, in etcd's own words if it has any. */
struct etcd *etcd_open(const char *endpoint);

struct pairs etcd_get(struct etcd *etcd, const char *key);
struct pairs etcd_get_all(struct etcd *etcd, const char *prefix);

/* Sets a key if its last change is that revision, 0: if there is no such key; false if not. */
bool etcd_set(struct etcd *etcd, const char *key, const char *value, int64_t revision);
bool etcd_delete(struct etcd *etcd, const char *key, int64_t revision);

#endif
