/* Loads an endpoint's eBPF programs and attaches them to its link, as the cilium profile's agent has
 * it done: endpointload OBJECT LINK. Programs whose names the prog array's order has are put there.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static char complaint[512];

static int hush(enum libbpf_print_level level, const char *format, va_list arguments)
{
	if (level == LIBBPF_WARN)
		vsnprintf(complaint, sizeof complaint, format, arguments);
	return 0;
}

static int fail(const char *what, const char *name)
{
	fprintf(stderr, "endpointload: cannot %s %s: %s%s%s\n", what, name, strerror(errno),
		*complaint ? ": " : "", complaint);
	return 1;
}

static void close_object(struct bpf_object **object)
{
	bpf_object__close(*object);
}

static int fill(struct bpf_object *object)
{
	static const char *const order[] = {"arp",           "family",  "egress",    "egress_track",
					    "egress_policy", "service", "translate", "ingress",
					    "ingress_track", "deliver"};
	int calls = bpf_object__find_map_fd_by_name(object, "calls");
	for (unsigned int i = 0; i < sizeof order / sizeof *order; i++) {
		struct bpf_program *program = bpf_object__find_program_by_name(object, order[i]);
		int fd = program ? bpf_program__fd(program) : -1;
		if (fd < 0 || bpf_map_update_elem(calls, &i, &fd, BPF_ANY))
			return fail("put into the prog array the program", order[i]);
	}
	return 0;
}

static int attach(struct bpf_object *object, const char *name, int index,
		  enum bpf_tc_attach_point to)
{
	struct bpf_program *program = bpf_object__find_program_by_name(object, name);
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = index, .attach_point = to);
	LIBBPF_OPTS(bpf_tc_opts, options, .prog_fd = program ? bpf_program__fd(program) : -1,
		    .handle = 1, .priority = 1, .flags = BPF_TC_F_REPLACE);
	int error = bpf_tc_hook_create(&hook);
	if (error && error != -EEXIST)
		return fail("make the clsact of", name);
	return bpf_tc_attach(&hook, &options) ? fail("attach", name) : 0;
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fputs("usage: endpointload OBJECT LINK\n", stderr);
		return 2;
	}
	libbpf_set_print(hush);
	int index = (int)if_nametoindex(argv[2]);
	if (!index)
		return fail("find the link", argv[2]);
	__attribute__((cleanup(close_object))) struct bpf_object *object =
		bpf_object__open_file(argv[1], NULL);
	if (!object || bpf_object__load(object))
		return fail("load", argv[1]);
	return fill(object) || attach(object, "from_container", index, BPF_TC_INGRESS) ||
	       attach(object, "to_container", index, BPF_TC_EGRESS);
}
