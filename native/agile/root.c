#include "root.h"
#include "common/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct {
	const char *path;
	unsigned major, minor;
} devices[] = {{"null", 1, 3},   {"zero", 1, 5},    {"full", 1, 7},
	       {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};

static const struct {
	const char *path, *target;
} links[] = {{"fd", "/proc/self/fd"},
	     {"stdin", "/proc/self/fd/0"},
	     {"stdout", "/proc/self/fd/1"},
	     {"stderr", "/proc/self/fd/2"},
	     {"shm", "/tmp"},
	     {"ptmx", "pts/ptmx"}};

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
	int failed = mkdirat(dev, "pts", 0755);
	for (size_t i = 0; i < sizeof devices / sizeof *devices && !failed; i++)
		failed = mknodat(dev, devices[i].path, S_IFCHR | 0666,
				 makedev(devices[i].major, devices[i].minor));
	for (size_t i = 0; i < sizeof links / sizeof *links && !failed; i++)
		failed = symlinkat(links[i].target, dev, links[i].path);
	int error = errno;
	umask(before);
	return failed ? -error : 0;
}

int root_write(int directory, const char *name, const char *text)
{
	int file FILE_SCOPE =
		openat(directory, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (file < 0 || fchmod(file, 0644))
		return -errno;
	return write(file, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -EIO;
}

static int write_etc(int directory, const struct root_text *text)
{
	char name[80], hosts[256];
	snprintf(name, sizeof name, "%s\n", text->host_name);
	snprintf(hosts, sizeof hosts, ROOT_HOSTS "127.0.1.1\t%s\n", text->host_name);
	int failed = root_write(directory, "hosts", hosts);
	if (!failed)
		failed = root_write(directory, "hostname", name);
	return failed ? failed : root_write(directory, "resolv.conf", text->resolvers);
}

static int fill_own(int own, const struct root_text *text)
{
	if (mkdirat(own, "dev", 0755) || mkdirat(own, "etc", 0755))
		return -errno;
	int dev FILE_SCOPE = openat(own, "dev", O_DIRECTORY | O_CLOEXEC);
	int etc FILE_SCOPE = dev < 0 ? dev : openat(own, "etc", O_DIRECTORY | O_CLOEXEC);
	if (etc < 0)
		return -errno;
	int failed = fill_dev(dev);
	return failed ? failed : write_etc(etc, text);
}

/* A tmpfs with each root's own things: the devices, and files of /etc. Functions do not share it:
 * a lock on a file would reach whoever has the same inode. */
static int make_own(const char *path, const struct root_text *text)
{
	int context FILE_SCOPE = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);
	if (context < 0 || syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "size", "64k", 0) ||
	    syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "nr_inodes", "32", 0) ||
	    syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "mode", "755", 0) ||
	    syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		return -errno;
	int own FILE_SCOPE = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC,
					  MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
	if (own < 0)
		return -errno;
	int failed = fill_own(own, text);
	if (failed)
		return failed;
	if (syscall(SYS_move_mount, own, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH))
		return -errno;
	return descriptor_take(&own);
}

static int bind(int own, const char *name, int point, uint64_t more)
{
	struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY | more};
	int tree FILE_SCOPE =
		(int)syscall(SYS_open_tree, own, name, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (tree < 0 ||
	    syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attributes, sizeof attributes) ||
	    syscall(SYS_move_mount, tree, "", point, "",
		    MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH))
		return -errno;
	return 0;
}

static const char *const etc_files[] = {"hosts", "hostname", "resolv.conf"};
enum { ETC_FILES = sizeof etc_files / sizeof *etc_files };

