/* The profile of calico's plugin of early 2021 in etcd mode: four calls of etcd, and the address
 * plugin's eleven; both ends of the pair are made in the pod, and the host's end is moved out. */
#include "etcd.h"
#include "plugin.h"

#include "link.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RESOURCES "/calico/resources/v3/projectcalico.org/"

static struct etcd *open_ready(const struct call *call)
{
	char endpoint[128];
	struct etcd *etcd = etcd_open(conf_string(call, "etcd_endpoints", endpoint, sizeof endpoint,
						  "http://127.0.0.1:2379"));
	scoped_pairs stored = etcd_get(etcd, RESOURCES "clusterinformations/default");
	const char *spec = stored.count ? json_member(stored.all[0].value, "spec") : NULL;
	const char *ready = spec ? json_member(spec, "datastoreReady") : NULL;
	if (!ready)
		cni_fail("error getting ClusterInformation: resource does not exist: default");
	if (strncmp(ready, "true", 4))
		cni_fail("Calico is currently not ready to process requests");
	return etcd;
}

static char *endpoint_key(const struct call *call)
{
	char node[64];
	return text_of(RESOURCES "workloadendpoints/default/%s-cni-%s-%s",
		       conf_string(call, "nodename", node, sizeof node, "localhost"),
		       call->container, call->interface);
}

static char *address_plugin(const struct call *call, char *to, size_t size)
{
	const char *ipam = json_member(call->conf, "ipam");
	const char *type = ipam ? json_member(ipam, "type") : NULL;
	if (!type)
		cni_fail("the configuration has no ipam.type");
	return json_text(type, to, size);
}

static struct in_addr allocate(const struct call *call)
{
	char type[64], address[64] = "";
	char *answer FREE_SCOPE = delegate(address_plugin(call, type, sizeof type), call->conf);
	const char *ips = json_end(answer) ? json_member(answer, "ips") : NULL;
	const char *first = ips ? json_next(ips, NULL) : NULL;
	const char *value = first ? json_member(first, "address") : NULL;
	if (value)
		json_text(value, address, sizeof address);
	address[strcspn(address, "/")] = 0;
	return address_of(address);
}

static void make_pair(const struct call *call, const char *host, struct in_addr address)
{
	static const unsigned char MAC[] = {0xee, 0xee, 0xee, 0xee, 0xee, 0xee};
	char mtu[16];
	struct visit visit = enter(call);
	struct rtnl route RTNL_SCOPE = open_route();
	cni_check(link_add_veth(&route, call->interface, host), "make the pair %s", host);
	cni_check(link_set_mtu(&route, call->interface,
			       (unsigned)atoi(conf_string(call, "mtu", mtu, sizeof mtu, "1500"))),
		  "set the MTU of %s", call->interface);
	cni_check(link_query(&route, host), "find %s", host);
	cni_check(link_set_mac(&route, host, MAC), "set the address of %s", host);
	cni_check(link_up(&route, host), "bring %s up", host);
	cni_check(link_query(&route, call->interface), "find %s", call->interface);
	cni_check(link_up(&route, call->interface), "bring %s up", call->interface);
	int index = link_index(call->interface);
	cni_check(link_add_address(&route, call->interface, address, 32), "give %s its address",
		  call->interface);
	cni_check(rtnl_route_host(&route, index, rtnl_ip4(address_of("169.254.1.1")), NULL),
		  "add the gateway's route");
	cni_check(rtnl_route_default(&route, index, rtnl_ip4(address_of("169.254.1.1"))),
		  "add the default route");
	set_sysctl("0", "ipv4/ip_forward");
	cni_check(link_move(&route, host, visit.home), "move %s to the host", host);
	leave(&visit);
}

