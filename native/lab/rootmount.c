/* Mounts the root file system of a bundle, then becomes the command that starts it.
 *
 *   rootmount TECHNIQUE LOWER TARGET SCRATCH COMMAND…
 *
 * TECHNIQUE  LOWER      what TARGET shows
 * bind       a tree     the tree itself
 * overlay    a tree     the tree below an upper directory in SCRATCH
 * tmpfs      a tree     a copy of the tree in memory
 * squashfs   an image   the image, by a loop device of its own
 * erofs      an image   the image, by a loop device of its own
 *
 * It mounts in a mount namespace of its own, so the mount, and with it the loop device, goes with
 * the command's last process, however that ends. A failure is the line
 * "firstlight error TEXT" on standard output, with exit status 1.
 *
 * It is C because all of it lies inside a timed start.
 */
#include "common/cleanup.h"
#include "common/error.h"

#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <linux/loop.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

enum { LOOP_MAJOR = 7, LOOP_TRIES = 1000, COPY_FILES = 64 };

struct root {
	const char *technique, *lower, *target, *scratch;
	struct error error;
};

static int mount_bind(struct root *root)
{
	if (!mount(root->lower, root->target, NULL, MS_BIND | MS_REC, NULL))
		return 0;
	return error_set(&root->error, errno, "cannot bind %s on %s", root->lower, root->target);
}

static int mount_overlay(struct root *root)
{
	char upper[4096], work[4096], options[12400];
	snprintf(upper, sizeof upper, "%s/upper", root->scratch);
	snprintf(work, sizeof work, "%s/work", root->scratch);
	const char *made[] = {root->scratch, upper, work};
	for (size_t i = 0; i < sizeof made / sizeof *made; i++)
		if (mkdir(made[i], 0755) && errno != EEXIST)
			return error_set(&root->error, errno, "cannot make the directory %s",
					 made[i]);
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", root->lower, upper,
		 work);
	if (!mount("overlay", root->target, "overlay", 0, options))
		return 0;
	return error_set(&root->error, errno, "cannot mount an overlay of %s on %s", root->lower,
			 root->target);
}

/* What nftw walks through, which hands nothing on. */
static struct {
	struct root *root;
	size_t lower; /* length of its path */
} copied;