/* Opens what a root has of that name, even a link: a file can be mounted there. */
static int open_file(int etc, const char *name)
{
	struct stat status;
	int point FILE_SCOPE = openat(etc, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (point < 0 || fstat(point, &status))
		return -errno;
	if (S_ISDIR(status.st_mode))
		return -EISDIR;
	return descriptor_take(&point);
}

static bool lacks_files(int etc)
{
	bool lacks = false;
	for (int i = 0; i < ETC_FILES && !lacks; i++) {
		int point FILE_SCOPE = open_file(etc, etc_files[i]);
		lacks = point < 0;
	}
	return lacks;
}

/* Our files over the whole directory. */
static int lay_over(int own, int etc)
{
	struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID |
						    MOUNT_ATTR_NODEV};
	char layers[80];
	int ours FILE_SCOPE = openat(own, "etc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int context FILE_SCOPE = (int)syscall(SYS_fsopen, "overlay", FSOPEN_CLOEXEC);
	snprintf(layers, sizeof layers, "/proc/self/fd/%d:/proc/self/fd/%d", ours, etc);
	if (ours < 0 || context < 0 ||
	    syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "lowerdir", layers, 0) ||
	    syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		return -errno;
	int laid FILE_SCOPE = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
	if (laid < 0 ||
	    syscall(SYS_mount_setattr, laid, "", AT_EMPTY_PATH, &attributes, sizeof attributes) ||
	    syscall(SYS_move_mount, laid, "", etc, "",
		    MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH))
		return -errno;
	return 0;
}

/* A root without /etc gets none of the files. An /etc that lacks some becomes the lower layer below
 * ours; where the kernel cannot do that, as below two overlays, it gets those that it has a place
 * for. */
static int give_etc(int own, int tree)
{
	struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
			       .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
	int etc FILE_SCOPE = (int)syscall(SYS_openat2, tree, "etc", &how, sizeof how);
	int failed = 0;
	if (etc < 0 || (lacks_files(etc) && !lay_over(own, etc)))
		return 0;
	for (int i = 0; i < ETC_FILES && !failed; i++) {
		char from[32];
		int point FILE_SCOPE = open_file(etc, etc_files[i]);
		snprintf(from, sizeof from, "etc/%s", etc_files[i]);
		failed = point < 0 ? 0 : bind(own, from, point, MOUNT_ATTR_NODEV);
	}
	return failed;
}

/* If the tree has writable mounts, the manager has made the rest of it read-only. */
static int attach(int tree, const char *path, const char *own_path, bool writable,
		  const struct root_text *text)
{
	struct mount_attr attributes = {
		.attr_set =
			(writable ? 0 : MOUNT_ATTR_RDONLY) | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
		.propagation = MS_PRIVATE,
	};
	if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes,
		    sizeof attributes))
		return -errno;
	if (syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH))
		return -errno;
	int own FILE_SCOPE = make_own(own_path, text);
	int proc FILE_SCOPE = own < 0 ? own : open_point(tree, "proc");
	int tmp FILE_SCOPE = proc < 0 ? proc : open_point(tree, "tmp");
	int point FILE_SCOPE = tmp < 0 ? tmp : open_point(tree, "dev");
	if (point < 0)
		return point;
	int failed = bind(own, "dev", point, 0);
	return failed ? failed : give_etc(own, tree);
}

static void name(char *path, size_t size, unsigned number, unsigned version)
{
	snprintf(path, size, "/roots/%u.%u", number, version);
}

int root_attach(unsigned number, unsigned version, int tree, bool writable,
		const struct root_text *text)
{
	char path[48], own[56];
	name(path, sizeof path, number, version);
	snprintf(own, sizeof own, "%s.own", path);
	if (mkdir(path, 0700))
		return -errno;
	int failed = mkdir(own, 0700) ? -errno : attach(tree, path, own, writable, text);
	umount2(own, MNT_DETACH); /* what is bound of it stays */
	rmdir(own);
	if (failed) {
		umount2(path, MNT_DETACH);
		rmdir(path);
	}
	return failed;
}

int root_has_hosts(int root)
{
	struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
			       .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
	int file FILE_SCOPE = (int)syscall(SYS_openat2, root, "etc/hosts", &how, sizeof how);
	struct stat status;
	return file >= 0 && !fstat(file, &status) && S_ISREG(status.st_mode);
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
