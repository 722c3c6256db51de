/* What the worker gives up before it reads a module, beyond the denials of its sandbox: executing
 * programs, making processes and sockets, sending signals. Unlisted calls return ENOSYS.
 */
#include "wasm_module.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#if defined(__x86_64__)
enum { ARCHITECTURE = AUDIT_ARCH_X86_64 };
#elif defined(__aarch64__)
enum { ARCHITECTURE = (int)AUDIT_ARCH_AARCH64 };
#endif

/* clang-format off */
static const int allowed[] = {
	SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev,
	SYS_close, SYS_lseek, SYS_fcntl, SYS_ioctl, SYS_fstat, SYS_newfstatat, SYS_statx, SYS_openat,
	SYS_openat2, SYS_mkdirat, SYS_unlinkat, SYS_renameat, SYS_renameat2, SYS_linkat, SYS_symlinkat,
	SYS_readlinkat, SYS_faccessat, SYS_faccessat2, SYS_utimensat, SYS_getdents64, SYS_fsync,
	SYS_fdatasync, SYS_ftruncate, SYS_fallocate, SYS_fadvise64, SYS_getcwd,
	/* memory, threads, signals, time */
	SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_madvise, SYS_brk, SYS_membarrier,
	SYS_memfd_create, SYS_futex, SYS_set_robust_list, SYS_rseq, SYS_sched_yield,
	SYS_sched_getaffinity, SYS_exit, SYS_exit_group, SYS_gettid, SYS_getpid, SYS_tgkill, SYS_prctl,
	SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sigaltstack, SYS_restart_syscall,
	SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_nanosleep, SYS_getrandom,
	/* what connections need */
	SYS_recvmsg, SYS_recvfrom, SYS_sendmsg, SYS_sendto, SYS_epoll_create1, SYS_epoll_ctl,
	SYS_epoll_pwait, SYS_ppoll, SYS_eventfd2,
#if defined(__x86_64__)
	SYS_mkdir, SYS_rmdir, SYS_unlink, SYS_rename, SYS_readlink, SYS_access, SYS_poll,
	SYS_epoll_wait, SYS_open, SYS_stat, SYS_lstat,
#endif
};
/* clang-format on */

enum { ALLOWED = sizeof allowed / sizeof *allowed, HEAD = 4, TAIL = 6 };
_Static_assert(ALLOWED + TAIL < 255, "a jump of classic BPF is one byte");

int wasm_confine(void)
{
	struct sock_filter program[HEAD + ALLOWED + TAIL] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)ARCHITECTURE, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	const struct sock_filter tail[TAIL] = {
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	for (unsigned i = 0; i < ALLOWED; i++)
		program[HEAD + i] = (struct sock_filter)BPF_JUMP(
			BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i],
			(unsigned char)(ALLOWED - 1 - i + TAIL - 1), 0);
	for (unsigned i = 0; i < TAIL; i++)
		program[HEAD + ALLOWED + i] = tail[i];
	struct sock_fprog filter = {sizeof program / sizeof *program, program};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
		return -errno;
	return 0;
}
