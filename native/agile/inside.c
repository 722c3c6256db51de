/* System calls for a fork of a Python zygote that Python has no names for: it enters a sandbox and
 * gives up all rights. This is a module of the stable ABI that is linked to nothing, so any
 * interpreter from 3.8 on, with any C library, can load it from a descriptor.
 *
 * Nothing relies on these calls being made: the runtime verifies the result from outside.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x03080000
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Functions of the interpreter's C library; it may lack some. */
#pragma weak dlopen
#pragma weak dlsym
#pragma weak srand
#pragma weak srandom
#pragma weak seed48

enum { EVENTS = 3 };

/* The descriptors of a zygote. */
static const long zygotes[] = {CAP_SYS_CHROOT, CAP_SYS_ADMIN, CAP_SETPCAP};

/* As the runtime sends them. */
static const struct {
	int kind;
	const char *name;
} spaces[] = {
	{CLONE_NEWNS, "mount namespace"},      {CLONE_NEWNET, "network namespace"},
	{CLONE_NEWIPC, "IPC namespace"},       {CLONE_NEWUTS, "UTS namespace"},
	{CLONE_NEWCGROUP, "cgroup namespace"},
};
enum { SPACES = sizeof spaces / sizeof *spaces };

struct kernel_action { /* of rt_sigaction, which is not the C library's */
	uintptr_t handler;
	unsigned long flags;
	uintptr_t restorer;
	uint64_t mask;
};

static PyObject *nothing(void)
{
	Py_INCREF(Py_None);
	return Py_None;
}

static PyObject *fail(const char *step)
{
	return PyErr_SetFromErrnoWithFilename(PyExc_OSError, step);
}

static long on_child(uintptr_t handler)
{
	struct kernel_action action = {.handler = handler};
	return syscall(SYS_rt_sigaction, SIGCHLD, &action, NULL, sizeof action.mask);
}

/* Children of this process are reaped as they end, unknown to its signal module. */
static PyObject *forget_children(PyObject *module, PyObject *arguments)
{
	(void)module, (void)arguments;
	return on_child(1) ? fail("SIGCHLD") : nothing();
}

/* What is forked next is born in this PID namespace. */
static PyObject *bear_in(PyObject *module, PyObject *arguments)
{
	int descriptor;
	(void)module;
	if (!PyArg_ParseTuple(arguments, "i", &descriptor))
		return NULL;
	return syscall(SYS_setns, descriptor, CLONE_NEWPID) ? fail("PID namespace") : nothing();
}

static const char *take_descriptors(const int *streams, const char *directory)
{
	if (syscall(SYS_setsid) < 0) /* else it could signal its siblings, which share its group */
		return "session";
	if (syscall(SYS_chdir, directory))
		return directory;
	long null = syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY, 0);
	if (null < 0)
		return "/dev/null";
	if (syscall(SYS_dup3, null, 0L, 0L) < 0 || syscall(SYS_dup3, streams[1], 1L, 0L) < 0 ||
	    syscall(SYS_dup3, streams[2], 2L, 0L) < 0 ||
	    syscall(SYS_dup3, streams[0], (long)EVENTS, (long)O_CLOEXEC) < 0 ||
	    syscall(SYS_close_range, EVENTS + 1L, ~0U, 0L))
		return "descriptors";
	return NULL;
}

static const char *give_up_rights(unsigned long long files, const struct sock_fprog *filter)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
	struct rlimit limit = {files, files};
	uint64_t mask = 0;
	if (on_child(0) || syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask))
		return "signals";
	if (syscall(SYS_prlimit64, 0L, RLIMIT_NOFILE, &limit, NULL))
		return "open files";
	for (size_t i = 0; i < sizeof zygotes / sizeof *zygotes; i++)
		if (syscall(SYS_prctl, PR_CAPBSET_DROP, zygotes[i], 0L, 0L, 0L))
			return "bounding set";
	if (syscall(SYS_capset, &header, none))
		return "capabilities";
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0L, filter) ? "seccomp" : NULL;
}

static PyObject *become_instance(PyObject *module, PyObject *arguments)
{
	int streams[3], entered[SPACES];
	const char *directory, *program;
	unsigned long long files;
	Py_ssize_t size;
	(void)module;
	if (!PyArg_ParseTuple(arguments, "(iii)(iiiii)sKy#", &streams[0], &streams[1], &streams[2],
			      &entered[0], &entered[1], &entered[2], &entered[3], &entered[4],
			      &directory, &files, &program, &size))
		return NULL;
	for (int i = 0; i < SPACES; i++)
		if (syscall(SYS_setns, entered[i], spaces[i].kind))
			return fail(spaces[i].name);
	struct sock_fprog filter = {(unsigned short)(size / (Py_ssize_t)sizeof(struct sock_filter)),
				    (struct sock_filter *)program};
	const char *step = take_descriptors(streams, directory);
	if (!step)
		step = give_up_rights(files, &filter);
	return step ? fail(step) : nothing();
}

/* SQLite has a random generator of its own, which forgets its state when asked for no bytes. */
static void reseed_sqlite(const char *library)
{
	void *loaded = dlopen && dlsym ? dlopen(library, RTLD_LAZY | RTLD_NOLOAD) : NULL;
	void *symbol = loaded ? dlsym(loaded, "sqlite3_randomness") : NULL;
	void (*draw)(int, void *);
	memcpy(&draw, &symbol, sizeof draw);
	if (symbol)
		draw(0, NULL);
}

/* Reseeds C libraries' generators that keep their state over a fork. */
static PyObject *reseed(PyObject *module, PyObject *arguments)
{
	const char *random, *sqlite;
	Py_ssize_t size;
	unsigned seeds[2];
	unsigned short wide[3];
	(void)module;
	if (!PyArg_ParseTuple(arguments, "y#z", &random, &size, &sqlite))
		return NULL;
	if (size < (Py_ssize_t)(sizeof seeds + sizeof wide))
		return PyErr_Format(PyExc_ValueError, "too few bytes");
	memcpy(seeds, random, sizeof seeds);
	memcpy(wide, random + sizeof seeds, sizeof wide);
	if (srand)
		srand(seeds[0]);
	if (srandom)
		srandom(seeds[1]);
	if (seed48)
		seed48(wide);
	if (sqlite)
		reseed_sqlite(sqlite);
	return nothing();
}

static PyMethodDef methods[] = {
	{"forget_children", forget_children, METH_NOARGS, "Have children reaped as they end."},
	{"bear_in", bear_in, METH_VARARGS,
	 "Have children born in the PID namespace of a descriptor."},
	{"become_instance", become_instance, METH_VARARGS,
	 "Take streams, enter namespaces and a directory, limit open files, and load a filter."},
	{"reseed", reseed, METH_VARARGS, "Reseed the C library's generators, and SQLite's."},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT, "inside", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_inside(void)
{
	return PyModule_Create(&definition);
}
