/* Gives what strangers wrote to the parsers that read it: a hypervisor's monitor, its API and its log,
 * a guest's console, a start's output, and the arguments of a watched program.
 *
 * Input: records of a byte, enum parser, four bytes of length, and the text. Each is copied into
 * memory of just its size, with a NUL, so that a byte beyond is seen. Fails if what is handed on is no
 * line, or not inside the text.
 */
#include "common/cleanup.h"
#include "common/http.h"
#include "lab/launch_text.h"
#include "lab/vmjournal.h"
#include "lab/vmmonitor.h"
#include "lab/vmstream.h"
#include "trace/command.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum parser { MONITOR, ANSWER, JOURNAL, CONSOLE, OUTPUT, ARGUMENTS };

static int lines;

static void check(int is_right, const char *what)
{
	if (!is_right) {
		fprintf(stderr, "%s\n", what);
		abort();
	}
}

static void take_line(void *context, struct vmstream *stream)
{
	(void)context;
	check(strlen(stream->line) == stream->size && !strpbrk(stream->line, "\n"), "no line");
	lines++;
}

static int file_of(const char *text, size_t size)
{
	int file = memfd_create("text", MFD_CLOEXEC);
	check(file >= 0 && write(file, text, size) == (ssize_t)size, "a file");
	check(lseek(file, 0, SEEK_SET) == 0, "seek");
	return file;
}

static void read_answer(const char *text, size_t size)
{
	struct http_answer answer;
	if (http_parse(text, &answer))
		check(answer.body >= text && answer.body <= text + size, "body");
}

static void read_journal(const char *text, size_t size)
{
	char path[64], complaint[100];
	int file FILE_SCOPE = file_of(text, size);
	snprintf(path, sizeof path, "/proc/self/fd/%d", file);
	(void)vmjournal_entered(path);
	vmjournal_complaint(path, complaint, sizeof complaint);
	check(strlen(complaint) < sizeof complaint, "complaint");
}

static void read_console(const char *text, size_t size)
{
	struct vmstream stream = {.fd = file_of(text, size)};
	while (stream.fd >= 0)
		vmstream_read(&stream, take_line, NULL);
}

static void read_output(char *text, size_t size)
{
	(void)launch_text_has_spoken(text, size);
	if (size <= LAUNCH_OUTPUT_MAX)
		check(launch_text_make_room(text, size) <= size, "room");
}

static void read_arguments(const char *text, size_t size)
{
	size_t taken = size < WORDS_MAX ? size : WORDS_MAX - 1;
	struct event *event = calloc(1, sizeof *event + FILE_MAX + taken);
	char *words = (char *)(event + 1) + FILE_MAX;
	event->args[0] = taken;
	memcpy(words, text, taken);
	const char *bundle = command_bundle(event);
	if (bundle >= words && bundle <= words + taken)
		check(bundle + strlen(bundle) < words + taken, "bundle");
	free(event);
	event = calloc(1, sizeof *event + FILE_MAX + WORDS_MAX + taken);
	event->args[1] = taken;
	memcpy((char *)(event + 1) + FILE_MAX + WORDS_MAX, text, taken);
	(void)command_is_of_start(event);
	free(event);
}

int main(void)
{
	unsigned char parser;
	uint32_t size;
	while (fread(&parser, 1, 1, stdin) == 1 && fread(&size, sizeof size, 1, stdin) == 1) {
		char *text = malloc((size_t)size + 1);
		check(text && fread(text, 1, size, stdin) == size, "input");
		text[size] = 0;
		if (parser == MONITOR)
			(void)vmmonitor_read(text, 1, 1000);
		else if (parser == ANSWER)
			read_answer(text, size);
		else if (parser == JOURNAL)
			read_journal(text, size);
		else if (parser == CONSOLE)
			read_console(text, size);
		else if (parser == OUTPUT)
			read_output(text, size);
		else
			read_arguments(text, size);
		free(text);
	}
	return 0;
}
