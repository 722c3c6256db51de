/* A worker's clock: it advances wasmtime's epoch while an instance runs, and otherwise sleeps. */
#include "common/clock.h"
#include "wasm_module.h"

#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { IDLE_TICKS = 20 };

static atomic_int running; /* instances */
static atomic_uint is_asleep; /* a futex */

void wasm_clock_begin(void)
{
	atomic_fetch_add(&running, 1);
	if (atomic_load(&is_asleep)) {
		atomic_store(&is_asleep, 0);
		syscall(SYS_futex, &is_asleep, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	}
}

void wasm_clock_end(void)
{
	atomic_fetch_sub(&running, 1);
}

/* Whoever raises running looks at is_asleep afterwards, and here is_asleep is set before running
 * is read: one of the two sees the other. */
static void sleep_while_idle(void)
{
	atomic_store(&is_asleep, 1);
	while (!atomic_load(&running) && atomic_load(&is_asleep))
		syscall(SYS_futex, &is_asleep, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
	atomic_store(&is_asleep, 0);
}

_Noreturn void wasm_clock_run(wasm_engine_t *engine, void (*tick)(int64_t now))
{
	struct timespec turn = {0, WASM_TICK_NS};
	int64_t counted = clock_now();
	for (int idle = 0;;) {
		clock_nanosleep(CLOCK_MONOTONIC, 0, &turn, NULL);
		int64_t now = clock_now();
		/* Time counts, not turns, which may be rare where CPU time is limited. */
		for (; counted + WASM_TICK_NS <= now; counted += WASM_TICK_NS)
			wasmtime_engine_increment_epoch(engine);
		tick(now);
		idle = atomic_load(&running) ? 0 : idle + 1;
		if (idle < IDLE_TICKS)
			continue;
		sleep_while_idle();
		counted = clock_now();
		idle = 0;
	}
}