static int copy_file(const char *from, const char *to, off_t size, struct error *error)
{
	int source FILE_SCOPE = open(from, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	int copy FILE_SCOPE = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (source < 0 || copy < 0)
		return error_set(error, errno, "cannot open %s for its copy", from);
	while (size > 0) {
		ssize_t part = sendfile(copy, source, NULL, (size_t)size);
		if (part == 0)
			break; /* it was cut short meanwhile */
		if (part < 0)
			return error_set(error, errno, "cannot copy %s", from);
		size -= part;
	}
	return 0;
}

static int copy_link(const char *from, const char *to, struct error *error)
{
	char text[PATH_MAX];
	ssize_t length = readlink(from, text, sizeof text - 1);
	text[length < 0 ? 0 : length] = 0;
	if (length < 0 || symlink(text, to))
		return error_set(error, errno, "cannot copy the link %s", from);
	return 0;
}

static int copy_entry(const char *from, const struct stat *status, int type, struct FTW *at)
{
	struct error *error = &copied.root->error;
	char to[PATH_MAX];
	int bad = 0;
	if (snprintf(to, sizeof to, "%s%s", copied.root->target, from + copied.lower) >= PATH_MAX)
		return error_set(error, ENAMETOOLONG, "cannot copy %s", from);
	if (type == FTW_DNR || type == FTW_NS)
		return error_set(error, errno, "cannot read %s", from);
	if (S_ISREG(status->st_mode))
		bad = copy_file(from, to, status->st_size, error);
	else if (S_ISLNK(status->st_mode))
		bad = copy_link(from, to, error);
	else if (S_ISDIR(status->st_mode) ? at->level && mkdir(to, 0700)
					  : mknod(to, status->st_mode, status->st_rdev))
		bad = error_set(error, errno, "cannot make %s", to);
	if (!bad && at->level && lchown(to, status->st_uid, status->st_gid))
		bad = error_set(error, errno, "cannot give %s its owner", to);
	if (!bad && at->level && !S_ISLNK(status->st_mode) && chmod(to, status->st_mode & 07777))
		bad = error_set(error, errno, "cannot give %s its mode", to);
	return bad;
}

static int mount_tmpfs(struct root *root)
{
	if (mount("tmpfs", root->target, "tmpfs", 0, "mode=0755"))
		return error_set(&root->error, errno, "cannot mount a tmpfs on %s", root->target);
	copied.root = root;
	copied.lower = strlen(root->lower);
	if (nftw(root->lower, copy_entry, COPY_FILES, FTW_PHYS) && !root->error.code)
		return error_set(&root->error, errno, "cannot open %s", root->lower);
	return -root->error.code;
}

static int open_loop(int number, char *path, size_t size)
{
	snprintf(path, size, "/dev/loop%d", number);
	int loop = open(path, O_RDONLY | O_CLOEXEC);
	if (loop >= 0 || errno != ENOENT)
		return loop < 0 ? -errno : loop;
	dev_t device = makedev(LOOP_MAJOR, (unsigned)number); /* no devtmpfs on /dev */
	if (mknod(path, S_IFBLK | 0600, device) && errno != EEXIST)
		return -errno;
	loop = open(path, O_RDONLY | O_CLOEXEC);
	return loop < 0 ? -errno : loop;
}

/* A loop device that shows the image until its last user is gone. */
static int attach(struct root *root, char *path, size_t size)
{
	int file FILE_SCOPE = open(root->lower, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return error_set(&root->error, errno, "cannot open %s", root->lower);
	int control FILE_SCOPE = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		return error_set(&root->error, errno, "cannot open /dev/loop-control");
	const struct loop_config config = {
		.fd = (unsigned)file,
		.info = {.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR},
	};
	for (int tries = 0; tries < LOOP_TRIES; tries++) {
		int number = ioctl(control, LOOP_CTL_GET_FREE);
		if (number < 0)
			return error_set(&root->error, errno, "cannot get a free loop device");
		int loop = open_loop(number, path, size);
		if (loop >= 0 && !ioctl(loop, LOOP_CONFIGURE, &config))
			return loop;
		int wrong = loop < 0 ? -loop : errno;
		if (loop >= 0)
			close(loop);
		if (wrong != EBUSY && wrong != ENXIO) /* another start was quicker */
			return error_set(&root->error, wrong, "cannot show %s by %s", root->lower,
					 path);
	}
	return error_set(&root->error, EBUSY, "cannot get a loop device for %s in %d tries",
			 root->lower, LOOP_TRIES);
}

static int mount_image(struct root *root)
{
	char path[32];
	int loop FILE_SCOPE = attach(root, path, sizeof path); /* then the mount holds the device */
	if (loop < 0)
		return loop;
	if (!mount(path, root->target, root->technique, MS_RDONLY, NULL))
		return 0;
	return error_set(&root->error, errno, "cannot mount %s (%s) on %s", root->lower, path,
			 root->target);
}

static const struct {
	const char *name;
	int (*mount)(struct root *);
} techniques[] = {
	{"bind", mount_bind},      {"overlay", mount_overlay}, {"tmpfs", mount_tmpfs},
	{"squashfs", mount_image}, {"erofs", mount_image},
};

static int mount_root(struct root *root)
{
	if (unshare(CLONE_NEWNS))
		return error_set(&root->error, errno, "cannot create a mount namespace");
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return error_set(&root->error, errno, "cannot make the mounts private");
	for (size_t i = 0; i < sizeof techniques / sizeof *techniques; i++)
		if (!strcmp(techniques[i].name, root->technique))
			return techniques[i].mount(root);
	return error_set(&root->error, 0,
			 "cannot mount by %s; valid: bind, overlay, tmpfs, squashfs, erofs",
			 root->technique);
}

int main(int argc, char **argv)
{
	struct root root = {0};
	if (argc < 6) {
		fputs("usage: rootmount TECHNIQUE LOWER TARGET SCRATCH COMMAND...\n", stderr);
		return 2;
	}
	root.technique = argv[1];
	root.lower = argv[2];
	root.target = argv[3];
	root.scratch = argv[4];
	if (!mount_root(&root)) {
		execvp(argv[5], argv + 5);
		error_set(&root.error, errno, "cannot execute %s", argv[5]);
	}
	error_print(&root.error);
	return 1;
}
