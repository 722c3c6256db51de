#include "cni/chain.h"

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/process.h"

#include <cJSON.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

static void delete_json(cJSON **json)
{
	cJSON_Delete(*json);
}
#define JSON_SCOPE __attribute__((cleanup(delete_json)))

const char *chain_name(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

static int take_line(struct chain *chain, char *line)
{
	struct {
		const char *word;
		char **to;
	} words[] = {
		{"kept", &chain->kept},           {"version", &chain->version},
		{"namespace", &chain->namespace}, {"interface", &chain->interface},
		{"packet", &chain->packet},       {"until", &chain->until},
		{"fill", &chain->fill},
	};
	char *value = strchr(line, ' ');
	if (!value)
		return -EINVAL;
	*value++ = 0;
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		if (!strcmp(line, words[i].word)) {
			*words[i].to = value;
			return 0;
		}
	if (!strcmp(line, "env") && chain->variable_count < CHAIN_VARIABLES)
		chain->variables[1 + chain->variable_count++] = value;
	else if (!strcmp(line, "plugin") && chain->count < CHAIN_PLUGINS)
		chain->plugins[chain->count++].path = value;
	else if (!strcmp(line, "conf") && chain->count)
		chain->plugins[chain->count - 1].conf = value;
	else
		return -EINVAL;
	return 0;
}

int chain_load(struct chain *chain, const char *file)
{
	int fd FILE_SCOPE = open(file, O_RDONLY | O_CLOEXEC);
	size_t used = 0;
	ssize_t n = fd < 0 ? -1 : 1;
	while (n > 0 && used < CHAIN_REQUEST_MAX) {
		n = read(fd, chain->text + used, CHAIN_REQUEST_MAX - used);
		used += n > 0 ? (size_t)n : 0;
	}
	if (n)
		return error_set(&chain->error, n < 0 ? errno : EFBIG, "cannot read the request %s",
				 file);
	char *rest = chain->text, *line;
	while ((line = strsep(&rest, "\n")) && *line)
		if (take_line(chain, line))
			return error_set(&chain->error, 0, "the request %s has an invalid line: %s",
					 file, line);
	bool whole = chain->kept && chain->version && chain->namespace && chain->interface;
	for (size_t i = 0; i < chain->count; i++)
		whole = whole && chain->plugins[i].conf;
	if (whole && chain->count)
		return 0;
	return error_set(&chain->error, 0, "the request %s is not whole", file);
}

static const char *member(const cJSON *object, const char *key)
{
	return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
}

/* Whether it has only spaces and control characters, which error_set drops. */
static bool is_blank(const char *text)
{
	while ((*text > 0 && *text <= ' ') || *text == 0x7f)
		text++;
	return !*text;
}

/* Why a plugin failed: in the specification's form, or whatever it printed. */
static int explain(struct chain *chain, const char *call, const char *output, int status)
{
	cJSON *answer JSON_SCOPE = cJSON_Parse(output);
	const cJSON *code = cJSON_GetObjectItemCaseSensitive(answer, "code");
	const char *message = member(answer, "msg"), *details = member(answer, "details");
	char coded[32] = "";
	if (cJSON_IsNumber(code))
		snprintf(coded, sizeof coded, " (code %d)", code->valueint);
	if (message && !is_blank(message))
		return error_set(&chain->error, 0, "%s: %s%s%s%s", call, message, coded,
				 details && *details ? ": " : "", details ? details : "");
	if (WIFSIGNALED(status))
		return error_set(&chain->error, 0, "%s: killed by signal %d", call,
				 WTERMSIG(status));
	return error_set(&chain->error, 0, "%s: exit status %d%s%.600s", call, WEXITSTATUS(status),
			 is_blank(output) ? ", and no word of why" : ": ",
			 is_blank(output) ? "" : output);
}

static void name_call(char *to, size_t size, const struct chain_plugin *plugin, const char *command)
{
	snprintf(to, size, "plugin %s %s", chain_name(plugin->path), command);
}

/* Executes one plugin; ``output`` is what it printed, for the caller to free. */
static int execute(struct chain *chain, struct chain_plugin *plugin, const char *command,
		   const char *previous, char **output)
{
	char call[128];
	plugin->start = clock_now();
	int input FILE_SCOPE = process_pipe((const char *[]){
		plugin->conf, previous ? ",\"prevResult\":" : "}", previous, "}", NULL});
	if (input < 0)
		return error_set(&chain->error, -input, "cannot hand a plugin its configuration");
	int status = process_run((char *[]){plugin->path, NULL}, chain->variables, input, output,
				 &chain->error);
	plugin->end = clock_now();
	name_call(call, sizeof call, plugin, command);
	return status > 0 ? explain(chain, call, *output, status) : status;
}

/* Whether an ADD's result has the network's version. Plugins before 0.3.1 leave it out; it is
 * then added. */
static int check_result(struct chain *chain, const struct chain_plugin *plugin)
{
	char call[128];
	name_call(call, sizeof call, plugin, "ADD");
	cJSON *result JSON_SCOPE = cJSON_ParseWithOpts(chain->result, NULL, true);
	if (is_blank(chain->result))
		return error_set(&chain->error, 0, "%s: printed no result", call);
	if (!cJSON_IsObject(result))
		return error_set(&chain->error, 0, "%s: printed what is not a JSON object: %.200s",
				 call, chain->result);
	if (!cJSON_HasObjectItem(result, "cniVersion")) {
		cJSON_AddStringToObject(result, "cniVersion", chain->version);
		free(chain->result);
		chain->result = cJSON_PrintUnformatted(result);
		return chain->result ? 0 : error_set(&chain->error, ENOMEM, "%s", call);
	}
	const char *version = member(result, "cniVersion");
	if (version && !strcmp(version, chain->version))
		return 0;
	return error_set(&chain->error, 0, "%s: its result is of CNI version %s and not %s", call,
			 version ? version : "that is no string", chain->version);
}

static void drop_result(struct chain *chain)
{
	free(chain->result);
	chain->result = NULL;
}

int chain_keep(struct chain *chain)
{
	int fd FILE_SCOPE = open(chain->kept, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int bad = fd < 0 ? -errno : 0;
	if (!bad && chain->result)
		bad = process_write_all(fd, chain->result, strlen(chain->result));
	return bad ? error_set(&chain->error, -bad, "cannot write the result %s", chain->kept) : 0;
}

void chain_recall(struct chain *chain)
{
	int fd FILE_SCOPE = open(chain->kept, O_RDONLY | O_CLOEXEC);
	drop_result(chain);
	if (fd >= 0 && process_read_all(fd, &chain->result) == 0)
		drop_result(chain);
}

int chain_add(struct chain *chain)
{
	chain->variables[0] = "CNI_COMMAND=ADD";
	for (size_t i = 0; i < chain->count; i++) {
		char *output;
		int bad = execute(chain, &chain->plugins[i], "ADD", chain->result, &output);
		drop_result(chain);
		chain->result = output;
		bad = bad ? bad : check_result(chain, &chain->plugins[i]);
		if (bad) {
			drop_result(chain);
			return bad;
		}
	}
	return 0;
}

int chain_delete(struct chain *chain, bool after_failure)
{
	int bad = 0;
	const char *previous = strncmp(chain->version, "0.3.", 4) ? chain->result : NULL;
	chain->variables[0] = "CNI_COMMAND=DEL";
	for (size_t i = chain->count; i-- > 0 && (!bad || after_failure);) {
		char *output FREE_SCOPE = NULL;
		int failed = execute(chain, &chain->plugins[i], "DEL", previous, &output);
		bad = bad ? bad : failed;
	}
	if (!bad && unlink(chain->kept) && errno != ENOENT)
		bad = error_set(&chain->error, errno, "cannot remove the result %s", chain->kept);
	return bad;
}
