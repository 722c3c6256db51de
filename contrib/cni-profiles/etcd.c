#include "etcd.h"

#include "http.h"
#include "plugin.h"

#include <arpa/inet.h>
#include <errno.h>
#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Field numbers of etcdserverpb/rpc.proto and mvccpb/kv.proto. */
enum { RANGE_KEY = 1, RANGE_END = 2, RANGE_PAIRS = 2 };
enum { PAIR_KEY = 1, PAIR_REVISION = 3, PAIR_VALUE = 5 };
enum { TXN_COMPARE = 1, TXN_SUCCESS = 2, TXN_FAILURE = 3, TXN_SUCCEEDED = 2 };
enum { COMPARE_TARGET = 2, COMPARE_KEY = 3, COMPARE_VERSION = 4, COMPARE_REVISION = 6 };
enum { BY_REVISION = 2 };
enum { DO_RANGE = 1, DO_PUT = 2, DO_DELETE = 3, PUT_KEY = 1, PUT_VALUE = 2 };
enum { VARINT = 0, BYTES = 2 };
enum { GRPC_HEAD = 5 };

struct bytes {
	unsigned char *at;
	size_t used, room;
};

struct etcd {
	int fd;
	char authority[64];
	nghttp2_session *session;
	struct bytes asked, answer;
	size_t sent;
	int status; /* gRPC's; -1 before it is known */
	char complaint[512];
	bool done;
};

static void free_bytes(struct bytes *bytes)
{
	free(bytes->at);
}
#define scoped_bytes __attribute__((cleanup(free_bytes))) struct bytes

static void append(struct bytes *to, const void *from, size_t size)
{
	if (to->used + size > to->room) {
		to->room = 2 * (to->used + size);
		if (!(to->at = realloc(to->at, to->room)))
			cni_fail("no memory is left");
	}
	if (size)
		memcpy(to->at + to->used, from, size);
	to->used += size;
}

static void put_varint(struct bytes *to, uint64_t number)
{
	do {
		unsigned char byte = (unsigned char)((number & 0x7f) | (number > 0x7f ? 0x80 : 0));
		append(to, &byte, 1);
	} while (number >>= 7);
}

static void put_number(struct bytes *to, unsigned field, int64_t number)
{
	put_varint(to, field << 3 | VARINT);
	put_varint(to, (uint64_t)number);
}

static void put_bytes(struct bytes *to, unsigned field, const void *from, size_t size)
{
	put_varint(to, field << 3 | BYTES);
	put_varint(to, size);
	append(to, from, size);
}

static void put_text(struct bytes *to, unsigned field, const char *text)
{
	put_bytes(to, field, text, strlen(text));
}

static void put_message(struct bytes *to, unsigned field, const struct bytes *message)
{
	put_bytes(to, field, message->at, message->used);
}

/* A message that is being read, and the field that was read last: a number, or bytes. */
struct reader {
	const unsigned char *at, *end;
	unsigned field;
	uint64_t number;
	const unsigned char *bytes;
};

static uint64_t get_varint(struct reader *reader)
{
	uint64_t number = 0;
	for (unsigned shift = 0; reader->at < reader->end && shift < 64; shift += 7) {
		unsigned char byte = *reader->at++;
		number |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80))
			return number;
	}
	cni_fail("etcd's answer cannot be read");
}

static bool next(struct reader *reader)
{
	if (reader->at >= reader->end)
		return false;
	uint64_t tag = get_varint(reader);
	reader->field = (unsigned)(tag >> 3);
	reader->number = get_varint(reader);
	if ((tag & 7) == VARINT)
		return true;
	if ((tag & 7) != BYTES || reader->number > (uint64_t)(reader->end - reader->at))
		cni_fail("etcd's answer cannot be read");
	reader->bytes = reader->at;
	reader->at += reader->number;
	return true;
}

static ssize_t give(nghttp2_session *session, int32_t stream, uint8_t *to, size_t size,
		    uint32_t *flags, nghttp2_data_source *source, void *user)
{
	struct etcd *etcd = user;
	size_t left = etcd->asked.used - etcd->sent, part = left < size ? left : size;
	(void)session, (void)stream, (void)source;
	memcpy(to, etcd->asked.at + etcd->sent, part);
	etcd->sent += part;
	if (etcd->sent == etcd->asked.used)
		*flags |= NGHTTP2_DATA_FLAG_EOF;
	return (ssize_t)part;
}

