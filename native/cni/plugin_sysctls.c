/* The sysctls that CRI-O has set in the namespace that is replaced. */
#include "cni/plugin.h"
#include "common/cleanup.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NET "/netns/"

enum { VALUE_MOST = 4096 };

/* Whether pinns has made it: beside DIRECTORY/netns/NAME is DIRECTORY/utsns/NAME. */
static bool is_pinned(const char *path)
{
	char beside[PATH_MAX];
	const char *name = strrchr(path, '/');
	ptrdiff_t length = name ? name + 1 - path - (ptrdiff_t)strlen(NET) : -1;
	if (length < 0 || strncmp(path + length, NET, strlen(NET)) != 0)
		return false;
	snprintf(beside, sizeof beside, "%.*s/utsns%s", (int)length, path, name);
	return !access(beside, F_OK);
}

/* Empty where it cannot be read. */
static void get(const char *path, char *value)
{
	int file FILE_SCOPE = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = file < 0 ? -1 : read(file, value, VALUE_MOST - 1);
	value[size > 0 ? size : 0] = 0;
}

/* Path and value of each file below a directory, with their NULs; not those of interfaces and
 * neighbours, which are most. */
static void list(const char *directory, FILE *to)
{
	char path[PATH_MAX], value[VALUE_MOST];
	const struct dirent *entry;
	DIR *entries = opendir(directory);
	while (entries && (entry = readdir(entries))) {
		const char *name = entry->d_name;
		snprintf(path, sizeof path, "%s/%s", directory, name);
		if (entry->d_type == DT_REG) {
			get(path, value);
			fprintf(to, "%s%c%s%c", path, 0, value, 0);
		} else if (*name != '.' && strcmp(name, "neigh") != 0 && strcmp(name, "lo") != 0) {
			list(path, to);
		}
	}
	if (entries)
		closedir(entries);
}

static int set(struct call *call, const char *path, const char *value)
{
	char old[VALUE_MOST];
	get(path, old);
	if (!*value || !*old || !strcmp(old, value))
		return 0;
	int file FILE_SCOPE = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0 && errno == EACCES)
		return 0; /* the kernel computes it */
	if (file < 0 || write(file, value, strlen(value)) < 0)
		return CALL_FAIL(call, CALL_NAMESPACE, errno, "cannot set %s as in CNI_NETNS %s",
				 path, call->namespace);
	return 0;
}

int call_carry(struct call *call, int prepared)
{
	char *text = NULL;
	size_t size = 0;
	int bad = 0;
	if (!is_pinned(call->namespace))
		return 0;
	FILE *found = open_memstream(&text, &size);
	if (found)
		list("/proc/sys/net", found);
	if (!found || fclose(found))
		bad = CALL_FAIL(call, CALL_NAMESPACE, errno, "cannot read the sysctls of %s",
				call->namespace);
	if (!bad && setns(prepared, CLONE_NEWNET))
		bad = CALL_FAIL(call, CALL_NAMESPACE, errno, "cannot enter the prepared namespace");
	for (const char *path = text; !bad && path < text + size;) {
		const char *value = path + strlen(path) + 1;
		bad = set(call, path, value);
		path = value + strlen(value) + 1;
	}
	free(text);
	return bad;
}
