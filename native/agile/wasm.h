/* Messages of a WebAssembly worker (wasm_worker.c), in Python: src/firstlight/agile/wasm/wire.py.
 *
 * They go over seqpacket sockets, one record each, integers in host order.
 *
 * The worker's standard input is a control socket. Each message there carries the descriptor of a
 * connection, a socket on which a client sends requests and reads answers; the message's bytes are
 * ignored. The worker ends when the control socket and the last connection have ended.
 */
#ifndef FIRSTLIGHT_WASM_H
#define FIRSTLIGHT_WASM_H

#include <stddef.h>
#include <stdint.h>

enum {
	WASM_MESSAGE_MAX = 192 * 1024, /* of every message */
	WASM_OUTPUT_MAX = 48 * 1024, /* kept of each of an instance's standard output and error */
	WASM_TEXT_MAX = 2048, /* of the words of a failure */
	WASM_VALUES_MAX = 64, /* parameters or results of a handler */
	WASM_THREADS_MAX = 64,
	WASM_MODULE_MAX = 256 << 20,
	WASM_CONNECTIONS_MAX = 256,
};

enum wasm_kind { WASM_INTEGER, WASM_REAL };

struct wasm_value {
	uint32_t kind, padding;
	union {
		int64_t integer;
		double real;
	} of;
};

/* Followed by count events. */
struct wasm_request {
	uint64_t id;
	uint32_t count, padding;
};

/* Followed by the arguments, struct wasm_value, and by as many bytes of standard input; then by
 * zeros up to the next multiple of 8. */
struct wasm_event {
	uint32_t arguments, input;
};

/* As many results of a request's events, from the first on, as fit a message. */
struct wasm_answer {
	uint64_t id;
	uint32_t first, count;
};

enum wasm_outcome {
	WASM_RETURNED,
	WASM_REFUSED, /* the handler does not take the event */
	WASM_FAILED, /* no instance could be made */
	WASM_TRAPPED,
	WASM_LATE, /* it did not end in time */
	WASM_EXITED,
};

/* Followed by the values, the failure's words, and what was written to standard output and error;
 * then by zeros up to the next multiple of 8. */
struct wasm_result {
	uint32_t outcome, values;
	int32_t status; /* of WASM_EXITED */
	uint32_t text, output, error;
	int64_t began, finished; /* ns of CLOCK_MONOTONIC: the handler's call */
};

struct wasm_event_view {
	const struct wasm_value *arguments;
	const char *input;
	uint32_t argument_count, input_size;
};

/* One event's answer, before it is a message. */
struct wasm_outcome_view {
	struct wasm_result head;
	struct wasm_value values[WASM_VALUES_MAX];
	char text[WASM_TEXT_MAX];
	char output[WASM_OUTPUT_MAX], error[WASM_OUTPUT_MAX];
};

/* Takes the next event from *at on. Returns 0, or -EPROTO if what is there up to end is none. */
int wasm_take_event(const char **at, const char *end, struct wasm_event_view *event);

/* The size of an answer's part, and the part itself, which has that size. */
size_t wasm_result_size(const struct wasm_result *head);
void wasm_put_result(char *to, const struct wasm_outcome_view *outcome);

_Static_assert(sizeof(struct wasm_value) == 16, "wasm/wire.py has the same");
_Static_assert(sizeof(struct wasm_request) == 16, "wasm/wire.py has the same");
_Static_assert(sizeof(struct wasm_event) == 8, "wasm/wire.py has the same");
_Static_assert(sizeof(struct wasm_answer) == 16, "wasm/wire.py has the same");
_Static_assert(sizeof(struct wasm_result) == 40, "wasm/wire.py has the same");

#endif
