/* The part of wasmtime's C API that the WebAssembly worker uses, loaded at run time.
 *
 * The library is that of PyPI's package "wasmtime", which ships no headers. Names, types and layouts are
 * those of wasm.h, wasi.h and wasmtime.h of WASMTIME_VERSION. Another version may differ in any of them,
 * so src/firstlight/agile/wasm/workers.py refuses it.
 */
#ifndef FIRSTLIGHT_WASMTIME_H
#define FIRSTLIGHT_WASMTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define WASMTIME_VERSION 50

typedef struct wasm_config wasm_config_t;
typedef struct wasm_engine wasm_engine_t;
typedef struct wasm_trap wasm_trap_t;
typedef struct wasm_valtype wasm_valtype_t;
typedef struct wasm_functype wasm_functype_t;
typedef struct wasm_externtype wasm_externtype_t;
typedef struct wasm_exporttype wasm_exporttype_t;
typedef struct wasm_importtype wasm_importtype_t;
typedef struct wasi_config wasi_config_t;
typedef struct wasmtime_caller wasmtime_caller_t;
typedef struct wasmtime_context wasmtime_context_t;
typedef struct wasmtime_error wasmtime_error_t;
typedef struct wasmtime_instance_pre wasmtime_instance_pre_t;
typedef struct wasmtime_linker wasmtime_linker_t;
typedef struct wasmtime_module wasmtime_module_t;
typedef struct wasmtime_pooling_allocation_config wasmtime_pool_t;
typedef struct wasmtime_store wasmtime_store_t;

typedef struct {
	size_t size;
	char *data;
} wasm_byte_vec_t;
typedef struct {
	size_t size;
	wasm_valtype_t **data;
} wasm_valtype_vec_t;
typedef struct {
	size_t size;
	wasm_exporttype_t **data;
} wasm_exporttype_vec_t;
typedef struct {
	size_t size;
	wasm_importtype_t **data;
} wasm_importtype_vec_t;

enum { WASM_EXTERN_FUNC, WASM_EXTERN_GLOBAL, WASM_EXTERN_TABLE, WASM_EXTERN_MEMORY };
enum { WASM_I32, WASM_I64, WASM_F32, WASM_F64 };
enum { WASMTIME_TRAP_INTERRUPT = 10 };

typedef struct {
	uint64_t store;
	size_t index;
} wasmtime_instance_t;
typedef struct {
	uint64_t store;
	void *function;
} wasmtime_func_t;
typedef struct {
	struct {
		uint64_t store;
		uint32_t instance;
	} of;
	uint32_t index;
} wasmtime_memory_t;
typedef struct {
	uint8_t kind;
	union {
		wasmtime_func_t func;
		wasmtime_memory_t memory;
		struct {
			uint64_t words[3];
		} largest;
	} of;
} wasmtime_extern_t;
typedef struct {
	uint8_t kind;
	union {
		int32_t i32;
		int64_t i64;
		float f32;
		double f64;
		uint64_t largest[3];
	} of;
} wasmtime_val_t;
typedef union {
	int32_t i32;
	int64_t i64;
	float f32;
	double f64;
	uint64_t largest[2];
} wasmtime_val_raw_t;

_Static_assert(sizeof(wasmtime_extern_t) == 32 && sizeof(wasmtime_val_t) == 32 &&
		       sizeof(wasmtime_val_raw_t) == 16 && sizeof(wasmtime_memory_t) == 24,
	       "the layout of wasmtime's C API");

typedef ssize_t (*wasi_output_t)(void *data, const unsigned char *bytes, size_t size);
typedef wasm_trap_t *(*wasmtime_func_unchecked_callback_t)(void *data, wasmtime_caller_t *caller,
							   wasmtime_val_raw_t *values,
							   size_t count);

