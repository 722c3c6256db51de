/* Virtio 1.x over PCI and MMIO, and MMIO's legacy version, which is QEMU's default. Polled, one
 * request at a time in a queue, so that a request's chain always begins at descriptor 0. */
#include "guest.h"

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { NEXT = 1, DEVICE_WRITES = 2, NO_INTERRUPT = 1 };
enum { VERSION_1 = 1 }; /* in the high word of the features */

/* The same registers where PCI's common configuration and MMIO have them. */
enum {
	PCI_SELECT = 0,
	PCI_OFFERED = 4,
	PCI_ACCEPT_SELECT = 8,
	PCI_ACCEPTED = 12,
	PCI_STATUS = 20,
	PCI_QUEUE = 22,
	PCI_SIZE = 24,
	PCI_ENABLE = 28,
	PCI_BELL = 30,
	PCI_DESCRIPTORS = 32,
	PCI_AVAILABLE = 40,
	PCI_USED = 48
};
enum {
	MMIO_MAGIC = 0,
	MMIO_VERSION = 4,
	MMIO_TYPE = 8,
	MMIO_OFFERED = 0x10,
	MMIO_SELECT = 0x14,
	MMIO_ACCEPTED = 0x20,
	MMIO_ACCEPT_SELECT = 0x24,
	MMIO_PAGE = 0x28,
	MMIO_QUEUE = 0x30,
	MMIO_LARGEST = 0x34,
	MMIO_SIZE = 0x38,
	MMIO_ALIGN = 0x3c,
	MMIO_FRAME = 0x40,
	MMIO_ENABLE = 0x44,
	MMIO_BELL = 0x50,
	MMIO_STATUS = 0x70,
	MMIO_DESCRIPTORS = 0x80,
	MMIO_AVAILABLE = 0x90,
	MMIO_USED = 0xa0,
	MMIO_CONFIG = 0x100
};
enum { VIRT = 0x74726976, PAGE = 4096 };

enum { PCI_COMMAND = 4, PCI_SUBSYSTEM = 0x2c, PCI_BARS = 0x10, PCI_CAPABILITIES = 0x34 };
enum { MEMORY_AND_MASTER = 6, HAS_CAPABILITIES = 0x100000, VENDOR_CAPABILITY = 9 };
enum { COMMON = 1, BELLS = 2, CONFIG = 4, MODERN_ID = 0x1040 };

/* Where QEMU's microvm has its devices; with ACPI on, only that would tell (hw/i386/microvm.h). */
enum { MICROVM_SLOTS = 24, MICROVM_SIZE = 512, MAPPED = 24 };
#define MICROVM_FIRST 0xfeb00000ULL

#define FOUR_GIB 0x100000000ULL
#define LARGE_PAGE 0x200000ULL
extern uint64_t window[512];

static volatile uint8_t *mapped[MAPPED]; /* the registers of each device on MMIO */
static unsigned mapped_count;

static void put8(volatile uint8_t *at, uint8_t value)
{
	*at = value;
}

static void put16(volatile uint8_t *at, uint16_t value)
{
	*(volatile uint16_t *)at = value;
}

static void put32(volatile uint8_t *at, uint32_t value)
{
	*(volatile uint32_t *)at = value;
}

static void put_address(volatile uint8_t *at, const volatile void *value)
{
	put32(at, (uint32_t)(uint64_t)value);
	put32(at + 4, 0);
}

static uint32_t get32(volatile uint8_t *at)
{
	return *(volatile uint32_t *)at;
}

static volatile uint8_t *map(uint64_t physical)
{
	static unsigned used;
	if (physical < FOUR_GIB)
		return (volatile uint8_t *)physical;
	if (used == 512)
		return NULL;
	window[used] = (physical & ~(LARGE_PAGE - 1)) | 0x83; /* present, writable, large */
	return (volatile uint8_t *)(FOUR_GIB + used++ * LARGE_PAGE + (physical & (LARGE_PAGE - 1)));
}

