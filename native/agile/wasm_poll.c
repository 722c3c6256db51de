/* WASI's poll_oneoff, bounded by the deadline of the instance.
 *
 * wasmtime's own implementation sleeps in the host, where no epoch ends it. An instance can open
 * nothing that blocks (standard input is in memory, files are files), so a subscription to a descriptor
 * is ready at once. Layouts: WASI preview 1, types "subscription" (48 bytes) and "event" (32 bytes).
 */
#include "common/clock.h"
#include "wasm_module.h"

#include <errno.h>
#include <string.h>
#include <time.h>

enum { SUBSCRIPTION = 48, EVENT = 32, CLOCK = 0, ABSOLUTE = 1 };
enum { WASI_SUCCESS = 0, WASI_EFAULT = 21, WASI_EINVAL = 28 };

static uint64_t word(const uint8_t *at, size_t size)
{
	uint64_t value = 0;
	memcpy(&value, at,
	       size); /* WebAssembly and the machines that we run on are little-endian */
	return value;
}

/* When a clock's subscription is due, ns of CLOCK_MONOTONIC; -1 if the clock cannot be waited for. */
static int64_t due(const uint8_t *subscription, int64_t now)
{
	uint64_t clock = word(subscription + 16, 4), timeout = word(subscription + 24, 8);
	if (clock > 1)
		return -1;
	if (word(subscription + 40, 2) & ABSOLUTE) {
		uint64_t there = (uint64_t)clock_read(clock ? CLOCK_MONOTONIC : CLOCK_REALTIME);
		timeout = timeout > there ? timeout - there : 0;
	}
	return timeout > (uint64_t)(INT64_MAX - now) ? INT64_MAX : now + (int64_t)timeout;
}

static void put_event(uint8_t *to, const uint8_t *subscription, uint16_t error)
{
	uint8_t type = subscription[8];
	uint64_t available = type == CLOCK ? 0 : 1;
	memset(to, 0, EVENT);
	memcpy(to, subscription, 8);
	memcpy(to + 8, &error, sizeof error);
	to[10] = type;
	memcpy(to + 16, &available, sizeof available);
}

/* Sleeps until then. Returns -1 if the instance's time is over before. */
static int sleep_until(int64_t wake, int64_t deadline)
{
	int64_t until = wake < deadline ? wake : deadline;
	struct timespec t = {until / 1000000000, until % 1000000000};
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
	return wake < deadline ? 0 : -1;
}

static wasm_trap_t *poll_oneoff(void *data, wasmtime_caller_t *caller, wasmtime_val_raw_t *values,
				size_t count)
{
	(void)data, (void)count;
	wasmtime_context_t *context = wasmtime_caller_context(caller);
	struct wasm_runner *runner = wasmtime_context_get_data(context);
	uint64_t in = (uint32_t)values[0].i32, out = (uint32_t)values[1].i32;
	uint64_t number = (uint32_t)values[2].i32, stored = (uint32_t)values[3].i32;
	wasmtime_extern_t memory;
	values[0].i32 = WASI_EFAULT;
	if (!wasmtime_caller_export_get(caller, "memory", 6, &memory) ||
	    memory.kind != WASM_EXTERN_MEMORY)
		return NULL;
	uint8_t *base = wasmtime_memory_data(context, &memory.of.memory);
	uint64_t size = wasmtime_memory_data_size(context, &memory.of.memory);
	if (in + number * SUBSCRIPTION > size || out + number * EVENT > size || stored + 4 > size)
		return NULL;
	values[0].i32 = WASI_EINVAL;
	if (!number)
		return NULL;
	int64_t now = clock_now(), first = INT64_MAX;
	for (uint64_t i = 0; i < number; i++) {
		const uint8_t *subscription = base + in + i * SUBSCRIPTION;
		int64_t at = subscription[8] == CLOCK ? due(subscription, now) : now;
		if (at < first)
			first = at;
	}
	if (first > now && sleep_until(first, runner->deadline))
		return wasmtime_trap_new_code(WASMTIME_TRAP_INTERRUPT);
	uint32_t events = 0;
	for (uint64_t i = 0; i < number; i++) {
		uint8_t subscription[SUBSCRIPTION]; /* the guest may have the two arrays overlap */
		memcpy(subscription, base + in + i * SUBSCRIPTION, SUBSCRIPTION);
		int64_t at = subscription[8] == CLOCK ? due(subscription, now) : now;
		if (at <= first)
			put_event(base + out + EVENT * (uint64_t)events++, subscription,
				  at < 0 ? WASI_EINVAL : WASI_SUCCESS);
	}
	memcpy(base + stored, &events, sizeof events);
	values[0].i32 = WASI_SUCCESS;
	return NULL;
}

wasmtime_error_t *wasm_define_poll(wasmtime_linker_t *linker)
{
	static const char module[] = "wasi_snapshot_preview1", name[] = "poll_oneoff";
	wasm_valtype_t *words[4], *result = wasm_valtype_new(WASM_I32);
	wasm_valtype_vec_t parameters, results;
	for (size_t i = 0; i < 4; i++)
		words[i] = wasm_valtype_new(WASM_I32);
	wasm_valtype_vec_new(&parameters, 4, words);
	wasm_valtype_vec_new(&results, 1, &result);
	wasm_functype_t *type = wasm_functype_new(&parameters, &results);
	wasmtime_error_t *error = wasmtime_linker_define_func_unchecked(
		linker, module, sizeof module - 1, name, sizeof name - 1, type, poll_oneoff, NULL,
		NULL);
	wasm_functype_delete(type);
	return error;
}
