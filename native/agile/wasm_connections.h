/* The connections of a worker's clients, which several threads wait for. */
#ifndef FIRSTLIGHT_WASM_CONNECTIONS_H
#define FIRSTLIGHT_WASM_CONNECTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct wasm_connection;

/* To be called once, before any other. Returns a descriptor that can be read after the last connection
 * was closed, or a negative errno. */
int wasm_connections_open(void);

/* Adds a client's socket, which is closed here if there is no place for it. */
void wasm_connections_add(int descriptor);

bool wasm_connections_empty(void);

/* Waits for the next message, into a buffer of WASM_MESSAGE_MAX bytes, and returns its size. The
 * connection is held until it is released. */
size_t wasm_connections_receive(struct wasm_connection **connection, char *message);

/* Returns 0 or a negative errno, also if the reader takes nothing for a second. */
int wasm_connection_send(const struct wasm_connection *connection, const void *message,
			 size_t size);

/* Ends the hold, and the connection if it is not to be kept. */
void wasm_connection_release(struct wasm_connection *connection, bool keep);

#endif