static uint64_t bar(uint32_t function, uint8_t index)
{
	uint32_t low = pci_read(function, (uint8_t)(PCI_BARS + 4 * index));
	uint64_t high =
		(low & 6) == 4 ? pci_read(function, (uint8_t)(PCI_BARS + 4 * index + 4)) : 0;
	return high << 32 | (low & ~0xfU);
}

/* Find the registers that the capabilities of a PCI function name; false if it is not modern. */
static bool pci_registers(struct virtio *device)
{
	uint32_t function = device->function;
	uint32_t command = pci_read(function, PCI_COMMAND);
	if (!(command & HAS_CAPABILITIES))
		return false;
	pci_write(function, PCI_COMMAND, (command & 0xffff) | MEMORY_AND_MASTER);
	for (uint8_t at = (uint8_t)pci_read(function, PCI_CAPABILITIES); at;) {
		uint32_t head = pci_read(function, at);
		uint8_t kind = (uint8_t)(head >> 24);
		if ((head & 0xff) == VENDOR_CAPABILITY && (kind & (COMMON | BELLS | CONFIG))) {
			uint8_t index = (uint8_t)pci_read(function, (uint8_t)(at + 4));
			uint32_t offset = pci_read(function, (uint8_t)(at + 8));
			if (kind == COMMON)
				device->registers = map(bar(function, index) + offset);
			if (kind == CONFIG)
				device->config = map(bar(function, index) + offset);
			if (kind == BELLS) {
				device->notify = map(bar(function, index) + offset);
				device->notify_step = pci_read(function, (uint8_t)(at + 16));
			}
		}
		at = (uint8_t)(head >> 8);
	}
	return device->registers && device->notify;
}

static bool find_on_pci(enum virtio_type type, struct virtio *device)
{
	for (unsigned i = 0; i < pci.virtio_functions; i++) {
		uint32_t id = pci_read(pci.virtio[i], 0) >> 16;
		uint32_t is = id >= MODERN_ID ? id - MODERN_ID
					      : pci_read(pci.virtio[i], PCI_SUBSYSTEM) >> 16;
		*device = (struct virtio){.type = is, .function = pci.virtio[i]};
		if (is == type && pci_registers(device))
			return true;
	}
	return false;
}

static bool found_at(volatile uint8_t *registers)
{
	if (mapped_count == MAPPED || !registers || get32(registers + MMIO_MAGIC) != VIRT ||
	    !get32(registers + MMIO_TYPE))
		return false;
	mapped[mapped_count++] = registers;
	return true;
}

unsigned virtio_look(void)
{
	const char *at = NULL;
	while ((at = option("virtio_mmio.device=", at))) {
		const char *text = at;
		number(&text);
		if (*text++ == '@')
			found_at(map(number(&text)));
	}
	for (unsigned i = 0; !option("virtio_mmio.device=", NULL) && i < MICROVM_SLOTS; i++)
		found_at(map(MICROVM_FIRST + MICROVM_SIZE * i));
	return mapped_count;
}

static bool find_on_mmio(enum virtio_type type, struct virtio *device)
{
	for (unsigned i = 0; i < mapped_count; i++)
		if (get32(mapped[i] + MMIO_TYPE) == type) {
			*device = (struct virtio){.type = type,
						  .registers = mapped[i],
						  .config = mapped[i] + MMIO_CONFIG,
						  .legacy = get32(mapped[i] + MMIO_VERSION) == 1};
			return true;
		}
	return false;
}

bool virtio_find(enum virtio_type type, struct virtio *device)
{
	return find_on_pci(type, device) || find_on_mmio(type, device);
}

static void set_status(struct virtio *device, uint32_t status)
{
	if (device->function)
		put8(device->registers + PCI_STATUS, (uint8_t)status);
	else
		put32(device->registers + MMIO_STATUS, status);
}

static uint32_t get_status(struct virtio *device)
{
	return device->function ? device->registers[PCI_STATUS]
				: get32(device->registers + MMIO_STATUS);
}

