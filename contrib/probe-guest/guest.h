/* What the parts of the probe share: the machine, the text, the virtio transports. */
#pragma once
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* No wait is longer, in ticks of the TSC: half a second at 4 GHz, two at 1 GHz. */
#define PATIENCE 2000000000ULL

static inline uint64_t now(void)
{
	uint32_t low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static inline void out8(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port)
{
	uint8_t value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline void out32(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint32_t in32(uint16_t port)
{
	uint32_t value;
	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

/* main.c: how a step ends. */

/* Say that STEP cannot be done and stop the machine. WORDS are the fact. */
_Noreturn void fail(const char *step, const char *words);

/* options.c: the command line. */

void options_set(const char *line);
/* The value of the option NAME, which ends with "=", after AFTER (NULL: from the beginning). It
 * goes to the next space; NULL if there is none. */
const char *option(const char *name, const char *after);
/* A decimal or 0x number, with a K or M suffix; *AT moves behind it. */
uint64_t number(const char **at);
/* A dotted IPv4 address in host order. */
uint32_t address(const char *at);
bool is_word(const char *at, const char *word);

/* console.c: the guest's own text, and the lines for the lab, which are always on the serial port. */

bool console_open(bool vga);
/* %s, %u (uint64_t) and %x (uint64_t) only. */
void say(const char *format, ...);
void report(const char *format, ...);

/* trap.c */

void traps_catch(void);

/* tsc.c: the frequency of the TSC in Hz and where it is from; 0 if nothing tells. */

uint64_t tsc_frequency(const char **source);
/* Twelve letters, or "none". */
const char *hypervisor(void);

/* virtio.c: devices on PCI or MMIO, one request at a time in each queue. */

enum virtio_type { NETWORK = 1, BLOCK = 2, RANDOM = 4 };
enum { QUEUE_SIZE = 8 };

struct virtio {
	uint32_t type;
	uint32_t function; /* PCI address as in CONFIG_ADDRESS; 0: MMIO */
	volatile uint8_t *registers, *config, *notify;
	uint32_t notify_step;
	bool legacy;
};

/* As legacy MMIO wants it: one piece, the used ring on its own page. */
struct queue {
	struct {
		uint64_t address;
		uint32_t length;
		uint16_t flags, next;
	} descriptors[QUEUE_SIZE];
	struct {
		uint16_t flags, index, ring[QUEUE_SIZE];
	} available;
	struct {
		uint16_t flags, index;
		struct {
			uint32_t id, length;
		} ring[QUEUE_SIZE];
	} used __attribute__((aligned(4096)));
	uint16_t number, seen;
	volatile uint8_t *bell;
} __attribute__((aligned(4096)));

struct buffer {
	volatile void *at;
	uint32_t length;
	bool filled_by_device;
};

/* How many devices there are on MMIO: what the command line names, else where QEMU has them. */
unsigned virtio_look(void);
/* The registers of a device of TYPE; false if the machine has none. */
bool virtio_find(enum virtio_type type, struct virtio *device);
/* Agree on the features in WANTED (low word) and on VERSION_1; the low word agreed on. */
uint32_t virtio_begin(struct virtio *device, uint32_t wanted, const char *step);
void virtio_queue(struct virtio *device, uint16_t number, struct queue *queue, const char *step);
void virtio_ready(struct virtio *device);
void virtio_post(struct virtio *device, struct queue *queue, const struct buffer *buffers,
		 unsigned count);
/* How many bytes the device wrote; -1 if it is not done within TICKS. */
int64_t virtio_wait(struct queue *queue, uint64_t ticks);

/* pci.c */

enum { PCI_REMEMBERED = 16 };
struct pci {
	bool present;
	unsigned functions, virtio_functions;
	uint32_t virtio[PCI_REMEMBERED];
};
extern struct pci pci;

void pci_enumerate(void);
uint32_t pci_read(uint32_t function, uint8_t offset);
void pci_write(uint32_t function, uint8_t offset, uint32_t value);

/* block.c, net.c, rng.c: each begins its device; false if there is none. */

bool block_begin(void);
uint64_t block_sectors(void);
/* 4 KiB at AT, in bytes and a multiple of that; valid to the next call. */
const uint8_t *block_read(uint64_t at);
bool net_begin(void);
/* An echo request to GATEWAY and its answer, after ARP. */
void net_reach(uint32_t own, uint32_t gateway);
bool rng_begin(uint8_t *bytes, uint32_t count);

/* erofs.c: the FNV-1a sum of the file at PATH, which ends at a space. */

uint32_t erofs_sum(const char *path, uint64_t *size);
