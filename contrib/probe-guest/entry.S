/* From the hypervisor's or loader's entry to start(), in long mode, with the first 4 GiB mapped as
 * they are. Three entries: PVH (the note below), and the Linux boot protocol's, of 32 bits, where the
 * kernel begins, and of 64 bits, where the ELF file says. */

#define CODE 0x08
#define DATA 0x10
#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define EFER 0xc0000080
#define EFER_LME 0x100
#define CR4_PAE 0x20
#define CR0_PG_PE 0x80000001
#define PRESENT_WRITABLE 0x3
#define LARGE 0x80
/* Vectors for which the processor pushes an error code: 8, 10-14, 17, 21, 29, 30. */
#define WITH_ERROR 0x60227d00

	.section .note.pvh, "a", @note
	.long 4, 4, XEN_ELFNOTE_PHYS32_ENTRY
	.asciz "Xen"
	.long enter_pvh

	.section .text.entry, "ax"
	.code32
/* esi: Linux's boot_params, ebx: 0, or our own boot loader's two stamps */
enter_linux32:
	rdtsc
	mov %eax, %ebp
	mov $bss_start, %edi
	mov $bss_words, %ecx
	xor %eax, %eax
	rep stosl /* a flat file's loader knows of no bss */
	mov %edx, %edi
	xchg %esi, %ebp
	xchg %ebx, %ebp
	xor %esp, %esp
	jmp to_long_mode

/* ebx: PVH's hvm_start_info */
	.globl enter_pvh
enter_pvh:
	rdtsc
	mov %eax, %esi
	mov %edx, %edi
	xor %ebp, %ebp
	mov $1, %esp

/* edi, esi: the stamp of the first instruction, ebx: what we were told, ebp: when we were loaded,
 * esp: whether by PVH */
to_long_mode:
	lgdt gdt_pointer
	mov $tables, %eax
	mov %eax, %cr3
	mov %cr4, %eax
	or $CR4_PAE, %eax
	mov %eax, %cr4
	mov $EFER, %ecx
	rdmsr
	or $EFER_LME, %eax
	wrmsr
	mov %cr0, %eax
	or $CR0_PG_PE, %eax
	mov %eax, %cr0
	ljmp $CODE, $1f

	.code64
1:	mov %esi, %eax
	shl $32, %rdi
	or %rax, %rdi
	mov %ebx, %esi
	mov %ebp, %edx
	mov %esp, %ecx
	jmp enter_c

/* rsi: Linux's boot_params */
	.globl enter_direct
enter_direct:
	rdtsc
	shl $32, %rdx
	lea (%rdx, %rax), %rdi
	lgdt gdt_pointer
	mov $tables, %eax
	mov %rax, %cr3
	mov $stack_top, %esp
	pushq $CODE
	pushq $1f
	lretq
1:	xor %edx, %edx
	xor %ecx, %ecx

enter_c:
	mov $DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $stack_top, %esp
	cld
	call start
1:	hlt
	jmp 1b

	.globl trap_vectors
	.balign 16
trap_vectors:
number = 0
	.rept 32
	.balign 16
	.if !(WITH_ERROR >> number & 1)
	pushq $0
	.endif
	pushq $number
	jmp 1f
	number = number + 1
	.endr
1:	mov %rsp, %rdi
	call trap

	.section .data
	.balign 4096
tables:	.quad middle + PRESENT_WRITABLE
	.fill 511, 8, 0
middle:	.quad pages + PRESENT_WRITABLE
	.quad pages + 0x1000 + PRESENT_WRITABLE
	.quad pages + 0x2000 + PRESENT_WRITABLE
	.quad pages + 0x3000 + PRESENT_WRITABLE
	.quad window + PRESENT_WRITABLE
	.fill 507, 8, 0
pages:
number = 0
	.rept 2048
	.quad number * 0x200000 + LARGE + PRESENT_WRITABLE
	number = number + 1
	.endr
	.globl window /* the 1 GiB after 4 GiB, for what lies higher in physical memory */
window:	.fill 512, 8, 0

gdt:	.quad 0
	.quad 0x00af9b000000ffff
	.quad 0x00cf93000000ffff
gdt_pointer:
	.word . - gdt - 1
	.quad gdt

	.section .bss
	.balign 16
	.skip 8192
stack_top:
	.section .note.GNU-stack, "", @progbits
