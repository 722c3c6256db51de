/* The system calls that explain a start, and what to take from each one's arguments.
 *
 * All others are charged to the user-space time around these: waiting (futex, poll, nanosleep), memory
 * (mmap, brk) and clocks. Those that a start can hang in are IGNOREd by name.
 *
 * PLAIN: numbers only. SPACES: likewise, and it may make namespaces. PATHn: argument n is a path.
 * MOUNT: target and type. FD: argument 0 is a descriptor. SEND, SENDMSG: a descriptor, and the
 * message if it is a netlink socket. ADDRESS: a descriptor and a socket address. CLONE3: a struct
 * whose first word holds the flags. WORD1: the 32-bit word at argument 1. ASLEEP and PARKED are
 * ignored too: their reason is known without unwinding the stack, which costs more than anything else.
 */
/* clang-format off */
#ifndef FIRSTLIGHT_CALLS_H
#define FIRSTLIGHT_CALLS_H

enum take { IGNORE, PLAIN, SPACES, PATH0, PATH1, MOUNT, FD, SEND, SENDMSG, ADDRESS, CLONE3, WORD1,
	    ASLEEP = 100, PARKED };

#define CALLS_EVERYWHERE(CALL) \
	CALL(futex, PARKED) CALL(nanosleep, ASLEEP) CALL(clock_nanosleep, ASLEEP) \
	CALL(ppoll, IGNORE) CALL(pselect6, IGNORE) CALL(epoll_pwait, IGNORE) \
	CALL(epoll_pwait2, IGNORE) CALL(rt_sigsuspend, IGNORE) CALL(rt_sigtimedwait, IGNORE) \
	CALL(unshare, SPACES) CALL(setns, FD) CALL(clone, SPACES) CALL(clone3, CLONE3) \
	CALL(execve, PLAIN) CALL(execveat, PLAIN) CALL(exit_group, PLAIN) \
	CALL(mount, MOUNT) CALL(umount2, PATH0) CALL(pivot_root, PATH0) CALL(chroot, PATH0) \
	CALL(move_mount, PATH1) CALL(open_tree, PATH1) CALL(fsopen, PATH0) CALL(fsconfig, PLAIN) \
	CALL(fsmount, PLAIN) CALL(mount_setattr, PATH1) CALL(fspick, PATH1) \
	CALL(prctl, PLAIN) CALL(capget, PLAIN) CALL(capset, PLAIN) CALL(seccomp, PLAIN) \
	CALL(keyctl, PLAIN) CALL(setuid, PLAIN) CALL(setgid, PLAIN) CALL(setgroups, PLAIN) \
	CALL(setresuid, PLAIN) CALL(setresgid, PLAIN) CALL(setsid, PLAIN) CALL(personality, PLAIN) \
	CALL(prlimit64, PLAIN) CALL(sethostname, PLAIN) CALL(setdomainname, PLAIN) \
	CALL(umask, PLAIN) CALL(setpriority, PLAIN) CALL(sched_setaffinity, PLAIN) \
	CALL(openat, PATH1) CALL(openat2, PATH1) CALL(newfstatat, PATH1) CALL(statx, PATH1) \
	CALL(faccessat, PATH1) CALL(faccessat2, PATH1) CALL(readlinkat, PATH1) CALL(mkdirat, PATH1) \
	CALL(unlinkat, PATH1) CALL(mknodat, PATH1) CALL(symlinkat, PATH0) CALL(linkat, PATH1) \
	CALL(renameat, PATH1) CALL(renameat2, PATH1) CALL(fchmodat, PATH1) CALL(fchownat, PATH1) \
	CALL(statfs, PATH0) CALL(chdir, PATH0) CALL(fchdir, FD) CALL(getcwd, PLAIN) \
	CALL(inotify_add_watch, PATH1) CALL(name_to_handle_at, PATH1) \
	CALL(read, FD) CALL(pread64, FD) CALL(readv, FD) CALL(write, FD) CALL(writev, FD) \
	CALL(pwrite64, FD) CALL(getdents64, FD) CALL(fstat, FD) CALL(fstatfs, FD) CALL(close, PLAIN) \
	CALL(ftruncate, FD) CALL(fchmod, FD) CALL(fchown, FD) CALL(fcntl, FD) CALL(flock, FD) \
	CALL(fsync, FD) CALL(fdatasync, FD) CALL(ioctl, FD) CALL(lseek, FD) \
	CALL(sendfile, FD) CALL(copy_file_range, FD) CALL(splice, FD) \
	CALL(memfd_create, PATH0) CALL(mq_open, PATH0) CALL(pipe2, PLAIN) \
	CALL(socket, PLAIN) CALL(socketpair, PLAIN) CALL(bind, ADDRESS) CALL(connect, ADDRESS) \
	CALL(listen, FD) CALL(accept4, FD) CALL(getsockname, FD) CALL(setsockopt, FD) \
	CALL(getsockopt, FD) CALL(shutdown, FD) CALL(sendto, SEND) CALL(sendmsg, SENDMSG) \
	CALL(recvfrom, FD) CALL(recvmsg, FD) CALL(recvmmsg, FD) CALL(sendmmsg, FD) \
	CALL(bpf, WORD1) CALL(perf_event_open, PLAIN) CALL(init_module, PLAIN) \
	CALL(finit_module, PLAIN) CALL(wait4, PLAIN) CALL(waitid, PLAIN) \
	CALL(rt_sigaction, PLAIN) CALL(rt_sigprocmask, PLAIN) CALL(kill, PLAIN) CALL(pidfd_open, PLAIN) \
	CALL(pidfd_send_signal, FD) CALL(tgkill, PLAIN) \
	CALL(close_range, PLAIN) CALL(landlock_restrict_self, PLAIN) \
	CALL(io_uring_setup, PLAIN) CALL(io_uring_enter, PLAIN) CALL(io_uring_register, PLAIN)

#if defined(__x86_64__)
#define CALLS(CALL) CALLS_EVERYWHERE(CALL) \
	CALL(poll, IGNORE) CALL(select, IGNORE) CALL(epoll_wait, IGNORE) CALL(pause, IGNORE) \
	CALL(open, PATH0) CALL(stat, PATH0) CALL(lstat, PATH0) CALL(access, PATH0) \
	CALL(readlink, PATH0) CALL(mkdir, PATH0) CALL(rmdir, PATH0) CALL(unlink, PATH0) \
	CALL(mknod, PATH0) CALL(symlink, PATH0) CALL(link, PATH1) CALL(rename, PATH0) \
	CALL(chown, PATH0) CALL(lchown, PATH0) CALL(fork, PLAIN) CALL(vfork, PLAIN) \
	CALL(chmod, PATH0) CALL(pipe, PLAIN) CALL(accept, FD) CALL(dup2, PLAIN)
#else
#define CALLS(CALL) CALLS_EVERYWHERE(CALL)
#endif
#endif
