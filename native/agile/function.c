/* Functions by number, set and forgotten as the manager orders. */
#include "node.h"
#include "root.h"

#include <errno.h>
#include <string.h>

static char resolvers[RESOLVERS_MAX]; /* resolv.conf of functions with an outbound network */

int function_set_resolvers(const char *text, size_t size)
{
	if (size >= sizeof resolvers || memchr(text, 0, size))
		return -EPROTO;
	memcpy(resolvers, text, size);
	resolvers[size] = 0;
	return 0;
}

int function_set(const struct definition *definition, int tree, int words)
{
	if (definition->number >= FUNCTIONS || definition->profile >= PROFILES ||
	    definition->reach >= REACHES || definition->reuse >= REUSES || !definition->version ||
	    memchr(definition->host_name, 0, sizeof definition->host_name) == NULL)
		return -EINVAL;
	struct function *function = &node.functions[definition->number];
	if (function->known && function->definition.version >= definition->version)
		return -ESTALE;
	struct root_text text = {definition->host_name,
				 definition->reach == REACH_OUTBOUND ? resolvers : ""};
	int failed = root_attach(definition->number, definition->version, tree,
				 definition->flags & DEFINITION_VOLUMES, &text);
	if (failed)
		return failed;
	if (function->known) {
		reuse_drop(function);
		root_detach(definition->number, function->definition.version, &function->root);
		descriptor_close(&function->words);
	}
	if ((int)definition->number >= node.function_count)
		node.function_count = (int)definition->number + 1;
	function->definition = *definition;
	function->root = tree;
	function->words = words;
	function->has_hosts = root_has_hosts(tree);
	function->known = true;
	return 0;
}

int function_forget(uint32_t number)
{
	if (number >= FUNCTIONS || !node.functions[number].known)
		return -ENOENT;
	struct function *function = &node.functions[number];
	reuse_drop(function);
	rest_leave((int)number);
	part_give_up(&function->networks);
	root_detach(number, function->definition.version, &function->root);
	descriptor_close(&function->words);
	function->known = false;
	return 0;
}
