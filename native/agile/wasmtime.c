#include "wasmtime.h"

#include <dlfcn.h>

#define WASMTIME_DEFINE(type, name, parameters) type(*name) parameters;
WASMTIME_API(WASMTIME_DEFINE)

#define WASMTIME_ENTRY(type, name, parameters) {#name, &name},
static const struct {
	const char *name;
	void *pointer;
} entries[] = {WASMTIME_API(WASMTIME_ENTRY)};

int wasmtime_load(const char *path, const char **reason)
{
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	for (size_t i = 0; library && i < sizeof entries / sizeof *entries; i++) {
		void *symbol = dlsym(library, entries[i].name);
		if (!symbol) {
			*reason = dlerror();
			return -1;
		}
		*(void **)entries[i].pointer = symbol;
	}
	if (!library)
		*reason = dlerror();
	return library ? 0 : -1;
}
