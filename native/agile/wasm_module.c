#include "wasm_module.h"

#include <stdio.h>
#include <string.h>

enum { STACK = 1 << 20, TABLES = 4, RESIDENT = 64 << 10 };
static const char WASI[] = "wasi_snapshot_preview1";

#define REFUSE(...) return snprintf(reason, WASM_REASON_MAX, __VA_ARGS__), -1

static bool is(const wasm_byte_vec_t *name, const char *text)
{
	return name->size == strlen(text) && !memcmp(name->data, text, name->size);
}

/* wasmtime's text is a trace and a chain of causes, one per line; the last is the reason: "    1:
 * wasm trap: out of bounds memory access". */
static size_t take_reason(wasm_byte_vec_t *words, char *to, size_t size)
{
	static const char prefix[] = "wasm trap: ";
	const char *line = words->data, *end = line + words->size;
	while (end > line && (end[-1] == '\n' || end[-1] == ' ' || !end[-1]))
		end--;
	for (const char *at = line; at < end; at++)
		if (*at == '\n')
			line = at + 1;
	while (line < end && *line == ' ')
		line++;
	const char *text = line;
	while (text < end && *text >= '0' && *text <= '9')
		text++;
	if (text > line && end - text > 2 && text[0] == ':' && text[1] == ' ')
		line = text + 2;
	if ((size_t)(end - line) >= sizeof prefix - 1 && !memcmp(line, prefix, sizeof prefix - 1))
		line += sizeof prefix - 1;
	size_t length = (size_t)(end - line) < size - 1 ? (size_t)(end - line) : size - 1;
	memcpy(to, line, length);
	to[length] = 0;
	wasm_byte_vec_delete(words);
	return length;
}

size_t wasm_error_words(wasmtime_error_t *error, char *to, size_t size)
{
	wasm_byte_vec_t words;
	wasmtime_error_message(error, &words);
	wasmtime_error_delete(error);
	return take_reason(&words, to, size);
}

size_t wasm_trap_words(wasm_trap_t *trap, char *to, size_t size)
{
	wasm_byte_vec_t words;
	wasm_trap_message(trap, &words);
	wasm_trap_delete(trap);
	return take_reason(&words, to, size);
}

/* Enables nothing that we cannot limit, or that no common compiler needs. */
static wasm_engine_t *make_engine(const struct wasm_limits *limits)
{
	wasm_config_t *config = wasm_config_new();
	wasmtime_pool_t *pool = wasmtime_pooling_allocation_config_new();
	wasmtime_config_epoch_interruption_set(config, true);
	wasmtime_config_max_wasm_stack_set(config, STACK);
	wasmtime_config_parallel_compilation_set(config, false);
	wasmtime_config_shared_memory_set(config, false);
	wasmtime_config_wasm_threads_set(config, false);
	wasmtime_config_wasm_stack_switching_set(config, false);
	wasmtime_config_wasm_exceptions_set(config, false);
	wasmtime_config_wasm_gc_set(config, false);
	wasmtime_config_wasm_function_references_set(config, false);
	wasmtime_config_wasm_multi_memory_set(config, false);
	wasmtime_config_wasm_memory64_set(config, false);
	wasmtime_config_wasm_custom_page_sizes_set(config, false);
	wasmtime_config_wasm_wide_arithmetic_set(config, false);
	wasmtime_config_wasm_component_model_set(config, false);
	wasmtime_pooling_allocation_config_total_core_instances_set(pool, limits->threads);
	wasmtime_pooling_allocation_config_total_memories_set(pool, limits->threads);
	wasmtime_pooling_allocation_config_total_tables_set(pool, limits->threads * TABLES);
	wasmtime_pooling_allocation_config_max_memories_per_module_set(pool, 1);
	wasmtime_pooling_allocation_config_max_tables_per_module_set(pool, TABLES);
	wasmtime_pooling_allocation_config_max_memory_size_set(pool, limits->memory);
	wasmtime_pooling_allocation_config_table_elements_set(pool, limits->elements);
	wasmtime_pooling_allocation_config_linear_memory_keep_resident_set(pool, RESIDENT);
	wasmtime_pooling_allocation_config_table_keep_resident_set(pool, RESIDENT);
	wasmtime_pooling_allocation_strategy_set(config, pool);
	wasmtime_pooling_allocation_config_delete(pool);
	return wasm_engine_new_with_config(config);
}

static int take_types(const wasm_valtype_vec_t *types, const char *what, const char *handler,
		      uint8_t kinds[WASM_VALUES_MAX], uint32_t *count, char *reason)
{
	if (types->size > WASM_VALUES_MAX)
		REFUSE("%s %s %zu values\nat most %d are possible", handler, what, types->size,
		       WASM_VALUES_MAX);
	*count = (uint32_t)types->size;
	for (size_t i = 0; i < types->size; i++) {
		bool vector =
			wasmtime_wasm_valtype_equal(types->data[i], wasmtime_wasm_valtype_v128());
		kinds[i] = vector ? UINT8_MAX : wasm_valtype_kind(types->data[i]);
		if (kinds[i] > WASM_F64)
			REFUSE("%s %s what is not a number\nonly i32, i64, f32 and f64 are possible",
			       handler, what);
	}
	return 0;
}

