/* Protected mode with flat segments, for what runs before the probe. */

#define FLAT_CODE 0x08
#define FLAT_DATA 0x10

	.macro flat_segments
	.balign 8
gdt:	.quad 0
	.quad 0x00cf9b000000ffff
	.quad 0x00cf93000000ffff
gdt_end:
	.endm

	.macro set_protected_mode
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	.endm

	.macro load_flat_segments
	mov $FLAT_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	.endm
