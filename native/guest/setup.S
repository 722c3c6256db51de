/* What makes a bzImage of the flat file that follows it: the header of the Linux boot protocol
 * (Linux, Documentation/arch/x86/boot.rst), version 2.12, and its real-mode part, which only enters
 * protected mode. Loaders read the fields by their offsets. */

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
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	ljmpl *(target - boot)

	.code32
protected:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	xor %ebx, %ebx
	mov $0x100000, %eax
	jmp *%eax

	.balign 8
gdt:	.quad 0
	.quad 0x00cf9b000000ffff
	.quad 0x00cf93000000ffff
pointer:
	.word pointer - gdt - 1
base:	.long gdt - boot
target:	.long 0
	.word 0x08
	.org boot + 0x400
	.section .note.GNU-stack, "", @progbits
