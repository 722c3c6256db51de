#include "chain.h"

#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int take_line(struct request *request, char *line)
{
	struct plugin *last = request->plugins + request->count - 1;
	char *value = strchr(line, ' ');
	if (!value)
		return -1;
	*value++ = 0;
	struct { const char *word; char **to; } words[] = {
		{"kept", &request->kept}, {"version", &request->version},
		{"namespace", &request->namespace}, {"interface", &request->interface},
		{"packet", &request->packet}, {"until", &request->until}, {"fill", &request->fill},
	};
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		if (!strcmp(line, words[i].word)) {
			*words[i].to = value;
			return 0;
		}
	if (!strcmp(line, "env") && request->variable_count < VARIABLES)
		request->variables[1 + request->variable_count++] = value;
	else if (!strcmp(line, "plugin") && request->count < PLUGINS)
		request->plugins[request->count++].path = value;
	else if (!strcmp(line, "conf") && request->count)
		last->conf = value;
	else
		return -1;
	return 0;
}

int load(struct request *request, const char *file)
{
	scoped_fd fd = open(file, O_RDONLY | O_CLOEXEC);
	size_t used = 0;
	ssize_t n = fd < 0 ? -1 : 1;
	while (n > 0 && used < REQUEST_MAX)
		used += (size_t)((n = read(fd, request->text + used, REQUEST_MAX - used)) > 0 ? n : 0);
	if (n)
		return fail("cannot read the request %s: %s", file,
			    n < 0 ? strerror(errno) : "it is too long");
	char *rest = request->text, *line;
	while ((line = strsep(&rest, "\n")) && *line)
		if (take_line(request, line))
			return fail("the request %s has a line that cannot be: %s", file, line);
	bool whole = request->kept && request->version && request->namespace && request->interface;
	for (size_t i = 0; i < request->count; i++)
		whole = whole && request->plugins[i].conf;
	return whole && request->count ? 0 : fail("the request %s is not whole", file);
}

static int explain(const char *command, const struct plugin *plugin, const char *said, int status)
{
	char message[600] = "", details[400] = "", code[16];
	bool object = json_end(said) && said[strspn(said, " \t\r\n")] == '{';
	const char *msg = object ? json_member(said, "msg") : NULL;
	const char *more = object ? json_member(said, "details") : NULL;
	const char *number = object ? json_member(said, "code") : NULL;
	if (msg) {
		json_text(msg, message, sizeof message);
		if (more)
			json_text(more, details, sizeof details);
		return fail("plugin %s %s: %s%s%s%s%s%s", base(plugin->path), command, message,
			    number ? " (code " : "", number ? json_text(number, code, sizeof code) : "",
			    number ? ")" : "", *details ? ": " : "", details);
	}
	if (WIFSIGNALED(status))
		return fail("plugin %s %s: killed by signal %d", base(plugin->path), command,
			    WTERMSIG(status));
	for (size_t i = 0; said[i] && i < sizeof message - 1; i++)
		message[i] = said[i] == '\n' ? ' ' : said[i];
	return fail("plugin %s %s: exit status %d%s%s", base(plugin->path), command,
		    WEXITSTATUS(status), *message ? ": " : ", and no word of why", message);
}

/* Executes one plugin; returns what it printed, for the caller to free, or NULL. */
static char *execute(struct request *request, const struct plugin *plugin, const char *command,
		     const char *previous)
{
	char *argv[] = {plugin->path, NULL};
	int status = 0;
	scoped_fd in = pipe_of((const char *[]){
		plugin->conf, previous ? ",\"prevResult\":" : "}", previous, "}", NULL});
	if (in < 0)
		return NULL;
	char *said = run(plugin->path, argv, request->variables, in, &status);
	if (said && !status)
		return said;
	if (said)
		explain(command, plugin, said, status);
	free(said);
	return NULL;
}

/* Plugins of before 0.3.1 leave the version out: then it is the network's. */
static char *with_version(const struct request *request, char *result)
{
	const char *rest = result ? result + strspn(result, " \t\r\n") : NULL;
	char *whole = NULL;
	if (!rest || *rest != '{' || !json_end(rest) || json_member(rest, "cniVersion"))
		return result;
	rest += 1 + strspn(rest + 1, " \t\r\n");
	if (asprintf(&whole, "{\"cniVersion\":\"%s\"%s%s", request->version, *rest == '}' ? "" : ",",
		     rest) < 0)
		return result;
	free(result);
	return whole;
}

static int check_result(const struct request *request, const struct plugin *plugin,
			const char *result)
{
	char version[32] = "";
	const char *end = json_end(result), *stated;
	const char *name = base(plugin->path);
	if (!result[strspn(result, " \t\r\n")])
		return fail("plugin %s ADD: printed no result", name);
	if (!end || end[strspn(end, " \t\r\n")] || result[strspn(result, " \t\r\n")] != '{')
		return fail("plugin %s ADD: printed what is not a JSON object: %.200s", name, result);
	if ((stated = json_member(result, "cniVersion")))
		json_text(stated, version, sizeof version);
	if (strcmp(version, request->version))
		return fail("plugin %s ADD: its result is of CNI version %s and not %s", name, version,
			    request->version);
	return 0;
}

void keep(const struct request *request)
{
	scoped_fd fd = open(request->kept, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || (request->result && write_all(fd, request->result, strlen(request->result))))
		fail("cannot write the result %s: %s", request->kept, strerror(errno));
}

int add(struct request *request)
{
	request->variables[0] = "CNI_COMMAND=ADD";
	for (struct plugin *plugin = request->plugins; plugin < request->plugins + request->count;
	     plugin++) {
		plugin->start = now();
		char *result = execute(request, plugin, "ADD", request->result);
		plugin->end = now();
		free(request->result);
		request->result = result = with_version(request, result);
		if (!result || check_result(request, plugin, result)) {
			free(request->result);
			request->result = NULL;
			return -1;
		}
	}
	return 0;
}

int del(struct request *request, bool after_failure)
{
	int bad = 0;
	const char *previous = strncmp(request->version, "0.3.", 4) ? request->result : NULL;
	request->variables[0] = "CNI_COMMAND=DEL";
	for (size_t i = request->count; i-- > 0 && !(bad && !after_failure);) {
		request->plugins[i].start = now();
		char *said = execute(request, &request->plugins[i], "DEL", previous);
		request->plugins[i].end = now();
		bad = bad || !said;
		free(said);
	}
	if (!bad)
		unlink(request->kept);
	return bad ? -1 : 0;
}

void recall(struct request *request)
{
	scoped_fd fd = open(request->kept, O_RDONLY | O_CLOEXEC);
	request->result = fd < 0 ? NULL : read_all(fd);
	if (request->result && !*request->result) {
		free(request->result);
		request->result = NULL;
	}
}
