/* The profile of calico's address plugin of early 2021: eleven calls of etcd, of which nine under a
 * lock of the whole host. A block of 64 addresses is the host's; what is free in it is null:
 *
 *   host/NODE/ipv4/block/BLOCK    that the host has the block
 *   assignment/ipv4/block/BLOCK   whose each address of it is, by its handle
 *   handle/HANDLE                 which block the container's address is in
 */
#include "etcd.h"
#include "plugin.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define RESOURCES "/calico/resources/v3/projectcalico.org/"
#define IPAM "/calico/ipam/v2/"

enum { BLOCK = 64, TRIES = 10 };

struct work {
	const struct call *call;
	struct etcd *etcd;
	char node[64], cidr[32];
	char *handle; /* HANDLE, and its key */
	char *handle_key;
};

static struct work begin(const struct call *call)
{
	struct work work = {.call = call};
	char endpoint[128];
	conf_string(call, "nodename", work.node, sizeof work.node, "localhost");
	work.handle = text_of("%s.%s", call->name, call->container);
	work.handle_key = text_of(IPAM "handle/%s", work.handle);
	work.etcd = etcd_open(conf_string(call, "etcd_endpoints", endpoint, sizeof endpoint,
					  "http://127.0.0.1:2379"));
	return work;
}

static int lock(void)
{
	if (mkdir("/var/run/calico", 0700) && errno != EEXIST)
		cni_fail("cannot make /var/run/calico: %s", strerror(errno));
	int fd = open("/var/run/calico/ipam.lock", O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
	cni_check(fd < 0 ? -1 : flock(fd, LOCK_EX), "lock /var/run/calico/ipam.lock");
	return fd;
}

static void read_pool(struct work *work)
{
	scoped_pairs pools = etcd_get_all(work->etcd, RESOURCES "ippools/");
	const char *spec = pools.count ? json_member(pools.all[0].value, "spec") : NULL;
	const char *cidr = spec ? json_member(spec, "cidr") : NULL;
	if (!cidr)
		cni_fail("no configured Calico pools");
	json_text(cidr, work->cidr, sizeof work->cidr);
}

static void read_node(struct work *work)
{
	char *key FREE_SCOPE = text_of(RESOURCES "nodes/%s", work->node);
	scoped_pairs stored = etcd_get(work->etcd, key);
	if (!stored.count)
		cni_fail("resource does not exist: Node(%s)", work->node);
}

static void ensure_config(struct work *work)
{
	scoped_pairs stored = etcd_get(work->etcd, IPAM "config");
	if (!stored.count)
		etcd_set(work->etcd, IPAM "config",
			 "{\"strict_affinity\":false,\"auto_allocate_blocks\":true}", 0);
}

static void claim(struct work *work, size_t number)
{
	char first[INET_ADDRSTRLEN], nothing[5 * BLOCK + 1] = "";
	int length = atoi(strchr(work->cidr, '/') + 1);
	if (number * BLOCK >= (size_t)1 << (32 - length))
		cni_fail("no more free addresses in %s", work->cidr);
	work->cidr[strcspn(work->cidr, "/")] = 0;
	struct in_addr address = address_of(work->cidr);
	address.s_addr = htonl(ntohl(address.s_addr) + (uint32_t)(number * BLOCK));
	inet_ntop(AF_INET, &address, first, sizeof first);
	for (size_t i = 0; i < BLOCK; i++)
		strcat(nothing, i ? ",null" : "null");
	char *affinity FREE_SCOPE = text_of(IPAM "host/%s/ipv4/block/%s-26", work->node, first);
	char *assignment FREE_SCOPE = text_of(IPAM "assignment/ipv4/block/%s-26", first);
	char *block FREE_SCOPE =
		text_of("{\"cidr\":\"%s/26\",\"affinity\":\"host:%s\",\"strictAffinity\":false,"
			"\"allocations\":[%s]}",
			first, work->node, nothing);
	etcd_set(work->etcd, affinity, "{\"state\":\"pending\"}", 0);
	etcd_set(work->etcd, assignment, block, 0);
	scoped_pairs stored = etcd_get(work->etcd, affinity);
	if (stored.count)
		etcd_set(work->etcd, affinity, "{\"state\":\"confirmed\"}", stored.all[0].revision);
	sprintf(work->cidr + strlen(work->cidr), "/%d", length);
}

/* The place of the first allocation that is the value as written; NULL if none is. */
static const char *find(const char *block, const char *value, uint32_t *number)
{
	const char *all = json_member(block, "allocations"), *slot = NULL;
	for (*number = 0; all && (slot = json_next(all, slot)); ++*number)
		if (!strncmp(slot, value, strlen(value)))
			return slot;
	return NULL;
}

static bool replace(struct work *work, const struct pair *block, const char *at, const char *with)
{
	char *changed FREE_SCOPE =
		text_of("%.*s%s%s", (int)(at - block->value), block->value, with, json_end(at));
	return etcd_set(work->etcd, block->key, changed, block->revision);
}

static void remember(struct work *work, const char *block)
{
	scoped_pairs stored = etcd_get(work->etcd, work->handle_key);
	char *value FREE_SCOPE =
		text_of("{\"handleID\":\"%s\",\"block\":\"%s\",\"count\":1}", work->handle, block);
	if (!etcd_set(work->etcd, work->handle_key, value,
		      stored.count ? stored.all[0].revision : 0))
		cni_fail("the handle %s is another's", work->handle);
}

/* An address of that block of ours; false if it is full or was changed meanwhile. */
static bool take(struct work *work, const char *affinity_key, struct in_addr *address)
{
	char first[INET_ADDRSTRLEN];
	uint32_t number;
	scoped_pairs affinity = etcd_get(work->etcd, affinity_key);
	const char *name = strrchr(affinity_key, '/') + 1;
	char *key FREE_SCOPE = text_of(IPAM "assignment/ipv4/block/%s", name);
	scoped_pairs block = etcd_get(work->etcd, key);
	const char *at = block.count ? find(block.all[0].value, "null", &number) : NULL;
	if (!affinity.count || !at)
		return false;
	char *owner FREE_SCOPE = text_of("\"%s\"", work->handle);
	remember(work, name);
	if (!replace(work, &block.all[0], at, owner))
		return false;
	snprintf(first, sizeof first, "%.*s", (int)strcspn(name, "-"), name);
	*address = address_of(first);
	address->s_addr = htonl(ntohl(address->s_addr) + number);
	return true;
}

static struct in_addr assign(struct work *work)
{
	struct in_addr address;
	char *mine FREE_SCOPE = text_of(IPAM "host/%s/ipv4/block/", work->node);
	for (int tries = 0; tries < TRIES; tries++) {
		scoped_pairs ours = etcd_get_all(work->etcd, mine);
		ensure_config(work);
		for (size_t i = 0; i < ours.count; i++)
			if (take(work, ours.all[i].key, &address))
				return address;
		claim(work, ours.count);
	}
	cni_fail("the blocks of %s change all the time", work->node);
}

static void add(const struct call *call)
{
	char text[INET_ADDRSTRLEN];
	struct work work = begin(call);
	read_pool(&work);
	read_pool(&work);
	int locked FILE_SCOPE = lock();
	read_node(&work);
	read_pool(&work);
	struct in_addr address = assign(&work);
	flock(locked, LOCK_UN);
	printf("{\"cniVersion\":\"%s\",\"ips\":[{%s\"address\":\"%s/26\"}],\"dns\":{}}\n",
	       call->version, call->version[0] == '0' ? "\"version\":\"4\"," : "",
	       inet_ntop(AF_INET, &address, text, sizeof text));
}

static void release(struct work *work, const struct pair *handle)
{
	char name[64] = "";
	uint32_t number;
	const char *block = json_member(handle->value, "block");
	char *owner FREE_SCOPE = text_of("\"%s\"", work->handle);
	char *key FREE_SCOPE = text_of(IPAM "assignment/ipv4/block/%s",
				       block ? json_text(block, name, sizeof name) : "");
	for (int tries = 0; tries < TRIES; tries++) {
		scoped_pairs stored = etcd_get(work->etcd, key);
		const char *at = stored.count ? find(stored.all[0].value, owner, &number) : NULL;
		if (!at || replace(work, &stored.all[0], at, "null"))
			break;
	}
	scoped_pairs again = etcd_get(work->etcd, work->handle_key);
	if (again.count)
		etcd_delete(work->etcd, work->handle_key, again.all[0].revision);
}

static void del(const struct call *call)
{
	struct work work = begin(call);
	int locked FILE_SCOPE = lock();
	scoped_pairs handle = etcd_get(work.etcd, work.handle_key);
	if (handle.count)
		release(&work, &handle.all[0]);
	read_node(&work);
	read_pool(&work);
	flock(locked, LOCK_UN);
}

const struct plugin plugin = {add, del};
