/* One run of a module: its arguments, its output, and how it ends. */
#include "common/clock.h"
#include "wasm_module.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TABLES = 4 };

__attribute__((format(printf, 3, 4))) static int fail(struct wasm_outcome_view *outcome,
						      enum wasm_outcome how, const char *format,
						      ...)
{
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(outcome->text, sizeof outcome->text, format, arguments);
	va_end(arguments);
	outcome->head.outcome = how;
	outcome->head.text =
		length < (int)sizeof outcome->text ? (uint32_t)length : sizeof outcome->text - 1;
	return -1;
}

/* The outcome of a run that did not return. Deletes the error, or the trap. */
static int explain(struct wasm_outcome_view *outcome, enum wasm_outcome otherwise,
		   wasmtime_error_t *error, wasm_trap_t *trap)
{
	uint8_t code;
	struct wasm_result *head = &outcome->head;
	if (trap) {
		bool late = wasmtime_trap_code(trap, &code) && code == WASMTIME_TRAP_INTERRUPT;
		head->outcome = late ? WASM_LATE : WASM_TRAPPED;
		head->text = (uint32_t)wasm_trap_words(trap, outcome->text, sizeof outcome->text);
	} else if (wasmtime_error_exit_status(error, &head->status)) {
		head->outcome = WASM_EXITED;
		wasmtime_error_delete(error);
	} else {
		head->outcome = otherwise;
		head->text = (uint32_t)wasm_error_words(error, outcome->text, sizeof outcome->text);
	}
	return -1;
}

/* A value as the parameter's type, if it has a place there. */
static bool convert(const struct wasm_value *from, uint8_t kind, wasmtime_val_t *to)
{
	int64_t integer = from->of.integer;
	bool whole = from->kind == WASM_INTEGER;
	to->kind = kind;
	switch (kind) {
	case WASM_I32:
		to->of.i32 = (int32_t)integer;
		return whole && integer >= INT32_MIN && integer <= UINT32_MAX;
	case WASM_I64:
		to->of.i64 = integer;
		return whole;
	case WASM_F32:
		to->of.f32 = whole ? (float)integer : (float)from->of.real;
		return true;
	default:
		to->of.f64 = whole ? (double)integer : from->of.real;
		return true;
	}
}

static int take_arguments(const struct wasm_module *module, const struct wasm_event_view *event,
			  wasmtime_val_t values[WASM_VALUES_MAX], struct wasm_outcome_view *outcome)
{
	static const char *const types[] = {"an i32", "an i64", "an f32", "an f64"};
	if (event->argument_count != module->parameter_count)
		return fail(outcome, WASM_REFUSED,
			    "takes %" PRIu32 " numbers and was given %" PRIu32,
			    module->parameter_count, event->argument_count);
	for (uint32_t i = 0; i < event->argument_count; i++) {
		struct wasm_value value;
		memcpy(&value, event->arguments + i, sizeof value);
		if (convert(&value, module->parameters[i], values + i))
			continue;
		const char *type = types[module->parameters[i]];
		if (value.kind == WASM_INTEGER)
			return fail(outcome, WASM_REFUSED,
				    "takes %s as number %" PRIu32 ", which %" PRId64 " is not",
				    type, i + 1, value.of.integer);
		return fail(outcome, WASM_REFUSED,
			    "takes %s as number %" PRIu32 ", which %g is not", type, i + 1,
			    value.of.real);
	}
	return 0;
}

static void put_values(const struct wasm_module *module, const wasmtime_val_t *results,
		       struct wasm_outcome_view *outcome)
{
	outcome->head.values = module->result_count;
	for (uint32_t i = 0; i < module->result_count; i++) {
		struct wasm_value *value = outcome->values + i;
		bool whole = module->results[i] <= WASM_I64;
		*value = (struct wasm_value){.kind = whole ? WASM_INTEGER : WASM_REAL};
		if (whole)
			value->of.integer = module->results[i] == WASM_I32 ? results[i].of.i32
									   : results[i].of.i64;
		else
			value->of.real = module->results[i] == WASM_F32 ? (double)results[i].of.f32
									: results[i].of.f64;
	}
}

/* Output beyond the limit is dropped, so that its writer does not block. */
static ssize_t keep(char *bytes, uint32_t *used, const unsigned char *from, size_t size)
{
	size_t room = WASM_OUTPUT_MAX - *used, taken = size < room ? size : room;
	memcpy(bytes + *used, from, taken);
	*used += (uint32_t)taken;
	return (ssize_t)size;
}

static ssize_t keep_output(void *data, const unsigned char *from, size_t size)
{
	struct wasm_outcome_view *outcome = data;
	return keep(outcome->output, &outcome->head.output, from, size);
}

