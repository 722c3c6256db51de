/* Just enough JSON to check what a plugin printed and to find a member. Texts end in NUL. */
#ifndef FIRSTLIGHT_JSON_H
#define FIRSTLIGHT_JSON_H

#include <stddef.h>

/* Where the value at the first character that is not white space ends; NULL if it is not JSON. */
const char *json_end(const char *text);

/* The value of an object's member, or NULL. The object must be valid. */
const char *json_member(const char *object, const char *key);

/* The next element of an array after ``element``, the first for the array itself; NULL if none. */
const char *json_next(const char *array, const char *element);

/* Copies a string, or any other value as written, on one line; returns ``to``. */
char *json_text(const char *value, char *to, size_t size);

#endif
