/* What makes a bzImage of the flat file that follows it: the header of the Linux boot protocol
 * (Linux, Documentation/arch/x86/boot.rst), version 2.12, and its real-mode part, which only enters
 * protected mode. Loaders read the fields by their offsets. */
#include "flat.inc"

	.code16
	.globl boot
boot:
	.org boot + 0x1f1
	.byte 1		 /* sectors behind this one */
	.word 1
	.long 0		 /* the flat file in units of 16 bytes: guests/probe_images.py */
	.word 0, 0xffff, 0
	.word 0xaa55
	jmp start
	.org boot + 0x202
	.ascii "HdrS"
	.word 0x20c
	.long 0
	.word 0, 0
	.byte 0
	.byte 1		 /* the rest is loaded at 1 MiB */
	.word 0
	.long 0x100000	 /* and entered there */
	.long 0, 0, 0
	.word 0
	.byte 0, 0
	.long 0		 /* the command line's address: the loader */
	.long 0x7fffffff
	.long 0x200000
	.byte 0, 0
	.word 0
	.long 511	 /* the longest command line */

	.org boot + 0x270
start: /* ds: the segment of this file */
	cli
	cld
	mov %ds, %ax
	movzwl %ax, %esi
	shl $4, %esi
	add %esi, base - boot
	lgdtl pointer - boot
	lea protected - boot(%esi), %eax
	mov %eax, target - boot
	set_protected_mode
	ljmpl *(target - boot)

	.code32
protected:
	load_flat_segments
	xor %ebx, %ebx
	mov $0x100000, %eax
	jmp *%eax

	flat_segments
pointer:
	.word gdt_end - gdt - 1
base:	.long gdt - boot
target:	.long 0
	.word FLAT_CODE
	.org boot + 0x400
	.section .note.GNU-stack, "", @progbits
