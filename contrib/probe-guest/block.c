/* A virtio disk, read 4 KiB at a time. */
#include "guest.h"

enum { SECTOR = 512, PAGE = 4096, IN = 0, OK = 0 };

static struct virtio device;
static struct queue requests;
static struct {
	uint32_t type, reserved;
	uint64_t sector;
} header;
static volatile uint8_t status;
static uint8_t page[PAGE] __attribute__((aligned(4096)));

bool block_begin(void)
{
	if (!virtio_find(BLOCK, &device))
		return false;
	virtio_begin(&device, 0, "block");
	virtio_queue(&device, 0, &requests, "block");
	virtio_ready(&device);
	return true;
}

uint64_t block_sectors(void)
{
	volatile uint32_t *capacity = (volatile uint32_t *)device.config;
	return (uint64_t)capacity[1] << 32 | capacity[0];
}

const uint8_t *block_read(uint64_t at)
{
	const struct buffer parts[] = {
		{&header, sizeof header, false}, {page, PAGE, true}, {&status, 1, true}};
	header.type = IN;
	header.sector = at / SECTOR;
	status = 0xff;
	virtio_post(&device, &requests, parts, 3);
	if (virtio_wait(&requests, PATIENCE) < 0)
		fail("block", "the disk does not answer");
	if (status != OK)
		fail("block", "the disk cannot be read there");
	return page;
}
