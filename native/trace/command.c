#include "trace/command.h"

#include "common/cleanup.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

enum { DOCUMENT_MAX = 1 << 20 };
/* The bundle's config.json, and Docker's own record of the container. */
enum document { CONFIG, RECORD };

struct words {
	const char *at, *end;
};

/* A BEGIN event's arguments and environment are below its file's name. */
static struct words arguments_of(const struct event *event)
{
	const char *at = (const char *)(event + 1) + FILE_MAX;
	return (struct words){at, at + event->args[0]};
}

static struct words environment_of(const struct event *event)
{
	const char *at = (const char *)(event + 1) + FILE_MAX + WORDS_MAX;
	return (struct words){at, at + event->args[1]};
}

/* The next word; NULL at the end, or where it is cut off. */
static const char *next_word(struct words *words)
{
	const char *word = words->at;
	size_t length = strnlen(word, (size_t)(words->end - word));
	if (word + length >= words->end)
		return NULL;
	words->at = word + length + 1;
	return word;
}

const char *command_bundle(const struct event *event)
{
	struct words words = arguments_of(event);
	for (const char *word; (word = next_word(&words));) {
		if (!strncmp(word, "--bundle=", 9))
			return word + 9;
		if (!strcmp(word, "--bundle") || !strcmp(word, "-b")) {
			word = next_word(&words);
			return word ? word : ".";
		}
	}
	return ".";
}

/* The arguments of programs that may start a container: runtimes and shims, clients, conmon. */
static const char *const starting[] = {"create", "run", "start", "restore", "restart", "play",
				       "build",  "bud", "init",  "up",      "-b",      "--bundle"};

/* Most commands of a runtime start nothing: they query states, or execute probes. */
int command_is_of_start(const struct event *event)
{
	struct words words = arguments_of(event), variables = environment_of(event);
	const char *word;
	while ((word = next_word(&words)))
		for (size_t i = 0; i < sizeof starting / sizeof *starting; i++)
			if (!strcmp(word, starting[i]))
				return 1;
	while ((word = next_word(&variables)))
		if (!strcmp(word, "CNI_COMMAND=ADD"))
			return 1;
	return 0;
}

int command_is_create(const struct event *event)
{
	struct words words = arguments_of(event);
	for (const char *word; (word = next_word(&words));)
		if (!strcmp(word, "create"))
			return 1;
	return 0;
}

/* Hands over a file that lasts no longer than its container. Any caller of a program with a
 * watched name chooses it, so it is read without waiting, and only if it is a regular file.
 * Returns its text, which the caller frees, or NULL. */
static char *take_document(const struct event *event, enum document kind, const char *path,
			   FILE *to, size_t *taken)
{
	struct stat about;
	int file FILE_SCOPE = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (file < 0 || fstat(file, &about) || !S_ISREG(about.st_mode) ||
	    about.st_size > DOCUMENT_MAX)
		return NULL;
	char *text = calloc((size_t)about.st_size + 1, 1);
	ssize_t size = text ? pread(file, text, (size_t)about.st_size, 0) : -1;
	if (size <= 0) {
		free(text);
		return NULL;
	}
	unsigned int head[] = {event->tid, kind, (unsigned int)size};
	fwrite_unlocked(head, sizeof head, 1, to);
	fwrite_unlocked(text, 1, (size_t)size, to);
	*taken += sizeof head + (size_t)size;
	return text;
}

/* The directory of Docker's own record of a container, which its /etc/hostname is mounted from, and its
 * length; NULL if it is another engine's. */
static const char *record_of(const char *config, int *length)
{
	static const char name[] = "/hostname\"", parent[] = "/containers/";
	for (const char *end = config; (end = strstr(end, name)); end++) {
		const char *start = memrchr(config, '"', (size_t)(end - config));
		if (start && start[1] == '/' &&
		    memmem(start, (size_t)(end - start), parent, strlen(parent))) {
			*length = (int)(end - start - 1);
			return start + 1;
		}
	}
	return NULL;
}

size_t command_take_documents(const struct event *event, FILE *to)
{
	size_t taken = 0;
	const char *bundle = command_bundle(event);
	char path[PATH_MAX];
	int length = 0;
	snprintf(path, sizeof path, "/proc/%u/%s/%s/config.json", event->tid,
		 *bundle == '/' ? "root" : "cwd", bundle);
	char *config FREE_SCOPE = take_document(event, CONFIG, path, to, &taken);
	const char *directory = config ? record_of(config, &length) : NULL;
	if (!directory)
		return taken;
	snprintf(path, sizeof path, "/proc/%u/root%.*s/config.v2.json", event->tid, length,
		 directory);
	free(take_document(event, RECORD, path, to, &taken));
	return taken;
}