static ssize_t on_send(nghttp2_session *session, const uint8_t *data, size_t size, int flags,
		       void *user)
{
	struct etcd *etcd = user;
	(void)session, (void)flags;
	return process_write_all(etcd->fd, (const char *)data, size) ? NGHTTP2_ERR_CALLBACK_FAILURE
								     : (ssize_t)size;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data,
		   size_t size, void *user)
{
	struct etcd *etcd = user;
	(void)session, (void)flags, (void)stream;
	append(&etcd->answer, data, size);
	return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
		     size_t name_size, const uint8_t *value, size_t size, uint8_t flags, void *user)
{
	struct etcd *etcd = user;
	(void)session, (void)frame, (void)name_size, (void)flags;
	if (!strcmp((const char *)name, "grpc-status"))
		etcd->status = atoi((const char *)value);
	if (!strcmp((const char *)name, "grpc-message"))
		snprintf(etcd->complaint, sizeof etcd->complaint, "%.*s", (int)size, value);
	return 0;
}

static int on_close(nghttp2_session *session, int32_t stream, uint32_t code, void *user)
{
	struct etcd *etcd = user;
	(void)session, (void)stream, (void)code;
	etcd->done = true;
	return 0;
}

struct etcd *etcd_open(const char *endpoint)
{
	struct etcd *etcd = calloc(1, sizeof *etcd);
	nghttp2_session_callbacks *callbacks = NULL;
	char host[64];
	unsigned short port;
	if (sscanf(endpoint, "http://%63[0-9.]:%hu", host, &port) != 2)
		cni_fail("the etcd endpoint %s is not of the form http://ADDRESS:PORT", endpoint);
	if (!etcd || nghttp2_session_callbacks_new(&callbacks))
		cni_fail("no memory is left");
	etcd->fd = connect_tcp("etcd", host, port);
	snprintf(etcd->authority, sizeof etcd->authority, "%.40s:%hu", host, port);
	nghttp2_session_callbacks_set_send_callback(callbacks, on_send);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
	nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
	nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
	if (nghttp2_session_client_new(&etcd->session, callbacks, etcd) ||
	    nghttp2_submit_settings(etcd->session, NGHTTP2_FLAG_NONE, NULL, 0))
		cni_fail("no memory is left");
	nghttp2_session_callbacks_del(callbacks);
	return etcd;
}

