/* Empties an instance's /tmp, however deep it is. */
#include "wasm_module.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void close_directory(DIR **directory)
{
	if (*directory)
		closedir(*directory);
}

static DIR *open_directory(int at, const char *name)
{
	int descriptor = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *directory = descriptor < 0 ? NULL : fdopendir(descriptor);
	if (descriptor >= 0 && !directory)
		close(descriptor);
	return directory;
}

/* Moves a directory that is not empty to the top, under a name that is free there or empty. */
static int lift(int from, const char *name, int top)
{
	static _Thread_local unsigned serial;
	char fresh[32];
	do
		snprintf(fresh, sizeof fresh, "%u", serial++);
	while (renameat(from, name, top, fresh) &&
	       (errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR));
	return faccessat(from, name, F_OK, AT_SYMLINK_NOFOLLOW) ? 0 : -EEXIST;
}

/* Returns 0, 1 if the entry is a directory that is not empty, or a negative errno. */
static int remove_entry(int at, const char *name)
{
	if (!unlinkat(at, name, 0))
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return -errno;
	if (!unlinkat(at, name, AT_REMOVEDIR))
		return 0;
	return errno == ENOTEMPTY ? 1 : -errno;
}

static bool is_dots(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..");
}

/* Empties one directory below the top; what is deeper comes to the top. */
static int flatten(int top, const char *name)
{
	__attribute__((cleanup(close_directory))) DIR *directory = open_directory(top, name);
	if (!directory)
		return -errno;
	for (struct dirent *entry; errno = 0, (entry = readdir(directory));) {
		if (is_dots(entry->d_name))
			continue;
		int error = remove_entry(dirfd(directory), entry->d_name);
		if (error > 0)
			error = lift(dirfd(directory), entry->d_name, top);
		if (error)
			return error;
	}
	return -errno;
}

int wasm_empty_directory(const char *path)
{
	__attribute__((cleanup(close_directory))) DIR *directory = open_directory(AT_FDCWD, path);
	if (!directory)
		return -errno;
	for (bool again = true; again;) {
		again = false;
		rewinddir(directory);
		for (struct dirent *entry; errno = 0, (entry = readdir(directory));) {
			if (is_dots(entry->d_name))
				continue;
			int error = remove_entry(dirfd(directory), entry->d_name);
			again |= error > 0;
			if (error > 0)
				error = flatten(dirfd(directory), entry->d_name);
			if (error)
				return error;
		}
		if (errno)
			return -errno;
	}
	return 0;
}
