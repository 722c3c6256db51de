/* Each network's /etc/hosts: a small file that is prepared with the network, so that a start only
 * mounts it. */
#include "node.h"
#include "root.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int written = -1, shown = -1; /* one directory, by a mount for us and one for instances */

int hosts_open(void)
{
	struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID |
						    MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC};
	char options[64];
	snprintf(options, sizeof options, "size=%dk,nr_inodes=%d,mode=755", 4 * PARTS, PARTS + 16);
	if (mkdir("/hosts", 0700) ||
	    mount("tmpfs", "/hosts", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options))
		return -errno;
	written = open("/hosts", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int clone FILE_SCOPE = (int)syscall(SYS_open_tree, AT_FDCWD, "/hosts",
					    OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (written < 0 || clone < 0 ||
	    syscall(SYS_mount_setattr, clone, "", AT_EMPTY_PATH, &attributes, sizeof attributes) ||
	    syscall(SYS_move_mount, clone, "", AT_FDCWD, "/hosts", MOVE_MOUNT_F_EMPTY_PATH))
		return -errno;
	shown = open("/hosts", O_PATH | O_DIRECTORY | O_CLOEXEC);
	return shown < 0 ? -errno : 0;
}

static void name(char *text, size_t size, int index)
{
	snprintf(text, size, "%d", index);
}

int hosts_write(int index, uint32_t address)
{
	char file[16], text[256], number[INET_ADDRSTRLEN];
	if (!inet_ntop(AF_INET, &address, number, sizeof number))
		return -errno;
	name(file, sizeof file, index);
	snprintf(text, sizeof text, ROOT_HOSTS "%s\tinstance\n", number);
	return root_write(written, file, text);
}

int hosts_clone(int index)
{
	char file[16];
	name(file, sizeof file, index);
	int opened = (int)syscall(SYS_open_tree, shown, file, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	return opened < 0 ? -errno : opened;
}

void hosts_remove(int index)
{
	char file[16];
	name(file, sizeof file, index);
	(void)unlinkat(written, file, 0); /* most parts have none */
}