static ssize_t keep_error(void *data, const unsigned char *from, size_t size)
{
	struct wasm_outcome_view *outcome = data;
	return keep(outcome->error, &outcome->head.error, from, size);
}

static int give_wasi(struct wasm_runner *runner, wasmtime_context_t *context,
		     const struct wasm_event_view *event)
{
	const struct wasm_module *module = runner->module;
	struct wasm_outcome_view *outcome = &runner->outcome;
	wasi_config_t *wasi = wasi_config_new();
	wasm_byte_vec_t input;
	wasm_byte_vec_new(&input, event->input_size, event->input);
	wasi_config_set_stdin_bytes(wasi, &input);
	wasi_config_set_stdout_custom(wasi, keep_output, outcome, NULL);
	wasi_config_set_stderr_custom(wasi, keep_error, outcome, NULL);
	const char *wrong = NULL;
	if (!wasi_config_set_argv(wasi, module->argument_count, module->arguments) ||
	    !wasi_config_set_env(wasi, module->variable_count, module->names, module->values))
		wrong = "its arguments and environment must be UTF-8";
	else if (module->uses_files &&
		 !wasi_config_preopen_dir(wasi, runner->directory, "/tmp", true))
		wrong = "its /tmp cannot be opened";
	if (wrong) {
		wasi_config_delete(wasi);
		return fail(outcome, WASM_FAILED, "%s", wrong);
	}
	wasmtime_error_t *error = wasmtime_context_set_wasi(context, wasi);
	return error ? explain(outcome, WASM_FAILED, error, NULL) : 0;
}

static int call(struct wasm_outcome_view *outcome, wasmtime_context_t *context,
		const wasmtime_instance_t *instance, const char *name,
		const wasmtime_val_t *arguments, size_t count, wasmtime_val_t *results,
		size_t result_count)
{
	wasmtime_extern_t export;
	wasm_trap_t *trap = NULL;
	if (!wasmtime_instance_export_get(context, instance, name, strlen(name), &export) ||
	    export.kind != WASM_EXTERN_FUNC)
		return fail(outcome, WASM_FAILED, "its export '%s' is not there", name);
	wasmtime_error_t *error = wasmtime_func_call(context, &export.of.func, arguments, count,
						     results, result_count, &trap);
	return error || trap ? explain(outcome, WASM_TRAPPED, error, trap) : 0;
}

static int run_in(struct wasm_runner *runner, wasmtime_store_t *store,
		  const struct wasm_event_view *event)
{
	const struct wasm_module *module = runner->module;
	const struct wasm_limits *limits = &module->limits;
	struct wasm_outcome_view *outcome = &runner->outcome;
	wasmtime_context_t *context = wasmtime_store_context(store);
	wasmtime_val_t arguments[WASM_VALUES_MAX], results[WASM_VALUES_MAX];
	wasmtime_instance_t instance;
	wasm_trap_t *trap = NULL;
	if (take_arguments(module, event, arguments, outcome))
		return -1;
	wasmtime_store_limiter(store, (int64_t)limits->memory, (int64_t)limits->elements, 1, TABLES,
			       1);
	wasmtime_context_set_epoch_deadline(context,
					    (uint64_t)(limits->timeout / WASM_TICK_NS) + 1);
	if (module->uses_wasi && give_wasi(runner, context, event))
		return -1;
	wasmtime_error_t *error =
		wasmtime_instance_pre_instantiate(module->prepared, context, &instance, &trap);
	if (error || trap)
		return explain(outcome, WASM_FAILED, error, trap);
	if (module->initializes &&
	    call(outcome, context, &instance, "_initialize", NULL, 0, NULL, 0))
		return -1;
	outcome->head.began = clock_now();
	int failed = call(outcome, context, &instance, module->handler, arguments,
			  module->parameter_count, results, module->result_count);
	outcome->head.finished = clock_now();
	if (!failed)
		put_values(module, results, outcome);
	return failed;
}

int wasm_run(struct wasm_runner *runner, const struct wasm_event_view *event)
{
	const struct wasm_module *module = runner->module;
	runner->outcome.head = (struct wasm_result){.outcome = WASM_RETURNED};
	if (module->uses_files && mkdir(runner->directory, 0700)) {
		fail(&runner->outcome, WASM_FAILED, "its /tmp cannot be made: %s", strerror(errno));
		return 0;
	}
	runner->deadline = clock_now() + module->limits.timeout;
	wasmtime_store_t *store = wasmtime_store_new(module->engine, runner, NULL);
	run_in(runner, store, event);
	wasmtime_store_delete(store); /* with its files */
	runner->deadline = 0;
	if (!module->uses_files)
		return 0;
	int error = rmdir(runner->directory) ? -errno : 0;
	if (error != -ENOTEMPTY)
		return error;
	error = wasm_empty_directory(runner->directory);
	return error ? error : rmdir(runner->directory) ? -errno : 0;
}