static void set_up_host(const char *host, struct in_addr address)
{
	struct rtnl route RTNL_SCOPE = open_route();
	set_sysctl("0", "ipv6/conf/%s/accept_ra", host);
	set_sysctl("1", "ipv4/conf/%s/route_localnet", host);
	set_sysctl("0", "ipv4/neigh/%s/proxy_delay", host);
	set_sysctl("1", "ipv4/conf/%s/proxy_arp", host);
	set_sysctl("1", "ipv4/conf/%s/forwarding", host);
	cni_check(link_query(&route, host), "find %s", host);
	cni_check(link_up(&route, host), "bring %s up", host);
	cni_check(link_query(&route, host), "find %s", host);
	cni_check(rtnl_route_host(&route, link_index(host), rtnl_ip4(address), NULL),
		  "add the route to %s", host);
}

static void write_endpoint(const struct call *call, struct etcd *etcd, const char *host,
			   struct in_addr address)
{
	char text[INET_ADDRSTRLEN], node[64];
	char *key FREE_SCOPE = endpoint_key(call);
	char *value FREE_SCOPE = text_of(
		"{\"kind\":\"WorkloadEndpoint\",\"apiVersion\":\"projectcalico.org/v3\",\"metadata\":"
		"{\"name\":\"%s\",\"namespace\":\"default\",\"labels\":{\"projectcalico.org/namespace\":"
		"\"default\",\"projectcalico.org/orchestrator\":\"cni\"}},\"spec\":{\"orchestrator\":"
		"\"cni\",\"node\":\"%s\",\"containerID\":\"%s\",\"endpoint\":\"%s\",\"ipNetworks\":"
		"[\"%s/32\"],\"profiles\":[\"%s\"],\"interfaceName\":\"%s\",\"mac\":"
		"\"ee:ee:ee:ee:ee:ee\"}}",
		strrchr(key, '/') + 1,
		conf_string(call, "nodename", node, sizeof node, "localhost"), call->container,
		call->interface, inet_ntop(AF_INET, &address, text, sizeof text), call->name, host);
	if (!etcd_set(etcd, key, value, 0))
		cni_fail("resource already exists: %s", key);
}

static void ensure_profile(const struct call *call, struct etcd *etcd)
{
	char *key FREE_SCOPE = text_of(RESOURCES "profiles/%s", call->name);
	scoped_pairs stored = etcd_get(etcd, key);
	char *value FREE_SCOPE = text_of(
		"{\"kind\":\"Profile\",\"apiVersion\":\"projectcalico.org/v3\",\"metadata\":{\"name\":"
		"\"%s\"},\"spec\":{\"ingress\":[{\"action\":\"Allow\",\"source\":{\"selector\":"
		"\"has(%s)\"}}],\"egress\":[{\"action\":\"Allow\"}],\"labelsToApply\":{\"%s\":\"\"}}}",
		call->name, call->name, call->name);
	if (!stored.count)
		etcd_set(etcd, key, value, 0); /* or another pod's plugin just has */
}

static void add(const struct call *call)
{
	char host[IFNAMSIZ];
	snprintf(host, sizeof host, "cali%.11s", call->container);
	struct etcd *etcd = open_ready(call);
	char *key FREE_SCOPE = endpoint_key(call);
	*strrchr(key, '-') = 0;
	char *mine FREE_SCOPE = text_of("%s-", key);
	scoped_pairs before = etcd_get_all(etcd, mine);
	if (before.count)
		cni_fail("the pod has an endpoint already: %s", before.all[0].key);
	struct in_addr address = allocate(call);
	make_pair(call, host, address);
	set_up_host(host, address);
	write_endpoint(call, etcd, host, address);
	ensure_profile(call, etcd);
	say_result(call, host, address, 32, "");
}

static void del(const struct call *call)
{
	char type[64];
	struct etcd *etcd = open_ready(call);
	char *key FREE_SCOPE = endpoint_key(call);
	char *answer FREE_SCOPE = delegate(address_plugin(call, type, sizeof type), call->conf);
	scoped_pairs stored = etcd_get(etcd, key);
	if (stored.count)
		etcd_delete(etcd, key, stored.all[0].revision);
	delete_interface(call);
}

const struct plugin plugin = {add, del};
