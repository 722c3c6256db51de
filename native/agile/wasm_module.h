/* A function's module, compiled, and its instances. */
#ifndef FIRSTLIGHT_WASM_MODULE_H
#define FIRSTLIGHT_WASM_MODULE_H

#include "wasm.h"
#include "wasmtime.h"

enum { WASM_TICK_NS = 5 * 1000 * 1000, WASM_REASON_MAX = 2 * WASM_TEXT_MAX, WASM_PATH_MAX = 256 };

struct wasm_limits {
	uint64_t memory; /* bytes of an instance's linear memory */
	uint64_t elements; /* of each of its tables */
	int64_t timeout; /* ns that an instance may take */
	uint32_t threads; /* instances at once */
};

struct wasm_module {
	struct wasm_limits limits;
	wasm_engine_t *engine;
	wasmtime_instance_pre_t *prepared;
	const char *handler;
	const char *const *arguments, **names, **values;
	size_t argument_count, variable_count;
	uint8_t parameters[WASM_VALUES_MAX],
		results[WASM_VALUES_MAX]; /* enum: WASM_I32 and so on */
	uint32_t parameter_count, result_count;
	bool is_command; /* its handler is _start, and takes its event on standard input */
	bool initializes; /* it exports _initialize, to be called before any other */
	bool uses_wasi, uses_files;
};

/* A thread's place for running instances. */
struct wasm_runner {
	const struct wasm_module *module;
	char directory[WASM_PATH_MAX]; /* /tmp of an instance */
	_Atomic int64_t deadline; /* of the instance that runs, ns of CLOCK_MONOTONIC; 0: none */
	struct wasm_outcome_view outcome; /* of the latest */
};

/* The clock runs between these two, and ends the thread's instance when its time is over.
 * wasm_clock_run is the clock's thread; it calls tick at each turn. */
void wasm_clock_begin(void);
void wasm_clock_end(void);
_Noreturn void wasm_clock_run(wasm_engine_t *engine, void (*tick)(int64_t now));

/* Compiles; limits, handler, arguments and variables are set. Returns 0, or -1 with the reason in
 * words: what is wrong and, in a second line, perhaps the remedy. */
int wasm_module_make(struct wasm_module *module, const char *bytes, size_t size,
		     char reason[WASM_REASON_MAX]);

/* Runs an event in an instance of its own, of which only runner->outcome is left. Returns 0, or a
 * negative errno if more is left: then no other may be run. */
int wasm_run(struct wasm_runner *runner, const struct wasm_event_view *event);

/* Defines poll_oneoff, in wasm_poll.c: it waits no longer than the runner's deadline. */
wasmtime_error_t *wasm_define_poll(wasmtime_linker_t *linker);

/* Gives up, for good, the system calls that neither instances nor the compiler need. Returns 0 or
 * a negative errno. */
int wasm_confine(void);

/* Removes everything in a directory, however deep. Returns 0 or a negative errno. */
int wasm_empty_directory(const char *path);

/* The reason in the words of an error or a trap, which is deleted. Returns its size. */
size_t wasm_error_words(wasmtime_error_t *error, char *to, size_t size);
size_t wasm_trap_words(wasm_trap_t *trap, char *to, size_t size);

#endif
