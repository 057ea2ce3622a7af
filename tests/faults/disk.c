/* A disk with faults, for tests/it/disk_faults.rs: loaded before the C library (LD_PRELOAD), it lets calls on files
 * below the folder $FAULTY_FOLDER fail as the file $FAULTY_HOW says: ENOSPC, EIO or EROFS; `short`, a disk that is full
 * in the middle of a write; `fsync`, that only what is said to be durable fails; `fsync-once`, the next time and
 * then no more. Empty or missing: nothing fails. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPENING, WRITING, GROWING, SYNCING, REMOVING };

static int below(const char *path)
{
	const char *folder = getenv("FAULTY_FOLDER");
	return folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int below_fd(int fd)
{
	char link[64], path[4096];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, sizeof path - 1);
	if (length < 0)
		return 0;
	path[length] = 0;
	return below(path);
}

/* What is to go wrong with such a call; 0 if nothing. */
static int fault(enum kind kind, char how[32])
{
	const char *file = getenv("FAULTY_HOW");
	int fd = file ? (int)syscall(SYS_openat, AT_FDCWD, file, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return 0;
	long length = syscall(SYS_read, fd, how, 31);
	syscall(SYS_close, fd);
	how[length > 0 ? length : 0] = 0;
	int writes = kind == WRITING || kind == GROWING;
	if (strcmp(how, "ENOSPC") == 0 || strcmp(how, "short") == 0)
		return writes ? ENOSPC : 0;
	if (strcmp(how, "EIO") == 0)
		return writes || kind == SYNCING ? EIO : 0;
	if (strcmp(how, "EROFS") == 0)
		return EROFS;
	if (strncmp(how, "fsync", 5) == 0 && kind == SYNCING) {
		if (strcmp(how, "fsync-once") == 0) {
			fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_TRUNC | O_CLOEXEC);
			syscall(SYS_close, fd);
		}
		return EIO;
	}
	return 0;
}

#define REAL(name) \
	static __typeof__(name) *real; \
	if (!real) \
		real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define FAULT(condition, kind, instead) \
	do { \
		int saved = errno; \
		char how[32]; \
		int failed = (condition) ? fault(kind, how) : 0; \
		if (failed) { \
			instead; \
			errno = failed; \
			return -1; \
		} \
		errno = saved; \
	} while (0)

#define FAIL(condition, kind) FAULT(condition, kind, (void)how)

/* Some of it is written where that is how the disk fails, and what is left fails when it is tried again. */
#define WRITE(condition, count, some) \
	FAULT(condition, WRITING, if (strcmp(how, "short") == 0 && (count) > 1) return some)

ssize_t write(int fd, const void *data, size_t count)
{
	REAL(write);
	WRITE(below_fd(fd), count, real(fd, data, count / 2));
	return real(fd, data, count);
}

ssize_t pwrite(int fd, const void *data, size_t count, off_t at)
{
	REAL(pwrite);
	WRITE(below_fd(fd), count, real(fd, data, count / 2, at));
	return real(fd, data, count, at);
}

ssize_t pwrite64(int fd, const void *data, size_t count, off64_t at)
{
	REAL(pwrite64);
	WRITE(below_fd(fd), count, real(fd, data, count / 2, at));
	return real(fd, data, count, at);
}

int fsync(int fd)
{
	REAL(fsync);
	FAIL(below_fd(fd), SYNCING);
	return real(fd);
}

int fdatasync(int fd)
{
	REAL(fdatasync);
	FAIL(below_fd(fd), SYNCING);
	return real(fd);
}

int ftruncate(int fd, off_t length)
{
	REAL(ftruncate);
	FAIL(below_fd(fd), GROWING);
	return real(fd, length);
}

int ftruncate64(int fd, off64_t length)
{
	REAL(ftruncate64);
	FAIL(below_fd(fd), GROWING);
	return real(fd, length);
}

int unlink(const char *path)
{
	REAL(unlink);
	FAIL(below(path), REMOVING);
	return real(path);
}

#define OPEN(name) \
	int name(const char *path, int flags, ...) \
	{ \
		REAL(name); \
		mode_t mode = 0; \
		if (flags & (O_CREAT | O_TMPFILE)) { \
			va_list rest; \
			va_start(rest, flags); \
			mode = va_arg(rest, mode_t); \
			va_end(rest); \
		} \
		/* What is there can be read. */ \
		FAIL((flags & (O_WRONLY | O_RDWR | O_CREAT)) && below(path), OPENING); \
		return real(path, flags, mode); \
	}

OPEN(open)
OPEN(open64)
