#include "root.h"
#include "socket.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct {
	const char *path;
	unsigned minor;
} devices[] = {{"null", 3}, {"zero", 5}, {"full", 7}, {"random", 8}, {"urandom", 9}};

static const struct {
	const char *path, *target;
} links[] = {{"fd", "/proc/self/fd"},
	     {"stdin", "/proc/self/fd/0"},
	     {"stdout", "/proc/self/fd/1"},
	     {"stderr", "/proc/self/fd/2"},
	     {"shm", "/tmp"}};

int root_prune(void)
{
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=1m,mode=700") ||
	    chdir("/tmp") || mkdir("roots", 0700) || mkdir("proc", 0700) ||
	    mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) ||
	    syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		return -errno;
	return 0;
}

static int make_blank(void)
{
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("tmpfs", "/roots", "tmpfs", MS_NOSUID | MS_NOEXEC,
		  "size=64k,nr_inodes=16,mode=755") ||
	    chdir("/roots") || mkdir("proc", 0555) || mkdir("tmp", 0555) || mkdir("empty", 0555) ||
	    mknod("null", S_IFCHR | 0666, makedev(1, 3)) || chmod("null", 0666) ||
	    mount(NULL, "/roots", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL) ||
	    syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		return -errno;
	return 0;
}

/* A child of ours makes it, and we take it from the child. */
int root_blank(void)
{
	int ready[2], status, failed = 0, opened = -1;
	char path[64];
	if (pipe2(ready, O_CLOEXEC))
		return -errno;
	pid_t child = fork();
	if (child < 0)
		failed = -errno;
	if (child == 0) {
		failed = make_blank();
		if (write(ready[1], &failed, sizeof failed) == sizeof failed && !failed)
			pause();
		_exit(0);
	}
	close(ready[1]);
	if (!failed && read(ready[0], &failed, sizeof failed) != sizeof failed)
		failed = -EIO;
	if (!failed) {
		snprintf(path, sizeof path, "/proc/%d/ns/mnt", child);
		opened = open(path, O_RDONLY | O_CLOEXEC);
		failed = opened < 0 ? -errno : 0;
	}
	close(ready[0]);
	if (child > 0) {
		kill(child, SIGKILL);
		while (waitpid(child, &status, 0) < 0 && errno == EINTR)
			;
	}
	return failed ? failed : opened;
}

static int open_point(int tree, const char *name)
{
	struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
			       .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS};
	int opened = (int)syscall(SYS_openat2, tree, name, &how, sizeof how);
	return opened < 0 ? -errno : opened;
}

static int fill_dev(int dev)
{
	mode_t before = umask(0);
	int failed = 0;
	for (size_t i = 0; i < sizeof devices / sizeof *devices && !failed; i++)
		failed =
			mknodat(dev, devices[i].path, S_IFCHR | 0666, makedev(1, devices[i].minor));
	for (size_t i = 0; i < sizeof links / sizeof *links && !failed; i++)
		failed = symlinkat(links[i].target, dev, links[i].path);
	int error = errno;
	umask(before);
	return failed ? -error : 0;
}

/* A detached tmpfs with the devices. Not shared between functions: a lock on one reaches as far as
 * its inode does. */
static int make_dev(void)
{
	struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
	int context DESCRIPTOR_SCOPE = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);
	if (context < 0 || syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "size", "64k", 0) ||
	    syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "nr_inodes", "32", 0) ||
	    syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "mode", "755", 0) ||
	    syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		return -errno;
	int dev DESCRIPTOR_SCOPE = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC,
						MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
	if (dev < 0)
		return -errno;
	int failed = fill_dev(dev);
	if (failed)
		return failed;
	if (syscall(SYS_mount_setattr, dev, "", AT_EMPTY_PATH, &read_only, sizeof read_only))
		return -errno;
	int made = dev;
	dev = -1;
	return made;
}

static int attach(int tree, const char *path)
{
	struct mount_attr attributes = {
		.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
		.propagation = MS_PRIVATE,
	};
	if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes,
		    sizeof attributes))
		return -errno;
	if (syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH))
		return -errno;
	int dev DESCRIPTOR_SCOPE = make_dev();
	int proc DESCRIPTOR_SCOPE = dev < 0 ? dev : open_point(tree, "proc");
	int tmp DESCRIPTOR_SCOPE = proc < 0 ? proc : open_point(tree, "tmp");
	int point DESCRIPTOR_SCOPE = tmp < 0 ? tmp : open_point(tree, "dev");
	if (point < 0)
		return point;
	if (syscall(SYS_move_mount, dev, "", point, "",
		    MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH))
		return -errno;
	return 0;
}

static void name(char *path, size_t size, unsigned number, unsigned version)
{
	snprintf(path, size, "/roots/%u.%u", number, version);
}

int root_attach(unsigned number, unsigned version, int tree)
{
	char path[48];
	name(path, sizeof path, number, version);
	if (mkdir(path, 0700))
		return -errno;
	int failed = attach(tree, path);
	if (!failed)
		return fcntl(tree, F_DUPFD_CLOEXEC, 3);
	umount2(path, MNT_DETACH);
	rmdir(path);
	return failed;
}

int root_clone(int root)
{
	int opened =
		(int)syscall(SYS_open_tree, root, "",
			     OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE);
	return opened < 0 ? -errno : opened;
}

void root_detach(unsigned number, unsigned version, int *root)
{
	char path[48];
	if (*root < 0)
		return;
	descriptor_close(root);
	name(path, sizeof path, number, version);
	umount2(path, MNT_DETACH);
	rmdir(path);
}
