/* An exception is said on the serial port, by vector and address; nothing else is expected. */
#include "guest.h"

enum { VECTORS = 32, STUB = 16, CODE = 0x08, INTERRUPT_GATE = 0x8e00 };

struct frame {
	uint64_t vector, error, rip, cs, flags, rsp, ss;
};

extern char trap_vectors[];
void trap(const struct frame *frame);

void traps_catch(void)
{
	static struct {
		uint16_t low, selector, type, middle;
		uint32_t high, reserved;
	} gates[VECTORS];
	struct __attribute__((packed)) {
		uint16_t limit;
		uint64_t base;
	} table = {sizeof(gates) - 1, (uint64_t)gates};
	for (unsigned i = 0; i < VECTORS; i++) {
		uint64_t handler = (uint64_t)trap_vectors + STUB * i;
		gates[i].low = (uint16_t)handler;
		gates[i].selector = CODE;
		gates[i].type = INTERRUPT_GATE;
		gates[i].middle = (uint16_t)(handler >> 16);
	}
	__asm__ volatile("lidt %0" : : "m"(table), "m"(gates));
}

void trap(const struct frame *frame)
{
	uint64_t place;
	__asm__ volatile("mov %%cr2, %0" : "=r"(place));
	report("\nprobe exception %u at 0x%x, error 0x%x, address 0x%x\n", frame->vector,
	       frame->rip, frame->error, place);
	fail("exception", "the processor cannot go on");
}
