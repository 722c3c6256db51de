/* A template is a mount namespace that a function's instances are copies of: its root is the
 * function's tree, read-only, with a /dev; /proc and /tmp are mounted by each instance. */
#include "spawner.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static const struct {
	const char *path;
	unsigned minor;
} devices[] = {
	{"dev/null", 3}, {"dev/zero", 5}, {"dev/full", 7}, {"dev/random", 8}, {"dev/urandom", 9}};

static const struct {
	const char *path, *target;
} links[] = {{"dev/fd", "/proc/self/fd"},
	     {"dev/stdin", "/proc/self/fd/0"},
	     {"dev/stdout", "/proc/self/fd/1"},
	     {"dev/stderr", "/proc/self/fd/2"},
	     {"dev/shm", "/tmp"}};

static int make_devices(void)
{
	mode_t before = umask(0);
	if (mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=64k,nr_inodes=32,mode=755"))
		return -1;
	for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
		if (mknod(devices[i].path, S_IFCHR | 0666, makedev(1, devices[i].minor)))
			return -1;
	for (size_t i = 0; i < sizeof links / sizeof *links; i++)
		if (symlink(links[i].target, links[i].path))
			return -1;
	if (mkdir("dev/.empty", 0555))
		return -1;
	umask(before);
	return mount(NULL, "dev", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL);
}

int template_make(int tree)
{
	struct mount_attr attributes = {
		.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
		.propagation = MS_PRIVATE,
	};
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return -1;
	if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes,
		    sizeof attributes))
		return -1;
	if (syscall(SYS_move_mount, tree, "", AT_FDCWD, "/root", MOVE_MOUNT_F_EMPTY_PATH))
		return -1;
	if (chdir("/root") || make_devices())
		return -1;
	if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH))
		return -1;
	return chdir("/");
}