static uint32_t agree(struct virtio *device, uint32_t word, uint32_t wanted)
{
	volatile uint8_t *registers = device->registers;
	bool on_pci = device->function;
	put32(registers + (on_pci ? PCI_SELECT : MMIO_SELECT), word);
	wanted &= get32(registers + (on_pci ? PCI_OFFERED : MMIO_OFFERED));
	put32(registers + (on_pci ? PCI_ACCEPT_SELECT : MMIO_ACCEPT_SELECT), word);
	put32(registers + (on_pci ? PCI_ACCEPTED : MMIO_ACCEPTED), wanted);
	return wanted;
}

uint32_t virtio_begin(struct virtio *device, uint32_t wanted, const char *step)
{
	uint64_t start = now();
	set_status(device, 0);
	while (get_status(device))
		if (now() - start > PATIENCE)
			fail(step, "the device does not reset");
	set_status(device, ACKNOWLEDGE);
	set_status(device, ACKNOWLEDGE | DRIVER);
	uint32_t agreed = agree(device, 0, wanted);
	if (device->legacy) {
		put32(device->registers + MMIO_PAGE, PAGE);
		return agreed;
	}
	agree(device, 1, VERSION_1);
	set_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	if (!(get_status(device) & FEATURES_OK))
		fail(step, "the device refuses its own features");
	return agreed;
}

void virtio_queue(struct virtio *device, uint16_t number, struct queue *queue, const char *step)
{
	volatile uint8_t *registers = device->registers;
	queue->number = number;
	queue->available.flags = NO_INTERRUPT;
	if (device->function) {
		put16(registers + PCI_QUEUE, number);
		if (*(volatile uint16_t *)(registers + PCI_SIZE) < QUEUE_SIZE)
			fail(step, "the device has too short a queue");
		put16(registers + PCI_SIZE, QUEUE_SIZE);
		put_address(registers + PCI_DESCRIPTORS, queue->descriptors);
		put_address(registers + PCI_AVAILABLE, &queue->available);
		put_address(registers + PCI_USED, &queue->used);
		put16(registers + PCI_ENABLE, 1);
		uint32_t place = *(volatile uint16_t *)(registers + PCI_BELL);
		queue->bell = device->notify + place * device->notify_step;
		return;
	}
	put32(registers + MMIO_QUEUE, number);
	if (get32(registers + MMIO_LARGEST) < QUEUE_SIZE)
		fail(step, "the device has too short a queue");
	put32(registers + MMIO_SIZE, QUEUE_SIZE);
	queue->bell = registers + MMIO_BELL;
	if (device->legacy) {
		put32(registers + MMIO_ALIGN, PAGE);
		put32(registers + MMIO_FRAME, (uint32_t)((uint64_t)queue / PAGE));
		return;
	}
	put_address(registers + MMIO_DESCRIPTORS, queue->descriptors);
	put_address(registers + MMIO_AVAILABLE, &queue->available);
	put_address(registers + MMIO_USED, &queue->used);
	put32(registers + MMIO_ENABLE, 1);
}

void virtio_ready(struct virtio *device)
{
	set_status(device, get_status(device) | DRIVER_OK);
}

void virtio_post(struct virtio *device, struct queue *queue, const struct buffer *buffers,
		 unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		queue->descriptors[i].address = (uint64_t)buffers[i].at;
		queue->descriptors[i].length = buffers[i].length;
		queue->descriptors[i].flags =
			(uint16_t)((i + 1 < count ? NEXT : 0) |
				   (buffers[i].filled_by_device ? DEVICE_WRITES : 0));
		queue->descriptors[i].next = (uint16_t)(i + 1);
	}
	queue->available.ring[queue->available.index % QUEUE_SIZE] = 0;
	__asm__ volatile("" : : : "memory");
	*(volatile uint16_t *)&queue->available.index = (uint16_t)(queue->available.index + 1);
	if (device->function)
		put16(queue->bell, queue->number);
	else
		put32(queue->bell, queue->number);
}

int64_t virtio_wait(struct queue *queue, uint64_t ticks)
{
	uint64_t start = now();
	while (*(volatile uint16_t *)&queue->used.index == queue->seen) {
		if (now() - start > ticks)
			return -1;
		__asm__ volatile("pause");
	}
	__asm__ volatile("" : : : "memory");
	return queue->used.ring[queue->seen++ % QUEUE_SIZE].length;
}
