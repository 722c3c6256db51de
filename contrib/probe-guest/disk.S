/* The boot sector of a disk that holds the probe: reads its command line and the flat file, by the
 * BIOS, and enters it as the Linux boot protocol has it. guests/probe_images.py lays the disk out and
 * sets the two numbers at the end. Linked at 0x7c00. */
#include "flat.inc"

#define COMMAND_LINE 0x7e00 /* the second sector */
#define PARAMETERS 0x7000   /* Linux's boot_params, of which we give the command line */
#define STAMPS 0x6ff0
#define SERIAL 0x3f8

	.code16
	.globl boot
boot:
	mov %dl, %bl
	rdtsc
	ljmp $0, $1f
1:	xor %cx, %cx
	mov %cx, %ds
	mov %cx, %es
	mov %cx, %ss
	mov $STAMPS, %sp
	cld
	mov %eax, STAMPS
	mov %edx, STAMPS + 4
	mov %bl, drive
	mov $read_line, %si
	call read
	mov $read_probe, %si
	call read
	movl $COMMAND_LINE, PARAMETERS + 0x228
	in $0x92, %al
	or $2, %al
	out %al, $0x92 /* address line 20 */
	cli
	rdtsc
	mov %eax, STAMPS + 8
	mov %edx, STAMPS + 12
	lgdt gdt_pointer
	set_protected_mode
	ljmpl $FLAT_CODE, $protected

	.code32
protected:
	load_flat_segments
	movzwl sectors, %ecx
	shl $7, %ecx
	mov $0x10000, %esi
	mov $0x100000, %edi
	rep movsl
	mov $PARAMETERS, %esi
	mov $STAMPS, %ebx
	mov $0x100000, %eax
	jmp *%eax

	.code16
/* si: what to read */
read:
	mov drive, %dl
	mov $0x42, %ah
	int $0x13
	jc failed
	ret

failed:
	mov $words, %si
	mov $SERIAL, %dx
1:	lodsb
	test %al, %al
	jz 2f
	out %al, %dx
	jmp 1b
2:	mov $0xfe, %al
	out %al, $0x64 /* the keyboard controller's reset line */
	hlt
	jmp 2b
words:	.asciz "probe failed disk read: the BIOS cannot read the disk\n"

	.balign 4
read_line: /* size, sectors, offset, segment, first sector */
	.word 16, 1, COMMAND_LINE, 0
	.quad 1
	flat_segments
gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
drive:	.byte 0

	.org boot + 0x1ee
read_probe:
	.word 16
sectors: .word 0
	.word 0, 0x1000
first_sector: .quad 0
	.org boot + 0x1fe
	.word 0xaa55
	.section .note.GNU-stack, "", @progbits
