/* A worker's messages: requests, checked before use, and results. */
#include "wasm.h"

#include <errno.h>
#include <string.h>

static size_t padded(size_t size)
{
	return (size + 7) & ~(size_t)7;
}

int wasm_take_event(const char **at, const char *end, struct wasm_event_view *event)
{
	struct wasm_event head;
	size_t room = (size_t)(end - *at);
	if (room < sizeof head)
		return -EPROTO;
	memcpy(&head, *at, sizeof head);
	if (head.arguments > WASM_MESSAGE_MAX || head.input > WASM_MESSAGE_MAX)
		return -EPROTO;
	size_t values = head.arguments * sizeof(struct wasm_value);
	if (room - sizeof head < values + padded(head.input))
		return -EPROTO;
	*event = (struct wasm_event_view){
		.arguments = (const struct wasm_value *)(const void *)(*at + sizeof head),
		.input = *at + sizeof head + values,
		.argument_count = head.arguments,
		.input_size = head.input,
	};
	*at += sizeof head + values + padded(head.input);
	return 0;
}

size_t wasm_result_size(const struct wasm_result *head)
{
	return sizeof *head + head->values * sizeof(struct wasm_value) +
	       padded((size_t)head->text + head->output + head->error);
}

void wasm_put_result(char *to, const struct wasm_outcome_view *outcome)
{
	const struct wasm_result *head = &outcome->head;
	struct {
		const void *bytes;
		size_t size;
	} parts[] = {
		{head, sizeof *head},
		{outcome->values, head->values * sizeof *outcome->values},
		{outcome->text, head->text},
		{outcome->output, head->output},
		{outcome->error, head->error},
	};
	char *end = to + wasm_result_size(head);
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
		memcpy(to, parts[i].bytes, parts[i].size);
		to += parts[i].size;
	}
	memset(to, 0, (size_t)(end - to));
}
