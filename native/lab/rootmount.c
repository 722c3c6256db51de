/* Mounts the root file system of a bundle, then becomes the command that starts it.
 *
 *   rootmount TECHNIQUE LOWER TARGET [SCRATCH] -- COMMAND…
 *
 * TECHNIQUE  LOWER      what TARGET shows
 * bind       a tree     the tree itself
 * overlay    a tree     the tree below an upper directory in SCRATCH
 * tmpfs      a tree     a copy of the tree in memory
 * squashfs   an image   the image, by a loop device of its own
 * erofs      an image   the image, by a loop device of its own
 *
 * It mounts in a mount namespace of its own, so that the mount, and with it the loop device, is
 * gone with the last process of the command, however that ended. A failure is said as
 * "firstlight error TEXT" on standard output, with exit status 1.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { LOOP_MAJOR = 7, LOOP_TRIES = 1000 };

struct root {
	const char *technique, *lower, *target, *scratch;
};

__attribute__((format(printf, 1, 2))) _Noreturn static void die(const char *format, ...)
{
	int error = errno;
	va_list arguments;
	va_start(arguments, format);
	printf("firstlight error cannot ");
	vprintf(format, arguments);
	va_end(arguments);
	if (error)
		printf(": %s (errno %d)", strerror(error), error);
	printf("\n");
	exit(1);
}

static void close_file(int *file)
{
	if (*file >= 0)
		close(*file);
}

static void close_directory(DIR **directory)
{
	if (*directory)
		closedir(*directory);
}

#define FILE_SCOPE __attribute__((cleanup(close_file)))
#define DIRECTORY_SCOPE __attribute__((cleanup(close_directory)))

static void mount_bind(const struct root *root)
{
	if (mount(root->lower, root->target, NULL, MS_BIND | MS_REC, NULL) < 0)
		die("bind %s on %s", root->lower, root->target);
}

static void make_directory(const char *path)
{
	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		die("make the directory %s", path);
}

static void mount_overlay(const struct root *root)
{
	char upper[4096], work[4096], options[12400];
	snprintf(upper, sizeof upper, "%s/upper", root->scratch);
	snprintf(work, sizeof work, "%s/work", root->scratch);
	make_directory(root->scratch);
	make_directory(upper);
	make_directory(work);
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", root->lower, upper,
		work);
	if (mount("overlay", root->target, "overlay", 0, options) < 0)
		die("mount an overlay of %s on %s", root->lower, root->target);
}

static void copy_file(int from, int to, const char *name, const struct stat *status)
{
	int source FILE_SCOPE = openat(from, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	int copy FILE_SCOPE = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (source < 0 || copy < 0)
		die("open %s for its copy", name);
	for (off_t left = status->st_size; left > 0;) {
		ssize_t copied = sendfile(copy, source, NULL, (size_t)left);
		if (copied == 0)
			break; /* it was cut short meanwhile */
		if (copied < 0)
			die("copy %s", name);
		left -= copied;
	}
}

static void copy_link(int from, int to, const char *name)
{
	char text[4096];
	ssize_t length = readlinkat(from, name, text, sizeof text - 1);
	if (length < 0)
		die("read the link %s", name);
	text[length] = '\0';
	if (symlinkat(text, to, name) < 0)
		die("make the link %s", name);
}

static void copy_tree(int from, int to);