#define HEADER(name, value, size)                                              \
	{                                                                      \
		(uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, size, \
			NGHTTP2_NV_FLAG_NONE                                   \
	}

static void exchange(struct etcd *etcd)
{
	unsigned char part[16384];
	while (!etcd->done) {
		ssize_t n = -1;
		if (!nghttp2_session_send(etcd->session))
			do
				n = read(etcd->fd, part, sizeof part);
			while (n < 0 && errno == EINTR);
		if (n <= 0)
			cni_fail("etcd on %s hung up: %s", etcd->authority,
				 n ? strerror(errno) : "connection closed");
		if (nghttp2_session_mem_recv(etcd->session, part, (size_t)n) < 0)
			cni_fail("etcd's answer cannot be read");
	}
}

/* The answer to one call: what follows gRPC's head of five bytes. */
static struct reader call(struct etcd *etcd, const char *path, const struct bytes *message)
{
	nghttp2_nv headers[] = {
		HEADER(":method", "POST", 4),
		HEADER(":scheme", "http", 4),
		HEADER(":path", path, strlen(path)),
		HEADER(":authority", etcd->authority, strlen(etcd->authority)),
		HEADER("content-type", "application/grpc", 16),
		HEADER("te", "trailers", 8),
	};
	uint32_t size = htonl((uint32_t)message->used);
	etcd->asked.used = etcd->answer.used = etcd->sent = 0;
	etcd->status = -1;
	etcd->done = false;
	append(&etcd->asked, &(char){0}, 1);
	append(&etcd->asked, &size, sizeof size);
	append(&etcd->asked, message->at, message->used);
	nghttp2_data_provider body = {.read_callback = give};
	if (nghttp2_submit_request(etcd->session, NULL, headers, sizeof headers / sizeof *headers,
				   &body, NULL) < 0)
		cni_fail("no memory is left");
	exchange(etcd);
	if (etcd->status)
		cni_fail("%s", *etcd->complaint ? etcd->complaint : "etcd gave no answer");
	if (etcd->answer.used < GRPC_HEAD)
		cni_fail("etcd's answer cannot be read");
	return (struct reader){.at = etcd->answer.at + GRPC_HEAD,
			       .end = etcd->answer.at + etcd->answer.used};
}

static struct pair read_pair(const struct reader *from)
{
	struct pair pair = {0};
	struct reader reader = {.at = from->bytes, .end = from->bytes + from->number};
	while (next(&reader))
		if (reader.field == PAIR_REVISION)
			pair.revision = (int64_t)reader.number;
		else if (reader.field == PAIR_KEY)
			pair.key = text_of("%.*s", (int)reader.number, reader.bytes);
		else if (reader.field == PAIR_VALUE)
			pair.value = text_of("%.*s", (int)reader.number, reader.bytes);
	if (!pair.key || !pair.value || !json_end(pair.value))
		cni_fail("etcd has a key whose value is not JSON");
	return pair;
}

static struct pairs range(struct etcd *etcd, const struct bytes *message)
{
	struct pairs pairs = {0};
	struct reader reader = call(etcd, "/etcdserverpb.KV/Range", message);
	while (next(&reader)) {
		if (reader.field != RANGE_PAIRS)
			continue;
		pairs.all = realloc(pairs.all, (pairs.count + 1) * sizeof *pairs.all);
		if (!pairs.all)
			cni_fail("no memory is left");
		pairs.all[pairs.count++] = read_pair(&reader);
	}
	return pairs;
}

struct pairs etcd_get(struct etcd *etcd, const char *key)
{
	scoped_bytes message = {0};
	put_text(&message, RANGE_KEY, key);
	return range(etcd, &message);
}

struct pairs etcd_get_all(struct etcd *etcd, const char *prefix)
{
	scoped_bytes message = {0};
	char *end FREE_SCOPE = text_of("%s", prefix);
	end[strlen(end) - 1]++;
	put_text(&message, RANGE_KEY, prefix);
	put_text(&message, RANGE_END, end);
	return range(etcd, &message);
}

/* What is to be done if the key's last change is that revision; else the key is read. */
static bool transact(struct etcd *etcd, const char *key, int64_t revision, unsigned what,
		     const struct bytes *operation)
{
	scoped_bytes compare = {0}, key_alone = {0}, success = {0}, failure = {0}, message = {0};
	if (revision)
		put_number(&compare, COMPARE_TARGET, BY_REVISION);
	put_text(&compare, COMPARE_KEY, key);
	put_number(&compare, revision ? COMPARE_REVISION : COMPARE_VERSION, revision);
	put_text(&key_alone, RANGE_KEY, key);
	put_message(&success, what, operation);
	put_message(&failure, DO_RANGE, &key_alone);
	put_message(&message, TXN_COMPARE, &compare);
	put_message(&message, TXN_SUCCESS, &success);
	put_message(&message, TXN_FAILURE, &failure);
	struct reader reader = call(etcd, "/etcdserverpb.KV/Txn", &message);
	while (next(&reader))
		if (reader.field == TXN_SUCCEEDED)
			return reader.number;
	return false;
}

bool etcd_set(struct etcd *etcd, const char *key, const char *value, int64_t revision)
{
	scoped_bytes put = {0};
	put_text(&put, PUT_KEY, key);
	put_text(&put, PUT_VALUE, value);
	return transact(etcd, key, revision, DO_PUT, &put);
}

bool etcd_delete(struct etcd *etcd, const char *key, int64_t revision)
{
	scoped_bytes delete = {0};
	put_text(&delete, RANGE_KEY, key);
	return transact(etcd, key, revision, DO_DELETE, &delete);
}

void free_pairs(struct pairs *pairs)
{
	for (size_t i = 0; i < pairs->count; i++) {
		free(pairs->all[i].key);
		free(pairs->all[i].value);
	}
	free(pairs->all);
}