/* Adds a name to a list with commas, and dots if it becomes too long. */
static void list(char *to, size_t size, const wasm_byte_vec_t *name)
{
	size_t used = strlen(to);
	if (used + name->size + 8 < size)
		snprintf(to + used, size - used, "%s%.*s", used ? ", " : "", (int)name->size,
			 name->data);
	else if (used + 8 < size && (used < 3 || strcmp(to + used - 3, "...")))
		strcpy(to + used, ", ...");
}

static int take_exports(struct wasm_module *module, const wasm_exporttype_vec_t *exports,
			char *reason)
{
	char names[WASM_TEXT_MAX] = "";
	const wasm_externtype_t *handler = NULL;
	for (size_t i = 0; i < exports->size; i++) {
		const wasm_byte_vec_t *name = wasm_exporttype_name(exports->data[i]);
		const wasm_externtype_t *type = wasm_exporttype_type(exports->data[i]);
		bool function = wasm_externtype_kind(type) == WASM_EXTERN_FUNC;
		if (is(name, module->handler))
			handler = type;
		if (function && is(name, "_initialize"))
			module->initializes = true;
		list(names, sizeof names, name);
	}
	if (!handler)
		REFUSE("it exports no '%s'\nit exports: %s", module->handler,
		       *names ? names : "nothing");
	if (wasm_externtype_kind(handler) != WASM_EXTERN_FUNC)
		REFUSE("its export '%s' is not a function\nit exports: %s", module->handler, names);
	const wasm_functype_t *type = wasm_externtype_as_functype_const(handler);
	module->is_command = !strcmp(module->handler, "_start");
	if (!strcmp(module->handler, "_initialize"))
		module->initializes = false; /* the call of the handler is the one call */
	return take_types(wasm_functype_params(type), "takes", module->handler, module->parameters,
			  &module->parameter_count, reason) ||
			       take_types(wasm_functype_results(type), "returns", module->handler,
					  module->results, &module->result_count, reason)
		       ? -1
		       : 0;
}

static int take_imports(struct wasm_module *module, const wasm_importtype_vec_t *imports,
			char *reason)
{
	char names[WASM_TEXT_MAX] = "";
	for (size_t i = 0; i < imports->size; i++) {
		const wasm_byte_vec_t *from = wasm_importtype_module(imports->data[i]);
		const wasm_byte_vec_t *name = wasm_importtype_name(imports->data[i]);
		if (is(from, WASI)) {
			module->uses_wasi = true;
			module->uses_files |= name->size > 4 && (!memcmp(name->data, "path_", 5) ||
								 is(name, "fd_prestat_get"));
			continue;
		}
		char both[256];
		int length = snprintf(both, sizeof both, "%.*s.%.*s", (int)from->size, from->data,
				      (int)name->size, name->data);
		size_t size = length < (int)sizeof both ? (size_t)length : sizeof both - 1;
		list(names, sizeof names, &(wasm_byte_vec_t){size, both});
	}
	if (*names)
		REFUSE("it imports %s\nit is given WASI preview 1 (%s) and nothing else", names,
		       WASI);
	return 0;
}

static int prepare(struct wasm_module *module, const wasmtime_module_t *compiled, char *reason)
{
	char words[WASM_TEXT_MAX];
	wasmtime_linker_t *linker = wasmtime_linker_new(module->engine);
	wasmtime_linker_allow_shadowing(linker, true);
	wasmtime_error_t *error = wasmtime_linker_define_wasi(linker);
	if (!error)
		error = wasm_define_poll(linker);
	if (!error)
		error = wasmtime_linker_instantiate_pre(linker, compiled, &module->prepared);
	if (!error)
		return 0;
	wasm_error_words(error, words, sizeof words);
	REFUSE("it cannot be linked: %s\nit is given WASI preview 1 (%s) and nothing else", words,
	       WASI);
}

int wasm_module_make(struct wasm_module *module, const char *bytes, size_t size,
		     char reason[WASM_REASON_MAX])
{
	char words[WASM_TEXT_MAX];
	wasmtime_module_t *compiled;
	wasm_exporttype_vec_t exports;
	wasm_importtype_vec_t imports;
	static const char core[8] = "\0asm\1\0\0", component[8] = "\0asm\r\0\1";
	if (size >= sizeof component && !memcmp(bytes, component, sizeof component))
		REFUSE("it is a WebAssembly component\ncompile it as a core module: for Rust, the target "
		       "wasm32-wasip1");
	if (size < sizeof core || memcmp(bytes, core, sizeof core))
		REFUSE("it is not a WebAssembly module\nit must begin with \\0asm and the version 1");
	module->engine = make_engine(&module->limits);
	wasmtime_error_t *error =
		wasmtime_module_new(module->engine, (const uint8_t *)bytes, size, &compiled);
	if (error) {
		wasm_error_words(error, words, sizeof words);
		REFUSE("it is not a valid WebAssembly module: %s", words);
	}
	wasmtime_module_exports(compiled, &exports);
	wasmtime_module_imports(compiled, &imports);
	int failed =
		take_exports(module, &exports, reason) || take_imports(module, &imports, reason);
	wasm_exporttype_vec_delete(&exports);
	wasm_importtype_vec_delete(&imports);
	return failed || prepare(module, compiled, reason) ? -1 : 0;
}