/* clang-format off */
#define WASMTIME_API(API) \
	API(wasm_config_t *, wasm_config_new, (void)) \
	API(wasm_engine_t *, wasm_engine_new_with_config, (wasm_config_t *)) \
	API(void, wasm_byte_vec_new, (wasm_byte_vec_t *, size_t, const char *)) \
	API(void, wasm_byte_vec_delete, (wasm_byte_vec_t *)) \
	API(wasm_valtype_t *, wasm_valtype_new, (uint8_t)) \
	API(uint8_t, wasm_valtype_kind, (const wasm_valtype_t *)) \
	API(bool, wasmtime_wasm_valtype_equal, (const wasm_valtype_t *, const wasm_valtype_t *)) \
	API(wasm_valtype_t *, wasmtime_wasm_valtype_v128, (void)) \
	API(void, wasm_valtype_vec_new, (wasm_valtype_vec_t *, size_t, wasm_valtype_t *const *)) \
	API(wasm_functype_t *, wasm_functype_new, (wasm_valtype_vec_t *, wasm_valtype_vec_t *)) \
	API(void, wasm_functype_delete, (wasm_functype_t *)) \
	API(const wasm_valtype_vec_t *, wasm_functype_params, (const wasm_functype_t *)) \
	API(const wasm_valtype_vec_t *, wasm_functype_results, (const wasm_functype_t *)) \
	API(uint8_t, wasm_externtype_kind, (const wasm_externtype_t *)) \
	API(const wasm_functype_t *, wasm_externtype_as_functype_const, (const wasm_externtype_t *)) \
	API(const wasm_byte_vec_t *, wasm_exporttype_name, (const wasm_exporttype_t *)) \
	API(const wasm_externtype_t *, wasm_exporttype_type, (const wasm_exporttype_t *)) \
	API(void, wasm_exporttype_vec_delete, (wasm_exporttype_vec_t *)) \
	API(const wasm_byte_vec_t *, wasm_importtype_module, (const wasm_importtype_t *)) \
	API(const wasm_byte_vec_t *, wasm_importtype_name, (const wasm_importtype_t *)) \
	API(void, wasm_importtype_vec_delete, (wasm_importtype_vec_t *)) \
	API(void, wasm_trap_message, (const wasm_trap_t *, wasm_byte_vec_t *)) \
	API(void, wasm_trap_delete, (wasm_trap_t *)) \
	API(wasi_config_t *, wasi_config_new, (void)) \
	API(void, wasi_config_delete, (wasi_config_t *)) \
	API(bool, wasi_config_set_argv, (wasi_config_t *, size_t, const char *const *)) \
	API(bool, wasi_config_set_env, \
	    (wasi_config_t *, size_t, const char *const *, const char *const *)) \
	API(void, wasi_config_set_stdin_bytes, (wasi_config_t *, wasm_byte_vec_t *)) \
	API(void, wasi_config_set_stdout_custom, \
	    (wasi_config_t *, wasi_output_t, void *, void (*)(void *))) \
	API(void, wasi_config_set_stderr_custom, \
	    (wasi_config_t *, wasi_output_t, void *, void (*)(void *))) \
	API(bool, wasi_config_preopen_dir, (wasi_config_t *, const char *, const char *, bool)) \
	API(void, wasmtime_config_epoch_interruption_set, (wasm_config_t *, bool)) \
	API(void, wasmtime_config_max_wasm_stack_set, (wasm_config_t *, size_t)) \
	API(void, wasmtime_config_parallel_compilation_set, (wasm_config_t *, bool)) \
	API(void, wasmtime_config_shared_memory_set, (wasm_config_t *, bool)) \
	API(void, wasmtime_config_gc_support_set, (wasm_config_t *, bool)) \
	API(void, wasmtime_config_wasm_threads_set, (wasm_config_t *, bool)) \
	API(void, wasmtime_config_wasm_gc_set, (wasm_config_t *, bool)) \
	API(void, wasmtime_config_wasm_function_references_set, (wasm_config_t *, bool)) \
	API(void, wasmtime_config_wasm_exceptions_set, (wasm_config_t *, bool)) \
	API(void, wasmtime_config_wasm_stack_switching_set, (wasm_config_t *, bool)) \
	API(void, wasmtime_config_wasm_multi_memory_set, (wasm_config_t *, bool)) \
	API(void, wasmtime_config_wasm_memory64_set, (wasm_config_t *, bool)) \
	API(void, wasmtime_config_wasm_custom_page_sizes_set, (wasm_config_t *, bool)) \
	API(void, wasmtime_config_wasm_wide_arithmetic_set, (wasm_config_t *, bool)) \
	API(void, wasmtime_config_wasm_component_model_set, (wasm_config_t *, bool)) \
	API(wasmtime_pool_t *, wasmtime_pooling_allocation_config_new, (void)) \
	API(void, wasmtime_pooling_allocation_config_delete, (wasmtime_pool_t *)) \
	API(void, wasmtime_pooling_allocation_config_total_core_instances_set, \
	    (wasmtime_pool_t *, uint32_t)) \
	API(void, wasmtime_pooling_allocation_config_total_memories_set, (wasmtime_pool_t *, uint32_t)) \
	API(void, wasmtime_pooling_allocation_config_total_tables_set, (wasmtime_pool_t *, uint32_t)) \
	API(void, wasmtime_pooling_allocation_config_max_memories_per_module_set, \
	    (wasmtime_pool_t *, uint32_t)) \
	API(void, wasmtime_pooling_allocation_config_max_tables_per_module_set, \
	    (wasmtime_pool_t *, uint32_t)) \
	API(void, wasmtime_pooling_allocation_config_max_memory_size_set, (wasmtime_pool_t *, size_t)) \
	API(void, wasmtime_pooling_allocation_config_table_elements_set, (wasmtime_pool_t *, size_t)) \
	API(void, wasmtime_pooling_allocation_config_linear_memory_keep_resident_set, \
	    (wasmtime_pool_t *, size_t)) \
	API(void, wasmtime_pooling_allocation_config_table_keep_resident_set, \
	    (wasmtime_pool_t *, size_t)) \
	API(void, wasmtime_pooling_allocation_strategy_set, (wasm_config_t *, const wasmtime_pool_t *)) \
	API(void, wasmtime_engine_increment_epoch, (wasm_engine_t *)) \
	API(wasmtime_error_t *, wasmtime_module_new, \
	    (wasm_engine_t *, const uint8_t *, size_t, wasmtime_module_t **)) \
	API(void, wasmtime_module_exports, (const wasmtime_module_t *, wasm_exporttype_vec_t *)) \
	API(void, wasmtime_module_imports, (const wasmtime_module_t *, wasm_importtype_vec_t *)) \
	API(wasmtime_linker_t *, wasmtime_linker_new, (wasm_engine_t *)) \
	API(void, wasmtime_linker_allow_shadowing, (wasmtime_linker_t *, bool)) \
	API(wasmtime_error_t *, wasmtime_linker_define_wasi, (wasmtime_linker_t *)) \
	API(wasmtime_error_t *, wasmtime_linker_define_func_unchecked, \
	    (wasmtime_linker_t *, const char *, size_t, const char *, size_t, const wasm_functype_t *, \
	     wasmtime_func_unchecked_callback_t, void *, void (*)(void *))) \
	API(wasmtime_error_t *, wasmtime_linker_instantiate_pre, \
	    (const wasmtime_linker_t *, const wasmtime_module_t *, wasmtime_instance_pre_t **)) \
	API(wasmtime_error_t *, wasmtime_instance_pre_instantiate, \
	    (const wasmtime_instance_pre_t *, wasmtime_context_t *, wasmtime_instance_t *, \
	     wasm_trap_t **)) \
	API(bool, wasmtime_instance_export_get, \
	    (wasmtime_context_t *, const wasmtime_instance_t *, const char *, size_t, \
	     wasmtime_extern_t *)) \
	API(wasmtime_error_t *, wasmtime_func_call, \
	    (wasmtime_context_t *, const wasmtime_func_t *, const wasmtime_val_t *, size_t, \
	     wasmtime_val_t *, size_t, wasm_trap_t **)) \
	API(bool, wasmtime_caller_export_get, \
	    (wasmtime_caller_t *, const char *, size_t, wasmtime_extern_t *)) \
	API(wasmtime_context_t *, wasmtime_caller_context, (wasmtime_caller_t *)) \
	API(uint8_t *, wasmtime_memory_data, (const wasmtime_context_t *, const wasmtime_memory_t *)) \
	API(size_t, wasmtime_memory_data_size, (const wasmtime_context_t *, const wasmtime_memory_t *)) \
	API(wasmtime_store_t *, wasmtime_store_new, (wasm_engine_t *, void *, void (*)(void *))) \
	API(void, wasmtime_store_delete, (wasmtime_store_t *)) \
	API(wasmtime_context_t *, wasmtime_store_context, (wasmtime_store_t *)) \
	API(void, wasmtime_store_limiter, \
	    (wasmtime_store_t *, int64_t, int64_t, int64_t, int64_t, int64_t)) \
	API(void *, wasmtime_context_get_data, (const wasmtime_context_t *)) \
	API(wasmtime_error_t *, wasmtime_context_set_wasi, (wasmtime_context_t *, wasi_config_t *)) \
	API(void, wasmtime_context_set_epoch_deadline, (wasmtime_context_t *, uint64_t)) \
	API(wasm_trap_t *, wasmtime_trap_new_code, (uint8_t)) \
	API(bool, wasmtime_trap_code, (const wasm_trap_t *, uint8_t *)) \
	API(void, wasmtime_error_message, (const wasmtime_error_t *, wasm_byte_vec_t *)) \
	API(bool, wasmtime_error_exit_status, (const wasmtime_error_t *, int *)) \
	API(void, wasmtime_error_delete, (wasmtime_error_t *))
/* clang-format on */

#define WASMTIME_DECLARE(type, name, parameters) extern type(*name) parameters;
WASMTIME_API(WASMTIME_DECLARE)
#undef WASMTIME_DECLARE

/* Loads the library. Returns 0, or -1 with a reason in words that stays valid. */
int wasmtime_load(const char *path, const char **reason);

#endif