static void copy_directory(int from, int to, const char *name)
{
	if (mkdirat(to, name, 0700) < 0)
		die("make the directory %s", name);
	int source FILE_SCOPE = openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int copy FILE_SCOPE = openat(to, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (source < 0 || copy < 0)
		die("open the directory %s", name);
	copy_tree(source, copy);
}

static void copy_entry(int from, int to, const char *name)
{
	struct stat status;
	if (fstatat(from, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
		die("see what %s is", name);
	if (S_ISREG(status.st_mode))
		copy_file(from, to, name, &status);
	else if (S_ISDIR(status.st_mode))
		copy_directory(from, to, name);
	else if (S_ISLNK(status.st_mode))
		copy_link(from, to, name);
	else if (mknodat(to, name, status.st_mode, status.st_rdev) < 0)
		die("make the node %s", name);
	if (fchownat(to, name, status.st_uid, status.st_gid, AT_SYMLINK_NOFOLLOW) < 0)
		die("give %s its owner", name);
	if (!S_ISLNK(status.st_mode) && fchmodat(to, name, status.st_mode & 07777, 0) < 0)
		die("give %s its mode", name);
}

static void copy_tree(int from, int to)
{
	int listed = dup(from);
	DIR *directory DIRECTORY_SCOPE = listed < 0 ? NULL : fdopendir(listed);
	if (!directory)
		die("list a directory");
	for (;;) {
		errno = 0;
		const struct dirent *entry = readdir(directory);
		if (!entry && errno)
			die("list a directory");
		if (!entry)
			return;
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			copy_entry(from, to, entry->d_name);
	}
}

static void mount_tmpfs(const struct root *root)
{
	int from FILE_SCOPE = open(root->lower, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (from < 0)
		die("open %s", root->lower);
	if (mount("tmpfs", root->target, "tmpfs", 0, "mode=0755") < 0)
		die("mount a tmpfs on %s", root->target);
	int to FILE_SCOPE = open(root->target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (to < 0)
		die("open %s", root->target);
	copy_tree(from, to);
}

static int open_loop(int number, char *path, size_t size)
{
	snprintf(path, size, "/dev/loop%d", number);
	int loop = open(path, O_RDONLY | O_CLOEXEC);
	if (loop >= 0 || errno != ENOENT)
		return loop;
	dev_t device = makedev(LOOP_MAJOR, (unsigned)number); /* no devtmpfs on /dev */
	if (mknod(path, S_IFBLK | 0600, device) < 0 && errno != EEXIST)
		die("make the node %s", path);
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* A loop device that shows the image until its last user is gone. */
static int attach(const char *image, char *path, size_t size)
{
	int file FILE_SCOPE = open(image, O_RDONLY | O_CLOEXEC);
	int control FILE_SCOPE = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (file < 0)
		die("open %s", image);
	if (control < 0)
		die("open /dev/loop-control");
	const struct loop_config config = {
		.fd = (unsigned)file,
		.info = {.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR},
	};
	for (int tries = 0; tries < LOOP_TRIES; tries++) {
		int number = ioctl(control, LOOP_CTL_GET_FREE);
		if (number < 0)
			die("get a free loop device");
		int loop = open_loop(number, path, size);
		if (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &config) == 0)
			return loop;
		int error = errno;
		close_file(&loop);
		errno = error;
		if (error != EBUSY && error != ENXIO) /* another start was quicker */
			die("show %s by %s", image, path);
	}
	die("get a loop device for %s in %d tries", image, LOOP_TRIES);
}

static void mount_image(const struct root *root)
{
	char path[32];
	int loop = attach(root->lower, path, sizeof path);
	if (mount(path, root->target, root->technique, MS_RDONLY, NULL) < 0)
		die("mount %s (%s) on %s", root->lower, path, root->target);
	close(loop); /* the mount holds the device from here on */
}

static const struct technique {
	const char *name;
	void (*mount)(const struct root *);
} techniques[] = {
	{"bind", mount_bind},
	{"overlay", mount_overlay},
	{"tmpfs", mount_tmpfs},
	{"squashfs", mount_image},
	{"erofs", mount_image},
};

static void mount_root(const struct root *root)
{
	for (size_t i = 0; i < sizeof techniques / sizeof *techniques; i++)
		if (strcmp(techniques[i].name, root->technique) == 0) {
			techniques[i].mount(root);
			return;
		}
	errno = 0;
	die("mount by %s; valid: bind, overlay, tmpfs, squashfs, erofs", root->technique);
}

static char **read_arguments(struct root *root, int argc, char **argv)
{
	int dashes = 1;
	while (dashes < argc && strcmp(argv[dashes], "--") != 0)
		dashes++;
	errno = 0;
	if (dashes < 4 || dashes > 5 || dashes + 1 >= argc)
		die("read the arguments; usage: rootmount TECHNIQUE LOWER TARGET [SCRATCH] -- COMMAND…");
	*root = (struct root){argv[1], argv[2], argv[3], dashes == 5 ? argv[4] : NULL};
	if (strcmp(root->technique, "overlay") == 0 && !root->scratch)
		die("mount an overlay without SCRATCH");
	return argv + dashes + 1;
}

int main(int argc, char **argv)
{
	struct root root;
	char **command = read_arguments(&root, argc, argv);
	if (unshare(CLONE_NEWNS) < 0)
		die("create a mount namespace");
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		die("make the mounts private");
	mount_root(&root);
	execvp(command[0], command);
	die("execute %s", command[0]);
}
