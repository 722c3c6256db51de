/* The link requests that the products' plugins make, by a link's name. Functions return 0 or a negative
 * errno. */
#ifndef FIRSTLIGHT_PROFILE_LINK_H
#define FIRSTLIGHT_PROFILE_LINK_H

#include "common/rtnl.h"

/* The index of a link in the calling namespace; 0 if there is none. */
int link_index(const char *name);

int link_add_veth(struct rtnl *route, const char *name, const char *peer);
int link_move(struct rtnl *route, const char *name, int namespace);
int link_up(struct rtnl *route, const char *name);
/* Asks for all that the kernel knows of a link; -ENODEV if there is none. */
int link_query(struct rtnl *route, const char *name);
int link_set_mtu(struct rtnl *route, const char *name, unsigned mtu);
int link_set_mac(struct rtnl *route, const char *name, const unsigned char mac[6]);
int link_rename(struct rtnl *route, const char *name, const char *to);
/* Make it a port of the bridge of that index, and let the bridge send back what came from it. */
int link_set_master(struct rtnl *route, const char *name, int bridge);
int link_set_hairpin(struct rtnl *route, const char *name);
int link_delete(struct rtnl *route, const char *name);
int link_add_address(struct rtnl *route, const char *name, struct in_addr address, uint8_t prefix);

#endif
