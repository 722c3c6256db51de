/* A virtio source of random bytes. */
#include "guest.h"

static struct virtio device;
static struct queue requests;

bool rng_begin(uint8_t *bytes, uint32_t count)
{
	if (!virtio_find(RANDOM, &device))
		return false;
	virtio_begin(&device, 0, "rng");
	virtio_queue(&device, 0, &requests, "rng");
	virtio_ready(&device);
	virtio_post(&device, &requests, &(struct buffer){bytes, count, true}, 1);
	if (virtio_wait(&requests, PATIENCE) < 1)
		fail("rng", "the device gives no bytes");
	return true;
}
