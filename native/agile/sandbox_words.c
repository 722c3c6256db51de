/* Arguments and environment of a function and of a start, read by the process that will execute it.
 * Nothing is allocated: the process is a clone. */
#include "sandbox.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FEW_WORDS = 16384 }; /* bytes */

/* Only a child fills it, after its clone: it has no other memory for its words. */
static char *pointers[2 * ARGUMENTS_MAX + 2];
static struct few_words {
	struct words head;
	char strings[FEW_WORDS];
} few_words[2];
static struct iovec mapped[2];
static int mapped_count;

/* A memory file of words, whose content its maker may change. Few words are copied. Many are
 * mapped; if the maker truncates the file then, this child is killed, and no other. */
static int take_words(int file, struct few_words *few, struct words *head, char **strings)
{
	struct stat status;
	ssize_t size = pread(file, few, sizeof *few, 0);
	if (size < (ssize_t)sizeof *head)
		return size < 0 ? -errno : -EPROTO;
	*head = few->head;
	*strings = few->strings;
	if (head->size > WORDS_MAX || head->argc > ARGUMENTS_MAX ||
	    head->envc > ARGUMENTS_MAX - head->argc)
		return -E2BIG;
	if (sizeof *head + head->size <= (size_t)size)
		return 0;
	if (fstat(file, &status) || (uint64_t)status.st_size < sizeof *head + (uint64_t)head->size)
		return -EPROTO;
	void *at =
		mmap(NULL, sizeof *head + head->size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	if (at == MAP_FAILED)
		return -errno;
	mapped[mapped_count].iov_base = at;
	mapped[mapped_count++].iov_len = sizeof *head + head->size;
	*strings = (char *)at + sizeof *head;
	return 0;
}

void sandbox_forget_words(void)
{
	for (; mapped_count; mapped_count--) {
		struct iovec *last = &mapped[mapped_count - 1];
		if (munmap(last->iov_base, last->iov_len))
			_exit(127);
	}
}

/* The next string, or NULL if none ends before the end. */
static char *next_word(char **at, char *end)
{
	char *word = *at, *nul = word < end ? memchr(word, 0, (size_t)(end - word)) : NULL;
	*at = nul ? nul + 1 : end;
	return nul ? word : NULL;
}

static bool same_name(const char *a, const char *b)
{
	size_t length = strcspn(a, "=");
	return length == strcspn(b, "=") && !strncmp(a, b, length);
}

/* The function's own variables are few, and those of a start have distinct names. */
static void put_variable(char **envp, uint32_t *count, uint32_t own, char *word)
{
	uint32_t i = 0;
	while (i < own && !same_name(envp[i], word))
		i++;
	if (i == own)
		i = (*count)++;
	envp[i] = word;
}

/* argv and envp of the function, and after them the start's own. */
int sandbox_read_words(const struct sandbox_spec *spec, char ***argv, char ***envp,
		       char **directory)
{
	struct words heads[2] = {{0}, {0}};
	char *strings[2] = {NULL, NULL}, *at[2], *end[2];
	int files = spec->has_words ? 2 : 1, given[2] = {spec->words, spec->own_words}, failed = 0;
	uint32_t argc = 0, envc = 0;
	for (int i = 0; i < files && !failed; i++)
		failed = take_words(given[i], &few_words[i], &heads[i], &strings[i]);
	if (failed)
		return failed;
	for (int i = 0; i < files; i++) {
		at[i] = strings[i];
		end[i] = strings[i] + heads[i].size;
		for (uint32_t n = 0; n < heads[i].argc; n++)
			if (!(pointers[argc++] = next_word(&at[i], end[i])))
				return -EPROTO;
	}
	if (!argc)
		return -EPROTO;
	pointers[argc] = NULL;
	*argv = pointers;
	*envp = pointers + argc + 1;
	for (int i = 0; i < files; i++)
		for (uint32_t n = 0; n < heads[i].envc; n++) {
			char *word = next_word(&at[i], end[i]);
			if (!word)
				return -EPROTO;
			put_variable(*envp, &envc, i ? heads[0].envc : 0, word);
		}
	(*envp)[envc] = NULL;
	*directory = next_word(&at[0], end[0]);
	return *directory ? 0 : -EPROTO;
}
